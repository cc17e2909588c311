"""Kills, full disks and rivals: every command that writes, disturbed and run again, against an undisturbed run.

    python -m benchmarks.kills                                   # three kills of each command, a full disk and a rival
    python -m benchmarks.kills --kills 20 --seed 7 --only convert,bulk
    python -m benchmarks.kills --minutes 10                      # as many as begin within that time, by turns

Each disturbance: a command on the example checkpoint gets a SIGKILL at a seeded moment of its usual time, or a disk
that is too small, or a second process on the same target. After it nothing may look finished that is not; the same
command then completes, and what it made is compared byte for byte with what an undisturbed run made. Only
`report.html`, times of day and durations may differ. Full disks need root for a tmpfs; without, the size of a file is
limited instead. Writes benchmarks/results/<date>-kills.json and ends with status 1 if anything is not as it should be.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.result_file import FOLDER, write_result
from latentrt.backends.tensorrt.records import PLAN, RECORD
from latentrt.bench.machine import PACKAGES, machine_facts
from latentrt.bundle import MANIFEST

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ROOT / "examples" / "shapes"
PROMPTS = ("a red circle", "a blue square", "a green triangle on a black background", "two yellow circles")
TIMES = ("created", "seconds")  # keys whose values are another thing in every run
FREE = ("report.html",)
DERIVED = "engines/"  # in a bundle: what those who ran it keep there, and no part of it
DONE, LACKS, WRONG = 0, 3, 2  # exit codes
ROOM = ("full", "too large", "No space left", "free on the disk")  # words of what lacks it


@dataclass(frozen=True, slots=True)
class Work:
    """A command that writes.

    Args:
        name: of it, in results.
        arguments: of `latentrt`, with `{out}` for its target and `{bundle}` for the bundle that it reads.
        finished: what must not be there unless the whole is: patterns of files in the target.
        alone: whether each of those files stands for itself, as an image does, and not for the whole target.
    """

    name: str
    arguments: tuple[str, ...]
    finished: str = MANIFEST
    alone: bool = False

    def command(self, out: Path, bundle: Path) -> list[str]:
        """What to run."""
        words = [
            word.format(out=out, bundle=bundle, prompts=bundle.with_name("prompts.txt")) for word in self.arguments
        ]
        return [sys.executable, "-m", "latentrt.cli", *words]


QUICK = ("--count", "2", "--steps", "2", "--alpha", "none", "--images", "1", "--size", "64x64", "--min-sqnr", "0")
ENGINES = ("--components", "decoder,encoder")
IMAGES = ("--size", "64x64", "--steps", "4", "--seed", "1", "--batch", "1")
WORKS = (
    Work("export", ("export", str(SHAPES / "checkpoint"), "-o", "{out}", "--no-check")),
    Work("convert", ("convert", "{bundle}", "-o", "{out}", "--precision", "fp16")),
    Work("calibrate", ("calibrate", "{bundle}", "-o", "{out}", "--backend", "onnxruntime", *QUICK)),
    Work("control", ("control", "{bundle}", f"edges={SHAPES / 'controlnet'}", "-o", "{out}")),
    Work(
        "build",
        ("build", "{bundle}", "--backend", "tensorrt-rtx", "--gpus", "sm89", *ENGINES, "--cache-dir", "{out}"),
        finished=f"*/*/{RECORD}",
        alone=True,
    ),
    Work(
        "bulk",
        ("generate", "{bundle}", "--prompts", "{prompts}", "-o", "{out}", *IMAGES, "--backend", "onnxruntime"),
        finished="*.png",
        alone=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one disturbance; `wrong` is empty where all is as it should be."""

    work: str
    kind: str
    at: str
    codes: tuple[int, ...]
    seconds: float
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """An undisturbed run: the files that it made, and how long it took."""

    files: dict[str, bytes]
    seconds: float

    @property
    def bytes(self) -> int:
        return sum(map(len, self.files.values()))


