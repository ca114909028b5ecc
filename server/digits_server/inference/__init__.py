"""Who runs with whom and when; the only room that knows onnxruntime."""
