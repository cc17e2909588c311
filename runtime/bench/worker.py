"""Work in a process of its own, so that memory is its own, and a crash, a leak or a hang ends nothing else.

The parent writes one JSON line a request, the first of them the job; the process answers each with one line,
`{"result": ...}` or what `Problem.document` gives. Whatever libraries print goes to stderr, or to a log.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, Self, TypeAlias

from latentrt.errors import BackendError, EnvironmentLacks
from latentrt.problems import Problem, error_from

LOG_LINES = 20  # of the log, told with the death of a process

Answer: TypeAlias = Callable[[Mapping[str, Any]], Any]
Opener: TypeAlias = Callable[[Mapping[str, Any]], AbstractContextManager[Answer]]


class Worker:
    """A process that holds what an opener opens, and answers requests.

    Args:
        opener: `module:function`; it takes `options` and gives a context manager, whose value takes a request
            and returns a JSON value.
        options: JSON values.
        name: in messages.
        log: receives what the process prints; None: stderr does.
        interpreter: the Python that it runs in, which has LatentRT installed as well; None is this one.
        paths: folders that it can import from, besides.
    """

    def __init__(
        self,
        opener: str,
        options: Mapping[str, Any],
        *,
        name: str = "its process",
        log: Path | None = None,
        interpreter: str | None = None,
        paths: Sequence[Path] = (),
    ) -> None:
        self._job = {"opener": opener, "options": options, "traceback": log is not None}
        self._name, self._log, self._interpreter, self._paths = name, log, interpreter, paths
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        if self._log is None:
            self._process = self._started(None)
        else:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._log_begins = log.tell()
                self._process = self._started(log)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def open(self, *, timeout_s: float | None = None) -> float:
        """Runs the opener, and returns the seconds that it took. Raises as `ask`."""
        return float(self.ask(self._job, timeout_s=timeout_s))

    def ask(self, request: Mapping[str, Any], *, timeout_s: float | None = None) -> Any:
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
            raise self._death(self._process.wait())
        answer = json.loads(line)
        if "error" in answer:
            raise error_from(answer)
        return answer["result"]

    def _started(self, stderr: Any) -> subprocess.Popen[str]:
        python = sys.executable if self._interpreter is None else self._interpreter
        paths = [*map(str, self._paths), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            return subprocess.Popen(
                [python, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
        except OSError as error:
            raise EnvironmentLacks(
                f"the interpreter {python} cannot be started ({error.strerror})",
                expected="the path of a Python with LatentRT installed",
            ) from error

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _death(self, status: int) -> BackendError:
        found = f"{self._name} ended with status {status}"
        if self._log is None:
            return BackendError(found, hint="if it was killed for memory, use a smaller size or batch")
        lines = self._log.read_bytes()[self._log_begins :].decode(errors="replace").splitlines()
        words = " | ".join(lines[-LOG_LINES:]) or "it printed nothing"
        return BackendError(f"{found}: {words}", hint=f"see {self._log}")


def _serve() -> None:
    """The other end. The answers' pipe is moved away from descriptor 1, which C++ libraries print to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Mapping[str, Any]) -> None:
        print(json.dumps(event), file=answers, flush=True)

    job = json.loads(sys.stdin.readline())
    try:
        began = time.perf_counter()
        opener: Opener = resolve_name(job["opener"])
        with opener(job["options"]) as answer:
            tell({"result": time.perf_counter() - began})
            for line in sys.stdin:
                tell({"result": answer(json.loads(line))})
    except Exception as error:
        if job["traceback"]:
            sys.excepthook(*sys.exc_info())
        tell(Problem.of(error).document())


if __name__ == "__main__":
    _serve()
