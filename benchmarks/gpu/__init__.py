"""One command for a machine with an NVIDIA GPU: parity and latency of every backend that is there, against torch.

python -m benchmarks.gpu        (`make gpu-check`; docs/gpu-check.md)
"""
