"""Writes a checkpoint in the form that another runtime loads. Runs in its environment.

python -m benchmarks.peers.convert optimum-onnx CHECKPOINT FOLDER
"""

import subprocess
import sys
from pathlib import Path


def main() -> None:
    kind, checkpoint, folder = sys.argv[1:]
    {"optimum-onnx": _to_onnx, "openvino-genai": _to_ir}[kind](checkpoint, Path(folder))


def _to_onnx(checkpoint: str, folder: Path) -> None:
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    ORTStableDiffusionPipeline.from_pretrained(checkpoint, export=True).save_pretrained(folder)


def _to_ir(checkpoint: str, folder: Path) -> None:
    """By its command line, which converts the tokenizer as well."""
    tool = Path(sys.executable).parent / "optimum-cli"
    settings = ["--task", "text-to-image", "--weight-format", "fp16"]
    subprocess.run([tool, "export", "openvino", "--model", checkpoint, *settings, str(folder)], check=True)


if __name__ == "__main__":
    main()
