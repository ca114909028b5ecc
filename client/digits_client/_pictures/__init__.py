"""Pictures, to images of digits as MNIST would have them: decoded, cleaned, normalised; arrays need none of this."""

from digits_client._pictures.prepare import prepare
from digits_client._pictures.segment import Lattice, Segment, segment

__all__ = ["Lattice", "Segment", "prepare", "segment"]
