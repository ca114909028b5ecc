"""Classifies images of digits with NVIDIA's client for the Open Inference Protocol, which Triton and KServe speak too.

    pip install "tritonclient[grpc]"
    python classify.py image.bin [host:port]

image.bin: n x 784 bytes, row-major 28 x 28, 0 background to 255 ink.
"""

import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

file, server = [*sys.argv[1:], "127.0.0.1:50051"][:2]
images = np.fromfile(file, np.uint8).reshape(-1, 28, 28)

vectors = triton.InferInput("vectors", images.shape, "UINT8")
vectors.set_data_from_numpy(images)
try:
    with triton.InferenceServerClient(server) as client:
        answer = client.infer("digits-mlp", [vectors], client_timeout=5)
except InferenceServerException as error:
    sys.exit(str(error))
for digit, confidence in zip(answer.as_numpy("digits"), answer.as_numpy("confidences"), strict=True):
    print(f"{digit}  {confidence:.1%}")
