"""ONNX Runtime: the reference on every CPU, and CUDA where its provider is installed."""
