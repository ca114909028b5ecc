// Classifies one image of a digit with nothing but the service's .proto file.
//
//   npm install --no-package-lock
//   node classify.js image.bin [host:port] [path of classifier.proto]
//
// image.bin: n x 784 bytes, row-major 28 x 28, 0 background to 255 ink.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [file, server = "127.0.0.1:50051", proto = "../../proto/digits/v1/classifier.proto"] = process.argv.slice(2);
const { digits } = grpc.loadPackageDefinition(protoLoader.loadSync(proto));

// Calls are reads, so trying again does no harm where a server is restarting or full.
const serviceConfig = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "digits.v1.DigitClassifier" }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.05s",
        maxBackoff: "1s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
  ],
};
const client = new digits.v1.DigitClassifier(server, grpc.credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify(serviceConfig),
});

client.classify({ pixels: readFileSync(file) }, { deadline: Date.now() + 5000 }, (error, answer) => {
  client.close();
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
    return;
  }
  answer.digits.forEach((digit, i) => console.log(`${digit}  ${(100 * answer.confidences[i]).toFixed(1)}%`));
});
