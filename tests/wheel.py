"""`make wheel-check`: the wheel in bare environments, one for each runtime extra: an image, and a program's types.

Nothing of the checkout is on the path there: what a file list leaves out of the wheel is missed.
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "wheel"
EXTRAS = ("onnxruntime", "openvino")
HASHES_FROM_CONSTRAINTS = "pip>=26.1"  # older ones want a hash beside each requirement
PROGRAM = """\
import sys

import latentrt
from latentrt import Image, Pipeline, Request


def first(pipe: Pipeline, request: Request) -> tuple[int, ...]:
    result = pipe.generate(request)
    again = pipe.generate("a blue star", start=Image(result.images[0], strength=0.5), steps=2, seed=1)
    return again.images.shape


with latentrt.load(sys.argv[1], backend=sys.argv[2]) as pipe:  # type: ignore[arg-type]
    assert first(pipe, Request("a red circle", steps=2, seed=7, size=(64, 64))) == (1, 64, 64, 3)
assert not {"torch", "diffusers", "onnx"} & sys.modules.keys()
print("made images with", latentrt.__file__)
"""


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, cwd=WORK)


def main(bundle: Path) -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    for old in WORK.glob("*.whl"):
        old.unlink()
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools adds what an earlier build left there
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", WORK, ROOT)
    (wheel,) = WORK.glob("*.whl")
    hashed = f"{wheel.as_uri()}#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}"
    program = WORK / "program.py"
    program.write_text(PROGRAM)
    for extra in EXTRAS:
        place = WORK / extra
        venv.create(place, with_pip=True, clear=True)
        python = place / "bin" / "python"
        install = (python, "-m", "pip", "install", "--quiet")
        run(*install, "--upgrade", HASHES_FROM_CONSTRAINTS)
        run(*install, "--constraint", ROOT / "constraints" / "runtime.txt", f"latentrt[{extra}] @ {hashed}")
        run(place / "bin" / "latentrt", "inspect", bundle.resolve())
        run(python, program, bundle.resolve(), extra)
        run(
            sys.executable, "-m", "mypy", "--strict", "--no-warn-unused-ignores", "--python-executable", python, program
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
