"""Asks a server all that NVIDIA's client can, and prints the answers as JSON: `triton_calls.py ADDRESS IMAGES.npy`.

A program of its own: tritonclient registers the protocol's messages under the names that ours have too.
"""

import asyncio
import json
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

ROWS = 125
MODEL = "digits-mlp"


def inputs(images):
    kind = {"uint8": "UINT8", "float32": "FP32"}[images.dtype.name]
    vectors = tritonclient.grpc.InferInput("vectors", images.shape, kind)
    vectors.set_data_from_numpy(images)
    return [vectors]


def sync(address, images):
    """Ask for the metadata, then for every image as bytes, all outputs; then for what there is not."""
    with tritonclient.grpc.InferenceServerClient(address) as client:
        results = [
            client.infer(MODEL, inputs(part), request_id=f"part {at}", client_timeout=20)
            for at, part in enumerate(np.split(images, len(images) // ROWS))
        ]
        facts = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model ready": client.is_model_ready(MODEL),
            "version ready": client.is_model_ready(MODEL, "3"),
            "other ready": client.is_model_ready("other"),
            "server": client.get_server_metadata(as_json=True),
            "model": client.get_model_metadata(MODEL, as_json=True),
            "config": client.get_model_config(MODEL, as_json=True)["config"],
            "statistics": client.get_inference_statistics(MODEL, as_json=True)["model_stats"],
            "all statistics": [model.name for model in client.get_inference_statistics().model_stats],
            "index": client.get_model_repository_index(as_json=True)["models"],
            "ids": [result.get_response().id for result in results[:2]],
            "parameters": sorted(results[0].get_response().parameters),
        }
        try:
            client.infer("other", inputs(images[:1]))
        except InferenceServerException as error:
            facts["refused"] = [error.status(), error.message()]
    names = ("digits", "confidences", "probabilities", "quality_flags")
    columns = {name: np.concatenate([result.as_numpy(name) for result in results]).tolist() for name in names}
    return facts | columns


async def asynchronous(address, images):
    """Ask for every image as floats of 28 x 28 x 1, all calls at once, one output."""
    images = (images / np.float32(255)).reshape(-1, 28, 28, 1)
    outputs = [tritonclient.grpc.InferRequestedOutput("digits")]
    async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
        parts = np.split(images, len(images) // ROWS)
        results = await asyncio.gather(*(client.infer(MODEL, inputs(part), outputs=outputs) for part in parts))
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready(MODEL),
            "server": await client.get_server_metadata(as_json=True),
            "model": await client.get_model_metadata(MODEL, as_json=True),
            "outputs": [output.name for output in results[0].get_response().outputs],
            "digits": np.concatenate([result.as_numpy("digits") for result in results]).tolist(),
        }


if __name__ == "__main__":
    address, file = sys.argv[1:]
    images = np.load(file)
    print(json.dumps({"sync": sync(address, images), "aio": asyncio.run(asynchronous(address, images))}))  # noqa: T201
