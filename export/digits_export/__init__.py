"""Trains the digit classifiers and writes verified ONNX model packages: run it as `digits-export`."""
