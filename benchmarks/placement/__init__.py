"""What onnxruntime's CUDA provider makes of a bundle's graphs, without a GPU: on CUDA libraries that do nothing."""
