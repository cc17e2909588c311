"""Work in a process of its own, so that a crash, a leak or a hang of one backend ends nothing else.

The parent writes one JSON line a request, the first of them the job; the process answers each with one line,
`{"result": ...}` or what `Problem.document` gives. Whatever libraries print goes to the log.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, Self, TypeAlias

from latentrt.bench.runner import start_python
from latentrt.errors import BackendError
from latentrt.problems import Problem, error_from

ROOT = Path(__file__).resolve().parents[2]
LOG_LINES = 20  # of the log, told with the death of a process

Answer: TypeAlias = Callable[[Mapping[str, Any]], Any]
Opener: TypeAlias = Callable[[Mapping[str, Any]], AbstractContextManager[Answer]]


class Worker:
    """A process that holds what an opener opens, and answers requests.

    Args:
        opener: `module:function`; it takes `options` and gives a context manager, whose value takes a request
            and returns a JSON value.
        options: JSON values.
        log: receives what the process prints.
        interpreter: as `Candidate` has it.
    """

    def __init__(self, opener: str, options: Mapping[str, Any], *, log: Path, interpreter: str | None = None) -> None:
        self._opener, self._options, self._log, self._interpreter = opener, options, log, interpreter
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._log.open("ab") as log:
            self._log_begins = log.tell()
            self._process = start_python(
                self._interpreter,
                __name__,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def open(self, *, timeout_s: float) -> None:
        """Runs the opener. Raises as `ask`."""
        self.ask({"opener": self._opener, "options": self._options}, timeout_s=timeout_s)

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        """The answer to one request.

        Raises:
            LatentRTError: what was raised there.
            BackendError: no answer in time, or the process ended without one.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self._process.kill()
            raise BackendError(f"no answer within {timeout_s:.0f} s", hint=f"see {self._log}") from None
        except BrokenPipeError:
            line = None
        if line is None:
            status = self._process.wait()
            raise BackendError(f"its process ended with status {status}: {self._last_words()}", hint=f"see {self._log}")
        answer = json.loads(line)
        if "error" in answer:
            raise error_from(answer)
        return answer["result"]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        lines = self._log.read_bytes()[self._log_begins :].decode(errors="replace").splitlines()
        return " | ".join(lines[-LOG_LINES:]) or "it printed nothing"


def ask_apart(opener: str, options: Mapping[str, Any], *, log: Path, timeout_s: float) -> Any:
    """One question to a process of its own. Raises as `Worker.ask`."""
    with Worker(opener, options, log=log) as worker:
        worker.open(timeout_s=timeout_s)
        return worker.ask({}, timeout_s=timeout_s)


def _serve() -> None:
    """The other end. The answers' pipe is moved away from descriptor 1, which C++ libraries print to."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Mapping[str, Any]) -> None:
        print(json.dumps(event), file=answers, flush=True)

    try:
        job = json.loads(sys.stdin.readline())
        opener: Opener = resolve_name(job["opener"])
        with opener(job["options"]) as answer:
            tell({"result": None})
            for line in sys.stdin:
                tell({"result": answer(json.loads(line))})
    except Exception as error:
        sys.excepthook(*sys.exc_info())
        tell(Problem.of(error).document())


if __name__ == "__main__":
    _serve()
