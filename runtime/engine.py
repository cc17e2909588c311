"""The seam between the pipeline and whatever executes a graph: an `Engine` and what goes in and out of it.

`latentrt.backends` opens engines, `latentrt.testing` has one that needs no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Protocol

from latentrt.arrays import Array, Shape, Value
from latentrt.graph import TensorSpec


@dataclass(frozen=True, slots=True)
class Preparation:
    """A wait that a user should hear about: a graph being loaded or compiled.

    `seconds` is None when it begins and the time it took when it is done.
    """

    component: str
    _: KW_ONLY
    backend: str
    action: str
    seconds: float | None = None

    def __str__(self) -> str:
        text = f"{self.action} ({self.backend})"
        return text if self.seconds is None else f"{text}: done in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What a user may choose about execution; None is the backend's default.

    Args:
        device: `cpu` or `cuda`.
        compute: arithmetic of a float32 graph, `fp32` or `bf16`.
        threads: threads within one run.
        cache_dir: folder for compiled graphs; None compiles anew in every process.
        notify: called at the beginning and at the end of every load and compilation.
    """

    device: str | None = None
    compute: str | None = None
    threads: int | None = None
    cache_dir: Path | None = None
    notify: Callable[[Preparation], None] | None = None


class Engine(Protocol):
    """One graph, ready to run. An engine serves one thread at a time."""

    @property
    def backend(self) -> str:
        """Name of the backend behind it."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...

    def prepare(
        self,
        dims: Mapping[str, Shape],
        *,
        rows: Collection[str] = (),
        carry: Mapping[str, str] | None = None,
    ) -> None:
        """Loads, compiles and allocates for these sizes, so that the next run of them does not wait.

        Args:
            dims: the shape of every input.
            rows, carry: names of the inputs that change within the sweeps to come, and what they feed back; without
                them it prepares for runs.

        Raises:
            RequestError: a size that the graph does not allow, or a closed engine.
            BundleError: a graph that cannot be read.
            BackendError: the backend failed on a graph that can be read.
        """

    def run(
        self,
        feed: Mapping[str, Value],
        *,
        into: Mapping[str, Array] | None = None,
        keep: Collection[str] = (),
    ) -> Mapping[str, Value]:
        """Executes the graph once and waits for it.

        Args:
            feed: every input. The engine may read arrays in place during the call; it never writes them.
            into: host arrays that receive outputs: C-contiguous, of the output's dtype and shape, sharing
                no memory with the feed. They are returned under their names.
            keep: outputs that stay on the device, to be fed to the next run. Such an output is valid until the
                end of the next run: after that the backend may reuse its memory. Copy it
                (`to_host(value).copy()`) to hold it longer.

        Returns:
            Every output: a numpy array of its own, or what `keep` and `into` say.

        Raises:
            RequestError: names, dtypes or shapes that the graph does not take, or a closed engine.
            BundleError: a graph that cannot be read.
            BackendError: the backend failed.
        """

    def sweep(
        self, feed: Mapping[str, Value], *, rows: Mapping[str, Array], carry: Mapping[str, str]
    ) -> Generator[Mapping[str, Value], None, None]:
        """Runs the graph once for each row, feeding outputs back. Leaving the loop early is fine.

        Args:
            feed: the inputs that stand for all calls, and the first value of each carried one. None of them may
                change before the loop ends.
            rows: the inputs that change, each [calls, ...]: row i goes to call i.
            carry: input -> the output that becomes it in the next call.

        Yields:
            The outputs after each launch. On a device they stay there and may still be being computed: reading one
            waits. They are valid until the next call is asked for, the last ones until the engine is used again.

        Raises:
            As `run`; what is wrong with the arguments, at once.
        """

    def wait(self) -> None:
        """Returns when everything that has been launched is done.

        Raises:
            BackendError: some of it failed.
        """

    def replace(self, other: Engine) -> None:
        """Closes `other`, an engine of the same component, and takes from it what saves loading that again."""

    def unload(self) -> None:
        """Frees what the graph occupies, kept outputs included; the next run or `prepare` loads it again."""

    def close(self) -> None:
        """Unloads for good. Closing twice is fine."""
