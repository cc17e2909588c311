"""How what an extra brings is installed here: from a checkout, or where no package index has this distribution."""

import importlib.metadata
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

from latentrt.environment.floors import DISTRIBUTION, floors

_RIVALS = ("onnxruntime", "onnxruntime-gpu")


def install_command(*extras: str) -> str:
    """What to type to have the packages of extras: `pip install --editable "CHECKOUT[extra]"` where this runs from a
    checkout, else `pip install` and the packages, which every index has."""
    return _without_rivals(extras) + _install(extras)


def _install(extras: Sequence[str]) -> str:
    checkout = _checkout()
    if checkout is not None:
        return f'pip install --editable "{checkout}[{",".join(extras)}]"'
    packages = dict.fromkeys(package for extra in extras for package in extra_packages(extra))
    if not packages:  # no metadata: a bare copy of the source
        return f"pip install what {' and '.join(map(repr, extras))} of {DISTRIBUTION} lists in its pyproject.toml"
    return " ".join(["pip install", *(f'"{package}"' for package in packages)])


def _without_rivals(extras: Sequence[str]) -> str:
    """What goes before: distributions that write into one package, of which the last to come or go decides."""
    if not {*extras} & {*_RIVALS}:
        return ""
    there = []
    for name in _RIVALS:
        with suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            there.append(name)
    return f"pip uninstall {' '.join(there)} && " if there else ""


def extra_packages(extra: str) -> tuple[str, ...]:
    """What an extra and those that it includes add, each as pip takes it; none if that is not known."""
    always = floors()
    return tuple(str(floor) for floor in floors(extra) if floor not in always)


def _checkout() -> Path | None:
    """The folder that an editable install is of; None of any other."""
    try:
        origin = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        row = {} if origin is None else json.loads(origin)
        editable = row.get("dir_info", {}).get("editable", False)
        folder = Path(unquote(urlparse(row["url"]).path)) if editable else None
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        return None
    return folder if folder is not None and (folder / "pyproject.toml").is_file() else None
