"""Results that outlive an interruption: JSON values and arrays, by name and by what they depend on."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.arrays import Array
from latentrt.export.staging import write_atomically
from latentrt.files.atomic import written_beside


class ResultCache:
    """A folder of results. One that was made from something else, or is damaged, is made anew.

    Args:
        source: a JSON value that all results depend on.
    """

    def __init__(self, folder: Path, *, source: Any) -> None:
        self._folder, self._source = folder, source

    def value(self, name: str, make: Callable[[], Any], *, source: Any = None) -> Any:
        """A JSON value. `source`: what else it depends on."""
        path, mark = self._folder / f"{name}.json", self._mark(source)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["mark"] == mark:
                return record["value"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        value = make()
        write_atomically(path, {"mark": mark, "value": value})
        return value

    def arrays(self, name: str, make: Callable[[], Mapping[str, Array]], *, source: Any = None) -> Mapping[str, Array]:
        """Arrays by name. `source`: what else they depend on."""
        path, mark = self._folder / f"{name}.npz", self._mark(source)
        if (stored := read_arrays(path, mark)) is not None:
            return stored
        arrays = make()
        write_arrays(path, mark, arrays)
        return arrays

    def _mark(self, source: Any) -> str:
        return hashlib.sha256(json.dumps([self._source, source], sort_keys=True).encode()).hexdigest()


def write_arrays(path: Path, mark: str, arrays: Mapping[str, Array]) -> None:
    """Writes arrays by name, whole or not at all. `mark`: what they were made from."""
    with written_beside(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, mark=np.array(mark), **arrays)


def read_arrays(path: Path, mark: str) -> dict[str, Array] | None:
    """What `write_arrays` wrote; None for no file, a damaged one, or one of another mark."""
    try:
        with np.load(path) as stored:
            if str(stored["mark"]) == mark:
                return {name: stored[name] for name in stored.files if name != "mark"}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    return None