class Trial:
    """One command, disturbed in several ways.

    Args:
        work: which.
        folder: to work in.
        bundle: that the command reads.
        draw: where moments and sizes come from.
    """

    def __init__(self, work: Work, folder: Path, bundle: Path, draw: random.Random) -> None:
        self.work, self._folder, self._bundle, self._draw = work, folder, bundle, draw
        self._number = 0
        begun = time.monotonic()
        out = folder / f"{work.name}-undisturbed"
        code, text = self._run(out)
        if code != DONE:
            sys.exit(f"{work.name} fails undisturbed:\n{text}")
        self.reference = Reference(content(out), time.monotonic() - begun)

    def kill(self) -> Outcome:
        """A SIGKILL at any moment, and the same command again."""
        out, begun = self._target(), time.monotonic()
        after_s = self._draw.uniform(0, self.reference.seconds)
        process = self._start(out)
        try:
            process.communicate(timeout=after_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        wrong = self._false_ends(out)
        codes = [process.returncode]
        return self._completed("kill", f"{after_s:.2f} s", out, codes, wrong, begun)

    def full_disk(self) -> Outcome:
        """A disk, or a file, that is too small; and the same command with enough."""
        share = self._draw.uniform(0.05, 0.9)
        begun = time.monotonic()
        with small_disk(
            self._folder / f"{self.work.name}-disk{self._number}", int(self.reference.bytes * share)
        ) as disk:
            self._number += 1
            where = self._target() if disk is None else disk.folder / "out"
            limit = max(map(len, self.reference.files.values())) * share if disk is None else None
            code, text = self._run(where, most_bytes=limit)
            wrong = self._false_ends(where)
            if code not in (LACKS, DONE):
                wrong.append(f"exit code {code}: {text[-500:]}")
            if code == LACKS and not any(word in text for word in ROOM):
                wrong.append(f"does not speak of the disk: {text[-500:]}")
            if "Traceback" in text:
                wrong.append("a traceback")
            if disk is not None:
                disk.grow()
            return self._completed("full disk", f"{share:.0%} of its bytes", where, [code], wrong, begun)

    def rival(self) -> Outcome:
        """A second process on the same target, which begins at any moment of the first."""
        out, begun = self._target(), time.monotonic()
        after_s = self._draw.uniform(0, 0.7 * self.reference.seconds)
        first = self._start(out)
        time.sleep(after_s)
        second = self._start(out)
        texts = [process.communicate()[0] for process in (first, second)]
        codes = [first.returncode, second.returncode]
        wrong = []
        if DONE not in codes:
            wrong.append(f"neither is done: {texts[0][-300:]} / {texts[1][-300:]}")
        for code, text in zip(codes, texts, strict=True):
            if code not in (DONE, LACKS, WRONG) or (code == LACKS and "being made by process" not in text):
                wrong.append(f"exit code {code}: {text[-500:]}")
        return self._completed("rival", f"{after_s:.2f} s", out, codes, wrong, begun)

    def _completed(
        self, kind: str, at: str, out: Path, codes: Sequence[int], wrong: list[str], begun: float
    ) -> Outcome:
        """Runs the command again where it is not done, and compares."""
        codes = [*codes]
        killed_when_done = (out / MANIFEST).exists() and not self.work.alone
        if DONE not in codes and not killed_when_done:
            code, text = self._run(out)
            codes.append(code)
            if code != DONE:
                wrong.append(f"does not complete, exit code {code}: {text[-500:]}")
            wrong += [f"{path.name} is left" for path in leftovers(out)]
        wrong += differences(content(out), self.reference.files)
        shutil.rmtree(out, ignore_errors=True)
        seconds = round(time.monotonic() - begun, 2)
        return Outcome(work=self.work.name, kind=kind, at=at, codes=tuple(codes), seconds=seconds, wrong=tuple(wrong))

    def _false_ends(self, out: Path) -> list[str]:
        """What looks finished after a disturbance, and is not."""
        ends = [path.relative_to(out).as_posix() for path in out.glob(self.work.finished)] if out.is_dir() else []
        if not ends:
            return []
        found, right = content(out), self.reference.files
        if self.work.alone:
            homes = {name: f"{name.rpartition('/')[0]}/{PLAN}" for name in ends if name.endswith(RECORD)}
            names = [*ends, *homes.values()]
            return [f"{name} looks finished" for name in names if found.get(name) != right.get(name)]
        return [f"looks finished: {line}" for line in differences(found, right)]

    def _target(self) -> Path:
        self._number += 1
        return self._folder / f"{self.work.name}-{self._number}"

    def _start(self, out: Path, *, most_bytes: float | None = None) -> "subprocess.Popen[str]":
        def limited() -> None:
            if most_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(most_bytes), int(most_bytes)))

        return subprocess.Popen(
            self.work.command(out, self._bundle),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=limited,
        )

    def _run(self, out: Path, *, most_bytes: float | None = None) -> tuple[int, str]:
        process = self._start(out, most_bytes=most_bytes)
        text, _ = process.communicate()
        return process.returncode, text


