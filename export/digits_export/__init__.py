"""Trains digit classifiers on MNIST and writes verified ONNX model packages; heavy imports wait until needed."""
