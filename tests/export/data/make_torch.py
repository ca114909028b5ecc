"""Writes ONNX files as both of PyTorch's exporters do, with its answers; run where `torch` is, no test needs it.

pip install torch onnxscript && python make_torch.py
"""

import gzip
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

HERE = Path(__file__).parent
MNIST = HERE.parents[1] / "data" / "mnist"


class Net(nn.Module):
    """The network of PyTorch's MNIST example, made small: images (n, 1, 28, 28), log-probabilities at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 5, 2)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.25)
        self.dense = nn.Linear(4 * 6 * 6, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, 10) log-probabilities."""
        features = torch.max_pool2d(torch.relu(self.norm(self.conv(images))), 2)
        return torch.log_softmax(self.dense(torch.flatten(self.dropout(features), 1)), dim=1)


def main() -> None:
    """Train the network for a moment, and write it by each exporter, with its answers."""
    torch.manual_seed(0)
    pixels = gzip.decompress((MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 784)
    labels = np.frombuffer(gzip.decompress((MNIST / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    given = (torch.tensor(images.reshape(-1, 1, 28, 28) / np.float32(255)) - 0.1307) / 0.3081
    wanted = torch.tensor(labels.astype(np.int64))
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for rows in torch.randperm(9000).split(100):
        optimizer.zero_grad()
        nn.functional.nll_loss(model(given[1000 + rows]), wanted[1000 + rows]).backward()
        optimizer.step()
    model.eval()
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model, (given[:2],), HERE / "torch-dynamo.onnx", dynamic_shapes=({0: batch},), external_data=False
    )
    dynamo = onnx.load(HERE / "torch-dynamo.onnx")
    for node in dynamo.graph.node:
        del node.metadata_props[:]  # stacks, with the paths of the machine that ran this
    onnx.save(dynamo, HERE / "torch-dynamo.onnx")
    torch.onnx.export(model, (given[:1],), HERE / "torch-script.onnx", dynamo=False)  # its batch stays 1
    with torch.no_grad():
        answers = model(given[:50]).numpy()
    np.savez_compressed(HERE / "torch.npz", inputs=images[:50], answers=answers)


if __name__ == "__main__":
    main()
