"""What the runtime costs before it does anything: import time, memory, packages.

    python benchmarks/footprint.py [BUNDLE]

Each measurement is made in a fresh interpreter. Times are the fastest of a few, since a cold disk is no property
of the code; memory is resident size.
"""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

TURNS = 5

PROBE = """
import json, sys, time
before = set(sys.modules)
def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
row = {"bare_mb": resident_mb()}
began = time.perf_counter()
import latentrt
row |= {"import_s": time.perf_counter() - began, "import_mb": resident_mb()}
if len(sys.argv) > 1:
    began = time.perf_counter()
    with latentrt.load(sys.argv[1]) as pipe:
        row |= {"load_s": time.perf_counter() - began, "load_mb": resident_mb()}
        began = time.perf_counter()
        pipe.prepare()
        row |= {"prepare_s": time.perf_counter() - began, "prepare_mb": resident_mb()}
row["modules"] = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps(row))
"""


def main(arguments: list[str]) -> None:
    imported = [probe() for _ in range(TURNS)]
    best = min(imported, key=lambda row: row["import_s"])
    print(f"a bare interpreter                   {best['bare_mb']:6.0f} MB")
    print(f"import latentrt            {best['import_s']:6.2f} s  {best['import_mb']:6.0f} MB")
    if arguments:
        loaded = min((probe(arguments[0]) for _ in range(TURNS)), key=lambda row: row["load_s"])
        print(f"latentrt.load              {loaded['load_s']:6.2f} s  {loaded['load_mb']:6.0f} MB")
        print(f"pipe.prepare               {loaded['prepare_s']:6.2f} s  {loaded['prepare_mb']:6.0f} MB")
        best = loaded
    print("\npackages imported:")
    for name, version, size in packages(best["modules"]):
        print(f"  {name:<24} {version:<12} {size / 1e6:7.1f} MB on disk")


def probe(*arguments: str) -> dict[str, Any]:
    """One fresh interpreter."""
    command = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def packages(modules: Iterable[str]) -> list[tuple[str, str, int]]:
    """(name, version, bytes) of the distributions behind top-level modules, the largest first."""
    owners: Mapping[str, list[str]] = importlib.metadata.packages_distributions()
    names = {name for module in modules for name in owners.get(module, [])}
    rows = []
    for name in names:
        distribution = importlib.metadata.distribution(name)
        paths = [distribution.locate_file(file) for file in distribution.files or []]
        size = sum(path.stat().st_size for path in paths if path.exists())  # type: ignore[attr-defined]
        rows.append((name, distribution.version, size))
    return sorted(rows, key=lambda row: -row[2])


if __name__ == "__main__":
    main(sys.argv[1:])
