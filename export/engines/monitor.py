"""What TensorRT says while it builds: its log, kept for errors and figures, and how far it is."""

import logging
import re
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

log = logging.getLogger(__name__)

# What goes wrong is raised, with the words of the log: here it would be said twice.
_LEVELS = {"INTERNAL_ERROR": logging.INFO, "ERROR": logging.INFO, "WARNING": logging.INFO}
_NO_DRIVER = re.compile(r"catchCudaError|cudaError 35|Cuda Runtime \(")
_SOURCE = re.compile(r" In (?:function )?\w+ at \S+?\)?$")
_TROUBLE = re.compile(r"^.*?Error Code \d+: (?:API Usage Error \(|Myelin \()?")
_KEPT = re.compile(r"Total \w+ Memory: \d+ bytes|\[\w+\] inputs: ")


class BuildLog(Protocol):
    """TensorRT's log of one build at a time."""

    def begin(self) -> None:
        """Forgets what was said before."""

    def trouble(self) -> str:
        """The last error, in one line; empty if there was none."""

    def memory(self, kind: str) -> int | None:
        """Bytes of `Activation` or `Weights` memory that the builder reported; None if it said nothing."""

    def inputs_of(self, node: str) -> str | None:
        """Shapes and types of what went into a node, as the parser read them."""


def build_log(trt: ModuleType | Any) -> BuildLog:
    """A logger for a variant's module, which passes everything on to `logging`."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.begin()

        def log(self, severity: Any, message: str) -> None:  # from TensorRT's threads
            log.log(_LEVELS.get(severity.name, logging.DEBUG), "%s", message)
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self._errors.append(message)
            elif _KEPT.search(message):
                self._kept.append(message)

        def begin(self) -> None:
            self._errors: list[str] = []
            self._kept: list[str] = []

        def trouble(self) -> str:
            texts = [plain(message) for message in self._errors]
            return next((text for text in reversed(texts) if text), "")

        def memory(self, kind: str) -> int | None:
            marker = f"Total {kind} Memory: "
            found = [int(line.rpartition(marker)[2].split()[0]) for line in self._kept if marker in line]
            return max(found, default=None)  # an engine for several architectures says it for each

        def inputs_of(self, node: str) -> str | None:
            lines = [line for line in self._kept if line.startswith(f"{node} [")]
            return lines[-1].partition("inputs: ")[2].rstrip(", ") if lines else None

    return Log()


def plain(message: str) -> str:
    """An error of TensorRT without the places in its source, and without the missing driver that every error
    brings up where there is no GPU."""
    lines = [line for line in message.splitlines() if line.strip() and not _NO_DRIVER.search(line)]
    text = _SOURCE.sub("", " ".join(lines).strip())
    text = _TROUBLE.sub("", text)
    return text.removesuffix(")").strip() if text.count(")") > text.count("(") else text


def progress_monitor(trt: ModuleType | Any, *, report: Callable[[str, int, int], None]) -> Any:
    """A monitor that tells `report` the phase, the step done and the number of steps, from a thread of TensorRT.

    Its `cancel` is an event: once set, TensorRT gives up at the next step of its compiler.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancel = threading.Event()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            report(phase_name, step + 1, self._steps.get(phase_name, step + 1))
            return not self.cancel.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
