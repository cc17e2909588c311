"""The seam between the pipeline and whatever executes a graph: an `Engine`, and the `EngineSet` that owns several.

`latentrt.backends` opens engines, `latentrt.testing` has one that needs no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Protocol

from latentrt.arrays import Array, Shape, Value
from latentrt.concurrency.residency import Residency
from latentrt.errors import RequestError
from latentrt.graph import GraphFile, TensorSpec


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
        threads: threads within one run.
        cache_dir: folder for compiled graphs; None compiles anew in every process.
        notify: called at the beginning and at the end of every load and compilation.
        profile: whether to note what each node takes, which makes runs slower.
        residency: which engines are loaded at a time; None: each for as long as it is open.
    """

    device: str | None = None
    compute: str | None = None
    threads: int | None = None
    cache_dir: Path | None = None
    notify: Callable[[Preparation], None] | None = None
    profile: bool = False
    residency: Residency | None = None


class Engine(Protocol):
    """One graph, ready to run. An engine serves one thread at a time."""

    @property
    def backend(self) -> str:
        """Name of the backend behind it."""

    @property
    def on_device(self) -> bool:
        """Whether it works in memory of its own device, where engines that were opened together share activations."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...

    def check(self, dims: Mapping[str, Shape]) -> None:
        """Raises what `prepare` would for the shape of every input, and loads nothing."""

    def prepare(
        self,
        dims: Mapping[str, Shape],
        *,
        rows: Collection[str] = (),
        carry: Mapping[str, str] | None = None,
        before: Sequence[Link] = (),
    ) -> None:
        """Loads, compiles and allocates for these sizes, so that the next run of them does not wait.

        Args:
            dims: the shape of every input.
            rows, carry: names of the inputs that change within the sweeps to come, and what they feed back; without
                them it prepares for runs.
            before: the links of those sweeps, which are prepared as well. Of their values only shapes count.

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
        self,
        feed: Mapping[str, Value],
        *,
        rows: Mapping[str, Array],
        carry: Mapping[str, str],
        before: Sequence[Link] = (),
    ) -> Generator[Mapping[str, Value], None, None]:
        """Runs the graph once for each row, feeding outputs back. Leaving the loop early is fine.

        Args:
            feed: the inputs that stand for all calls, and the first value of each carried one. None of them may
                change before the loop ends.
            rows: the inputs that change, each [calls, ...]: row i goes to call i.
            carry: input -> the output that becomes it in the next call.
            before: engines that run first in each call, in this order; what they give takes the place of what is fed.

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Link:
    """An engine that runs in each call of another one's sweep, before it. On a device everything stays there.

    It takes the inputs that it is not given here from the sweep, by name: what is fed, carried, the call's rows, and
    what the links before it give.

    Args:
        engine: of the sweeping engine's backend, opened together with it.
        feed: its own inputs that stand for all calls.
        rows: its own inputs that change, each [calls, ...].
        gives: output -> the input of those after it that it becomes.
    """

    engine: Engine
    feed: Mapping[str, Value]
    rows: Mapping[str, Array]
    gives: Mapping[str, str]


Opens = Callable[[Sequence[GraphFile]], Mapping[str, Engine]]
"""Opens engines of graphs, by component; together, so that on a device they share what they can."""


class EngineSet(Mapping[str, Engine]):
    """The engines of a pipeline by component, of which it holds those that are open. Whoever runs them borrows them.

    Args:
        engines: open already.
        graphs: of all components, whose engines can be opened when they are first needed.
        opens: opens them; None: no other engine than those given can be had.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        graphs: Mapping[str, GraphFile] | None = None,
        opens: Opens | None = None,
    ) -> None:
        self._open = dict(engines)
        self._graphs = {} if graphs is None else dict(graphs)
        self._opens = opens

    @classmethod
    def of(cls, engines: Mapping[str, Engine]) -> EngineSet:
        """The set itself, or one of these engines alone."""
        return engines if isinstance(engines, cls) else cls(engines)

    def __getitem__(self, component: str) -> Engine:
        return self._open[component]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def fixed(self) -> bool:
        """Whether it has these engines and can open no others."""
        return self._opens is None

    def need(self, *components: str) -> tuple[Engine, ...]:
        """Engines of these components; those that are not open yet are opened together.

        Raises:
            RequestError: it has none and can open none.
            EnvironmentLacks: prebuilt engines, and none of these components.
        """
        missing = [name for name in components if name not in self._open]
        for name in missing:
            if self._opens is None or name not in self._graphs:
                raise RequestError(f"no engine of {name} is open", expected="a pipeline of `latentrt.load`, still open")
        if missing and self._opens is not None:
            self._open |= self._opens([self._graphs[name] for name in missing])
        return tuple(self._open[name] for name in components)

    def under(self, engines: Mapping[str, Engine]) -> EngineSet:
        """These engines in the place of its own, in a set which has those that it lacks of this one."""

        def borrow(graphs: Sequence[GraphFile]) -> dict[str, Engine]:
            names = [graph.component for graph in graphs]
            return dict(zip(names, self.need(*names), strict=True))

        return EngineSet({**self._open, **engines}, graphs=self._graphs, opens=borrow)

    def replace(self, graphs: Mapping[str, GraphFile]) -> None:
        """Takes other graphs, such as those with a LoRA. Of the engines that are open, those whose graphs differ give
        way to new ones, which load when they are next needed.

        Raises:
            EnvironmentLacks: prebuilt engines, and none of these graphs. Everything stays as it was.
        """
        before = self._graphs
        changed = [
            graph for name, graph in graphs.items() if name in self._open and graph.digest != before[name].digest
        ]
        opened = self._opens(changed) if changed and self._opens is not None else {}
        replaced = {name: self._open[name] for name in opened}
        self._open |= opened
        self._graphs = dict(graphs)
        for name, engine in opened.items():
            engine.replace(replaced[name])

    def close(self) -> None:
        """Closes all that are open; no others are opened afterwards. The first error is raised when all have been."""
        self._opens = None
        errors = []
        for engine in self._open.values():
            try:
                engine.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
