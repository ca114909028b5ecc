"""Pictures, to images of digits as MNIST would have them: decoded, cleaned, normalised; arrays need none of this."""
