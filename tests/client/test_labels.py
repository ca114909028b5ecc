"""Classes have the names that the model gives them."""

import string

import grpc
import numpy as np
import pytest
from stub_server import Servicer, answer, serving

from digits.v1 import classifier_pb2 as pb
from digits_client import AsyncDigitClient, DigitClient, ServerUnavailable, _results
from digits_client.testing import FakeTransport

IMAGE = np.zeros(784, np.uint8)


class Listing(Servicer):
    """Serves one version with labels, and counts how often they are asked for."""

    version, labels = "1", string.ascii_uppercase
    asked = 0

    def ListModels(self, request, context):  # noqa: N802 - named by the .proto
        self.asked += 1
        loading = pb.Model(name="stub", version="9", state=pb.MODEL_STATE_LOADING)
        serving = pb.Model(name="stub", version=self.version, state=pb.MODEL_STATE_SERVING, labels=self.labels)
        return pb.ListModelsResponse(models=[serving, loading])


def image(number):
    pixels = IMAGE.copy()
    pixels[0] = number
    return pixels


@pytest.fixture
def listing():
    servicer = Listing()
    servicer.classify = lambda request, _: answer(request, version=servicer.version)
    with serving(servicer) as port:
        servicer.address = f"127.0.0.1:{port}"
        yield servicer


def test_labels_are_asked_for_once_a_version(listing):
    """A new version brings its own labels, also one that was still loading when the list was read."""
    with DigitClient(listing.address, timeout_s=20) as client:
        assert [client.classify(image(number)).label for number in (0, 3, 25)] == ["A", "D", "Z"]
        assert listing.asked == 1
        listing.version, listing.labels = "9", string.ascii_lowercase
        assert client.classify_many([image(0), image(25)]).labels == ["a", "z"]
        assert client.classify(image(0)).classes == tuple(string.ascii_lowercase)
        assert listing.asked == 2


async def test_labels_of_asyncio(listing):
    """The asyncio client learns them in the same way."""
    async with AsyncDigitClient(listing.address, timeout_s=20) as client:
        assert (await client.classify(image(3))).label == "D"
        assert (await client.classify_many([image(4)])).labels == ["E"]
        assert listing.asked == 1


def test_a_version_that_the_list_does_not_name_yet_is_looked_for_again(listing, monkeypatch):
    """While servers are exchanged, another one than answers may give the list; it is asked for once a second."""
    listing.classify = lambda request, _: answer(request, version="2")
    monkeypatch.setattr(_results, "RELIST_S", 60)
    with DigitClient(listing.address, timeout_s=20) as client:
        assert [client.classify(image(3)).label for _ in range(3)] == ["3"] * 3
        assert listing.asked == 1
        listing.version = "2"
        monkeypatch.setattr(_results, "RELIST_S", 0)
        assert [client.classify(image(3)).label for _ in range(3)] == ["D"] * 3
        assert listing.asked == 2


def test_a_version_without_labels_is_not_looked_for_again(listing, monkeypatch):
    """A list that says that a version serves, and names no labels, is final."""
    monkeypatch.setattr(_results, "RELIST_S", 0)
    listing.labels = ""
    with DigitClient(listing.address, timeout_s=20) as client:
        assert [client.classify(image(3)).label for _ in range(3)] == ["3"] * 3
        assert listing.asked == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED])
def test_where_the_server_does_not_tell_classes_go_by_number(listing, code):
    """An old server, or a token that may not list, costs the labels and nothing else."""
    listing.ListModels = lambda request, context: context.abort(code, "no")
    with serving(listing) as port, DigitClient(f"127.0.0.1:{port}", timeout_s=20) as client:
        prediction = client.classify(image(7))
        assert (prediction.label, prediction.classes) == ("7", ())


def test_labels_that_cannot_be_had_now_fail_the_call():
    """A number is never given for a label because the network failed for a moment."""

    class Lost(FakeTransport):
        def call(self, method, request, timeout_s):
            if method.endswith("ListModels"):
                raise ServerUnavailable(grpc.StatusCode.UNAVAILABLE, "gone")
            return super().call(method, request, timeout_s)

    with DigitClient(transport=Lost(7)) as client, pytest.raises(ServerUnavailable):
        client.classify(IMAGE)


@pytest.mark.parametrize("classes", [2, 26, 1000])
def test_models_of_any_number_of_classes(classes):
    """Digits, probabilities and labels of a class beyond 255 are told right, one by one, in columns and streamed."""
    labels = [f"class {number}" for number in range(classes)]
    with DigitClient(transport=FakeTransport(classes - 1, labels)) as client:
        prediction = client.classify(IMAGE)
        assert (prediction.digit, prediction.label) == (classes - 1, labels[-1])
        assert prediction.probabilities.shape == (classes,)
        many = client.classify_many([IMAGE] * 3)
        assert (many.digits.tolist(), many.labels) == ([classes - 1] * 3, [labels[-1]] * 3)
        assert [it.label for it in client.stream([IMAGE])] == [labels[-1]]
        assert client.models()[0].labels == tuple(labels)
