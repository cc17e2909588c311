"""What an actor takes of a cluster, and how many there can be."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentrt.backends import BACKENDS
from latentrt.errors import EnvironmentLacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asks for; None leaves it to the cluster.

    Args:
        actors: how many, at most.
        cpus, gpus: of each.
    """

    actors: int | None = None
    cpus: float | None = None
    gpus: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Actors:
    """Processes with a bundle each.

    Args:
        count: how many.
        cpus, gpus: that Ray sets aside for each.
        nodes: ids of the nodes that have room for one.
    """

    count: int
    cpus: float
    gpus: float
    nodes: tuple[str, ...]

    @property
    def threads(self) -> int:
        """Within an engine call: what is set aside, one at least."""
        return max(1, int(self.cpus))

    @property
    def options(self) -> dict[str, float]:
        """What a task or an actor of this kind asks Ray for."""
        return {"num_cpus": self.cpus, **({"num_gpus": self.gpus} if self.gpus else {})}


def actors_for(
    nodes: Sequence[Mapping[str, Any]], wish: Wish, *, backend: str, device: str | None, threads: int | None
) -> Actors:
    """On a GPU an actor has one and a core; on CPUs it has a node's cores, as a run of one process would, or as many as
    `threads` says.

    Args:
        nodes: as `ray.nodes()` lists them.
        backend, device, threads: as `latentrt.load` takes them.

    Raises:
        EnvironmentLacks: no node has so much.
    """
    alive = {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}
    gpus = wish.gpus if wish.gpus is not None else float(_on_gpu(backend, device))
    with_cpus = [each["CPU"] for each in alive.values() if each.get("CPU", 0) >= 1]
    usual = 1.0 if gpus else float(threads) if threads is not None else min(with_cpus, default=1.0)
    cpus = wish.cpus if wish.cpus is not None else usual
    room = {node: _fits(has, cpus, gpus) for node, has in alive.items()}
    fitting = tuple(node for node, count in room.items() if count)
    if not fitting:
        most = {kind: max((each.get(kind, 0) for each in alive.values()), default=0) for kind in ("CPU", "GPU")}
        raise EnvironmentLacks(
            f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs (the largest: {most['CPU']:g} and"
            f" {most['GPU']:g})",
            expected="a node with what an actor takes",
            hint="ask for less with --ray-cpus and --ray-gpus, or add nodes",
        )
    most_actors = sum(room.values())
    return Actors(
        count=most_actors if wish.actors is None else min(wish.actors, most_actors),
        cpus=cpus,
        gpus=gpus,
        nodes=fitting,
    )


def _on_gpu(backend: str, device: str | None) -> bool:
    """Whether engines run on a GPU, as far as options say: `auto` may turn out to be either, and is taken for a CPU."""
    return device == "cuda" or any(row.name == backend and row.device(device) == "cuda" for row in BACKENDS)


def _fits(has: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Actors that a node has room for."""
    kinds = [has.get(kind, 0) / taken for kind, taken in (("CPU", cpus), ("GPU", gpus)) if taken]
    return math.floor(min(kinds, default=1))
