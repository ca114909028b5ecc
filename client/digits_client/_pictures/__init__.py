"""Pictures, to images of digits as MNIST would have them: decoded, cleaned, normalised; arrays need none of this."""

from digits_client._pictures.prepare import prepare
from digits_client._pictures.segment import Segment, likeliest, segment

__all__ = ["Segment", "likeliest", "prepare", "segment"]
