"""Answers are written as protobuf would have."""

import numpy as np
import pytest
from google.protobuf.internal.encoder import _VarintBytes

from digits.v1 import classifier_pb2 as pb
from digits_server import converters, wire
from digits_server.engine import Predictions
from digits_server.jobs import Outcome


def predictions(count, classes=10):
    random = np.random.default_rng(count)
    probabilities = random.random((count, classes), np.float32)
    return Predictions(
        random.integers(0, 10, count, dtype=np.uint8),
        probabilities.max(axis=1),
        probabilities,
        random.integers(0, 16, count, dtype=np.uint8),
        random.random(count, np.float32),
    )


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 16383, 16384, 40_960_000])
def test_varint(number):
    """Lengths of any size are encoded as protobuf does."""
    assert wire.varint(number) == _VarintBytes(number)


@pytest.mark.parametrize(
    "parts", [[(1, 0, 1)], [(64, 10, 11)], [(300, 7, 290)], [(128, 0, 128), (128, 0, 128), (9, 3, 5)]]
)
@pytest.mark.parametrize("with_probabilities", [True, False])
def test_response_reads_back_as_written(parts, with_probabilities):
    """One part or several, any rows of their batches: every field parses to exactly what the columns held."""
    outcomes = [Outcome(predictions(size), start, end, 0.25 * size, 0.5, size) for size, start, end in parts]
    fixed = pb.ClassifyResponse(model="m", version="7").SerializeToString()
    message = pb.ClassifyResponse.FromString(
        wire.response(fixed, converters.joined(outcomes), probabilities=with_probabilities)
    )

    def column(name):
        return np.concatenate([getattr(o.answers, name)[o.start : o.end] for o in outcomes])

    assert list(message.digits) == column("digits").tolist()
    assert list(message.confidences) == column("confidences").tolist()
    assert list(message.quality_flags) == column("flags").tolist()
    assert list(message.probabilities) == (column("probabilities").ravel().tolist() if with_probabilities else [])
    assert (message.model, message.version) == ("m", "7")
    assert message.timing == pb.Timing(
        queue_seconds=0.25 * max(size for size, _, _ in parts),
        inference_seconds=0.5 * len(parts),
        batch_size=max(size for size, _, _ in parts),
    )


def test_stream_response_wraps_a_response():
    """The bytes of a response become those of a stream's message that carries it."""
    response = pb.ClassifyResponse(digits=[1, 2], model="m" * 300)
    message = pb.ClassifyStreamResponse.FromString(wire.stream_response(response.SerializeToString()))
    assert message == pb.ClassifyStreamResponse(response=response)
