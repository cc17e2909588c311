"""How results are written: under their date, whole, and in few bytes, for they travel with every clone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrt.files.atomic import write_whole

FOLDER = Path(__file__).resolve().parent / "results"
DIGITS = 5


def write_result(document: Mapping[str, Any], *, what: str, folder: Path = FOLDER) -> Path:
    """Writes `packed(document)` and returns the path, whose date is that of its provenance."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{document['provenance']['date'][:10]}-{what}.json"
    write_whole(path, json.dumps(packed(document), separators=(",", ":")).encode() + b"\n")
    return path


def packed(value: Any) -> Any:
    """Numbers to `DIGITS` digits, and several rows of the same names as `columns` and `rows`."""
    if isinstance(value, Mapping):
        return {name: packed(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        names = list(value[0]) if value and isinstance(value[0], Mapping) else []
        if len(value) > 1 and names and all(isinstance(each, Mapping) and [*each] == names for each in value):
            return {"columns": names, "rows": [[packed(each[name]) for name in names] for each in value]}
        return [packed(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def read_result(path: Path) -> Any:
    """What `write_result` was given, to `DIGITS` digits."""
    return json.loads(path.read_text(), object_hook=_unpacked)


def _unpacked(found: dict[str, Any]) -> Any:
    if found.keys() == {"columns", "rows"}:
        return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    return found
