"""What carries RPCs, and what all RPCs share."""