@dataclass(frozen=True, slots=True)
class Disk:
    """A small file system."""

    folder: Path

    def grow(self) -> None:
        """Gives it room."""
        subprocess.run(["mount", "-o", "remount,size=2g", str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Disk | None]:
    """A tmpfs of so many bytes; None where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(folder) if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def content(root: Path) -> dict[str, bytes]:
    """Every file by its path, JSON without times."""
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        name: timeless(path.read_bytes()) if path.name in (MANIFEST, RECORD) else path.read_bytes()
        for name, path in paths.items()
        if path.name not in FREE and not name.startswith(DERIVED)
    }


def timeless(data: bytes) -> bytes:
    """A JSON document without its times of day and durations."""
    try:
        return json.dumps(_without_times(json.loads(data)), sort_keys=True).encode()
    except ValueError:
        return data


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


def differences(found: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
    """In words, file by file."""
    lines = [f"{name} is missing" for name in right.keys() - found.keys()]
    lines += [f"{name} is too many" for name in found.keys() - right.keys()]
    lines += [f"{name} differs" for name in found.keys() & right.keys() if found[name] != right[name]]
    return sorted(lines)


def leftovers(out: Path) -> list[Path]:
    """What of a run that is done still lies beside its target."""
    return [path for path in out.parent.iterdir() if path != out and out.name in path.name.split(".")]


def turns(trials: Sequence[Trial], kills: int) -> Iterator[Callable[[], Outcome]]:
    """The disturbances of all commands by turns: a kill, a full disk, a rival, and the other kills."""
    for kind in ("kill", "full_disk", "rival", *["kill"] * (kills - 1)):
        for trial in trials:
            yield getattr(trial, kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="of each command; default: 3")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="begin nothing after so long, undisturbed runs apart"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="A,B", help="of these commands")
    parser.add_argument("--results", type=Path, default=FOLDER)
    options = parser.parse_args()

    known = [work.name for work in WORKS]
    wanted = known if options.only is None else options.only
    if unknown := set(wanted) - set(known):
        parser.error(f"no command {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    where = machine_facts((*PACKAGES, "tensorrt-rtx-cu13", "onnx", "filelock")) | {"commit": commit()}
    draw = random.Random(options.seed)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="latentrt-kills-") as scratch:
        folder = Path(scratch)
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
        bundle = folder / "export-undisturbed"
        trials = [Trial(work, folder, bundle, draw) for work in WORKS if work.name in {"export", *wanted}]
        begun = time.monotonic()
        for disturb in turns([trial for trial in trials if trial.work.name in wanted], options.kills):
            if options.minutes is not None and time.monotonic() - begun > 60 * options.minutes:
                break
            outcomes.append(disturb())
            last = outcomes[-1]
            print(
                f"{last.work:10} {last.kind:10} {last.at:18} {last.codes} {'; '.join(last.wrong) or 'ok'}", flush=True
            )
    document = {"provenance": where, "seed": options.seed, "outcomes": [asdict(outcome) for outcome in outcomes]}
    path = write_result(document, what="kills", folder=options.results)
    failed = sum(bool(outcome.wrong) for outcome in outcomes)
    print(f"{len(outcomes)} disturbances, {failed} with something wrong; {path}")
    sys.exit(1 if failed else 0)


def commit() -> str | None:
    """Of the checkout, or None outside of one."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    main()
