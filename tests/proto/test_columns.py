"""The internal twin of the contract says the same on the wire."""

import pytest

from digits.v1 import classifier_pb2, columns_pb2

TWINS = sorted(columns_pb2.DESCRIPTOR.message_types_by_name)


@pytest.mark.parametrize("name", TWINS)
def test_twin_has_the_names_and_numbers_of_the_contract(name):
    """Each message of columns.proto has the fields of its public namesake; only packed columns differ, as bytes."""
    public = classifier_pb2.DESCRIPTOR.message_types_by_name[name].fields_by_name
    twin = columns_pb2.DESCRIPTOR.message_types_by_name[name].fields_by_name
    assert {field.name: field.number for field in twin.values()} == {
        field.name: field.number for field in public.values()
    }
    for field in twin.values():
        expected = field.TYPE_BYTES if public[field.name].is_packed else public[field.name].type
        assert (field.type, field.is_repeated) == (expected, False), field.name


def test_twin_covers_classification():
    """Every message of Classify and ClassifyStream has a twin, and so has what is in them."""
    messages = {method.input_type.name for method in _classify()} | {method.output_type.name for method in _classify()}
    assert messages | {"Timing", "StreamError"} == set(TWINS)


def test_answer_written_by_the_twin_is_read_by_the_contract():
    """Columns given as bytes arrive as the public message's numbers."""
    answer = columns_pb2.ClassifyResponse(digits=bytes([7, 0]), confidences=bytes.fromhex("0000803f0000003f"))
    read = classifier_pb2.ClassifyResponse.FromString(answer.SerializeToString())
    assert (list(read.digits), list(read.confidences)) == ([7, 0], [1.0, 0.5])


def _classify():
    service = classifier_pb2.DESCRIPTOR.services_by_name["DigitClassifier"]
    return [service.methods_by_name[name] for name in ("Classify", "ClassifyStream")]
