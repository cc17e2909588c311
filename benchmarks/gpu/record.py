"""The JSON document of a check: complete on disk after every piece of work, so that a limit of time loses nothing."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.worker import ROOT
from latentrt.errors import EnvironmentLacks
from latentrt.files.atomic import write_whole
from latentrt.problems import Problem

PACKED = "LATENTRT_COMMIT"


@dataclass(frozen=True, slots=True)
class Deadline:
    """When to stop beginning new work. `at` is a reading of `time.monotonic`; None never comes."""

    at: float | None = None

    @classmethod
    def after(cls, minutes: float | None) -> "Deadline":
        return cls(None if minutes is None else time.monotonic() + 60 * minutes)

    def left_s(self, most: float) -> float:
        """Seconds left, at most `most`.

        Raises:
            EnvironmentLacks: none.
        """
        left = most if self.at is None else min(most, self.at - time.monotonic())
        if left <= 0:
            raise EnvironmentLacks("the time for this check is spent", hint="give it more with --budget-minutes")
        return left


class Record:
    """The document and its file.

    Args:
        path: written after each change of note, beside and renamed.
        head: what stands before the sections: provenance, command, options.
        say: called with a line on what goes on.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], *, say: Callable[[str], None]) -> None:
        self.path = path
        self.document: dict[str, Any] = {**head, "status": "running", "sections": {}}
        self.say = say

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, (json.dumps(self.document, indent=1, ensure_ascii=False) + "\n").encode())

    def finish(self) -> None:
        self.document["status"] = "done"
        self.save()

    @contextmanager
    def section(self, name: str) -> Iterator[dict[str, Any]]:
        """A named part of the document, filled in within; what fails in it is written down and ends only it."""
        row = self.document["sections"][name] = {"status": "running"}
        with self.guarded(row, name):
            yield row

    @contextmanager
    def guarded(self, row: dict[str, Any], name: str) -> Iterator[None]:
        """Times a piece of work and writes into `row` how it ended; an error ends only this piece."""
        self.say(name)
        self.save()
        began = time.monotonic()
        try:
            yield
            row["status"] = "done"
        except Exception as error:
            problem = Problem.of(error)
            row |= {"status": "failed"} | {key: problem.document()[key] for key in ("error",)}
            self.say(f"{name}: {problem.line}")
        except KeyboardInterrupt:
            row["status"] = "interrupted"
            raise
        finally:
            row["seconds"] = round(time.monotonic() - began, 1)
            self.save()


def git_state() -> dict[str, Any] | None:
    """Commit of this checkout and whether files differ from it; outside one, of the checkout that was packed, which its
    `env.sh` says; None: neither."""
    try:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        packed: dict[str, Any] | None = json.loads(os.environ.get(PACKED, "null"))
        return packed
    return {"commit": commit.strip(), "changed_files": len(changes.splitlines())}


def result_path(folder: Path, *, date: str, card: str, sections: Sequence[str], whole: bool) -> Path:
    """`<date>-gpu-<card>.json`; a check of some sections only has them in its name."""
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower().removeprefix("nvidia ")).strip("-")
    suffix = "" if whole else f"-{'-'.join(sections)}"
    return folder / f"{date[:10]}-gpu-{slug}{suffix}.json"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
