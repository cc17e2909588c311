"""What a check needs, made where it is missing: checkpoints, bundles in float32 and float16, engines.

Everything but the engines of the variant `tensorrt` can be made on a machine without a GPU, and taken along.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import Deadline, Record
from latentrt.backends.onnxruntime.cuda import BUILD_OPTIONS, choose_rewritten
from latentrt.bundle import MANIFEST, Bundle
from latentrt.errors import BackendError
from latentrt.export.engines.variants import variant as find_variant

LIMIT_S = 1800.0
PREBUILT = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parts of a check lie.

    Args:
        work: everything that is made.
        architecture: of the checkpoint whose speed is measured.
    """

    work: Path
    architecture: str

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoints" / self.architecture

    def bundle(self, name: str, precision: str) -> Path:
        return self.work / "bundles" / f"{name}-{precision}"

    @property
    def logs(self) -> Path:
        return self.work / "logs"


@dataclass(frozen=True, slots=True)
class Task:
    """One command.

    Args:
        name: for people.
        command: module and arguments.
        made: the last file that it writes; None: the command itself knows whether it is done.
        source: a file or folder; what is older than this is made again.
    """

    name: str
    command: tuple[str, ...]
    made: Path | None = None
    source: Path | None = None

    @property
    def done(self) -> bool:
        if self.made is None or not self.made.is_file():
            return False
        return self.source is None or _newest(self.source) <= self.made.stat().st_mtime


def checkpoint_tasks(place: Place) -> list[Task]:
    """The checkpoint with random weights."""
    command = ("latentrt.export.synthetic.checkpoints", place.architecture, "-o", str(place.checkpoint))
    return [Task(f"checkpoint {place.architecture}", command, made=place.checkpoint / "model_index.json")]


def bundle_tasks(place: Place, name: str, checkpoint: Path, precisions: Sequence[str]) -> list[Task]:
    """The bundle of a checkpoint in float32, and converted to the other precisions. Where those are there that are
    asked for, and newer than the checkpoint, the one in float32 that they were made from need not be."""
    exported = place.bundle(name, "fp32")
    others = [place.bundle(name, precision) / MANIFEST for precision in precisions if precision != "fp32"]
    carried = others and "fp32" not in precisions and not (exported / MANIFEST).is_file()
    if carried and all(Task("", (), made=made, source=checkpoint).done for made in others):
        return []
    command = _cli("export", checkpoint, "-o", exported, "--no-check", "--overwrite")
    tasks = [Task(f"export {name}", command, made=exported / MANIFEST, source=checkpoint)]
    for precision in precisions:
        if precision != "fp32":
            output = place.bundle(name, precision)
            command = _cli("convert", exported, "-o", output, "--precision", precision, "--overwrite")
            made, source = output / MANIFEST, exported / MANIFEST
            tasks.append(Task(f"convert {name} to {precision}", command, made=made, source=source))
    return tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """What engines are to serve, as `latentrt build` takes it: `64x64..160x160`, `1..3`, `77..154`."""

    sizes: str
    batch: str
    context: str


def engine_task(
    bundle: Path, variant: str, ranges: Ranges, *, gpus: str | None, components: Sequence[str] | None = None
) -> Task:
    """Engines of a bundle; None is every component. What was built before is kept."""
    command = _cli("build", bundle, "--backend", variant, "--size", ranges.sizes)
    command += ("--batch", ranges.batch, "--context", ranges.context)
    command += () if gpus is None else ("--gpus", gpus)
    command += () if components is None else ("--components", ",".join(components))
    return Task(f"build {bundle.name} for {variant}, {ranges.sizes}, batch {ranges.batch}", command)


def graph_tasks(bundle: Path, plain: Path) -> list[Task]:
    """A bundle's graphs for ONNX Runtime on CUDA, and the bundle once more without them, which makes its graphs run as
    they were exported."""
    return [
        Task(f"graphs of {bundle.name} for CUDA", _cli("build", bundle, *BUILD_OPTIONS.split())),
        Task(
            f"{bundle.name} without graphs for CUDA",
            ("benchmarks.gpu.plain", str(bundle), "-o", str(plain)),
            made=plain / MANIFEST,
            source=bundle / MANIFEST,
        ),
    ]


def rewritten(bundle: Path, version: str) -> list[str]:
    """Components whose graph this version of onnxruntime takes as rewritten for CUDA."""
    parts = Bundle.open(bundle).components.values()
    return [part.name for part in parts if choose_rewritten(part.graph, None, version) is not None]


def architecture(variant: str, capability: str | None) -> str | None:
    """What to build for: the card that is here if the variant lists it, else all that it knows and all later ones.

    None for a variant that builds for the card that is here and no other.
    """
    listed = find_variant(variant).capabilities
    number = None if capability is None else int(capability.replace(".", ""))
    if not listed:
        return None
    return f"sm{number}" if number in listed else "sm80+"


def prepare(tasks: Sequence[Task], *, into: dict[str, Any], record: Record, deadline: Deadline, logs: Path) -> None:
    """Does what is missing and notes each command in `into["prepared"]`; one that fails does not end the others."""
    for task in tasks:
        if task.done:
            continue
        row = {"name": task.name, "command": " ".join(["python", "-m", *task.command])}
        into.setdefault("prepared", []).append(row)
        with record.guarded(row, task.name):
            _run(task, logs=logs, timeout_s=deadline.left_s(LIMIT_S))


def _run(task: Task, *, logs: Path, timeout_s: float) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *task.command], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"{task.name} was not done within {timeout_s:.0f} s", hint="run the check again") from None
    log = logs / "prepare.log"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(task.command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        raise BackendError(f"{task.name} failed with status {done.returncode}: {lines[-1]}", hint=f"see {log}")


def _newest(path: Path) -> float:
    """When a file, or the latest of a folder's files, was changed; of what is missing, never."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return max((file.stat().st_mtime for file in files), default=0.0)


def _cli(*words: object) -> tuple[str, ...]:
    return ("latentrt.cli", *map(str, words))
