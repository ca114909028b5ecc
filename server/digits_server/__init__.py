"""Serves digit classifiers over gRPC: run it as `digits-server`."""
