"""`make inspect-engines`: what Polygraphy sees in a bundle's graphs, in those for CUDA, and in the plans of TensorRT.

python benchmarks/inspect_engines.py BUNDLE [-o FOLDER]

Writes a text for each file and prints a line. Plans can only be read where there is a GPU; elsewhere they are named.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from latentrt.backends.cuda.api import driver_present
from latentrt.backends.onnxruntime.cuda import rewritten_graphs
from latentrt.backends.tensorrt.records import MODULES, built_engines
from latentrt.bundle import Bundle

_COUNT = re.compile(r"---- (\d+) (Graph Input|Graph Output|Node|Layer|Profile)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A file to look at.

    Args:
        name: for people, and of the text.
        path: of the graph or plan.
        arguments: of `polygraphy inspect model`.
        rtx: whether it is one of TensorRT for RTX.
        plan: whether reading it takes a GPU.
    """

    name: str
    path: Path
    arguments: tuple[str, ...] = ()
    rtx: bool = False
    plan: bool = field(default=False)


def inspected(bundle: Bundle) -> Iterator[Inspected]:
    """Everything of a bundle that can be looked at."""
    for name, part in bundle.components.items():
        yield Inspected(name=name, path=part.graph.path, arguments=("--model-type=onnx",))
    folder = bundle.root / "engines"
    for found in rewritten_graphs(folder):
        weights = ("--model-type=onnx", "--external-data-dir", str(bundle.root))
        yield Inspected(name=f"{found.record.component}-onnxruntime-cuda", path=found.path, arguments=weights)
    for backend in MODULES:
        for built in built_engines(folder, backend):
            name = f"{built.record.component}-{backend}-{built.plan.parent.name[:8]}"
            rtx = backend == "tensorrt-rtx"
            yield Inspected(name=name, path=built.plan, arguments=("--model-type=engine",), rtx=rtx, plan=True)


def look(each: Inspected, folder: Path) -> str | None:
    """Writes what Polygraphy says; a summary, or None where it failed."""
    start = "import sys; from polygraphy.tools import main; sys.exit(main())"  # it is no module that -m runs
    command = [sys.executable, "-c", start, "inspect", "model", str(each.path), *each.arguments]
    environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": str(int(each.rtx))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    (folder / f"{each.name}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        return None
    return ", ".join(f"{number} {what.lower()}s" for number, what in _COUNT.findall(done.stdout))


def main() -> int:
    """Looks at everything; 1 where Polygraphy failed on something that can be read here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/inspected"), metavar="FOLDER")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for each in inspected(Bundle.open(options.bundle)):
        if each.plan and not driver_present():
            print(f"{each.name}: a plan, which only a machine with a GPU reads: {each.path}")
            continue
        said = look(each, options.output)
        failed += said is None
        print(f"{each.name}: {said if said is not None else 'FAILED, see ' + str(options.output / each.name) + '.txt'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
