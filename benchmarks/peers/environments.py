"""Environments of other runtimes, with exactly the packages of a file of pins and this checkout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINS = Path(__file__).parent / "pins"
TORCH = "torch==2.13.0"

_VERSIONS = """
import importlib.metadata, json, platform
found = {row.metadata["Name"]: row.version for row in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version(), **dict(sorted(found.items(), key=lambda row: row[0].lower()))}))
"""


def environment(name: str, folder: Path) -> Path:
    """The Python of an environment with the pins of NAME; made anew where it is missing or was made of others."""
    place = folder / name
    python, pins, stamp = place / "bin" / "python", PINS / f"{name}.txt", place / "made-of.txt"
    if stamp.is_file() and stamp.read_text() == pins.read_text():
        return python
    print(f"making {place}", file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    _run(sys.executable, "-m", "venv", place)
    # torch with what its build needs; the rest is listed whole, so that nothing is resolved to something newer.
    _run(python, "-m", "pip", "install", "--quiet", "--constraint", pins, TORCH)
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", pins)
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ROOT)
    stamp.write_text(pins.read_text())
    return python


def versions(python: Path) -> dict[str, str]:
    """Of every package of an environment."""
    done = subprocess.run([python, "-c", _VERSIONS], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)
