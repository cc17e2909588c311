"""Ray: whether it is here, and a cluster to work on. Whoever works on Ray comes through here.

A process that imports Ray afterwards, and the processes that it starts on this machine, report nothing about their use
and collect no metrics (docs/privacy.md).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from latentrt.environment.privacy import RAY as SILENT
from latentrt.environment.privacy import decline_reports
from latentrt.environment.requirement import Requirement, check_requirements
from latentrt.errors import EnvironmentLacks, RequestError

RAY = Requirement(extra="ray", packages=("ray",))
"""What every use of Ray needs."""

_PROBE_S, _ANSWER_S = 5.0, 120.0
_ADDRESSES = "HOST:PORT, ray://HOST:PORT, auto for a cluster that runs on this machine, or local for a new one"


def import_ray() -> Any:
    """The package `ray`.

    Raises:
        EnvironmentLacks: it is not installed, or too old.
    """
    check_requirements("Ray", (RAY,))
    decline_reports(SILENT)
    import ray

    return ray


@contextmanager
def connected(address: str | None = None, *, cpus: int | None = None) -> Iterator[Any]:
    """`ray`, connected to a cluster that has this version of LatentRT on each of its nodes.

    A program that is connected already stays so, and keeps its connection afterwards; otherwise the connection ends
    with the block, and so does a cluster that was started for it.

    Args:
        address: `HOST:PORT` of a cluster's GCS, `ray://HOST:PORT` of its client server, `auto` (a cluster that runs on
            this machine), or `local` (a new one, in processes of this machine). None: what `RAY_ADDRESS` says,
            else `auto` if there is one, else `local`.
        cpus: of a new cluster; None: the cores of this machine.

    Raises:
        RequestError: no address.
        EnvironmentLacks: no Ray, nobody at that address, or other versions than here.
    """
    ray = import_ray()
    own = not ray.is_initialized()
    if own:
        _connect(ray, address, cpus)
    try:
        check_nodes(ray)
        yield ray
    finally:
        if own:
            ray.shutdown()


def versions() -> dict[str, str]:
    """What has to be equal in all processes that work together."""
    return _asker()()


def check_nodes(ray: Any) -> None:
    """Asks each node of the connected cluster for its versions, in a process that starts there.

    Raises:
        EnvironmentLacks: a node lacks LatentRT, or has another version of something than this process.
    """
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = versions()
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_asker()).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            asked[node["NodeManagerAddress"], node["NodeID"]] = task.remote()
    for (name, _), answer in asked.items():
        try:
            check_same(ray.get(answer, timeout=_ANSWER_S), where=f"the node {name}", own=own)
        except GetTimeoutError as error:
            raise EnvironmentLacks(
                f"the node {name} did not answer in {_ANSWER_S:.0f} s", expected="a node that starts processes"
            ) from error
        except RayError as error:
            raise EnvironmentLacks(
                f"the node {name} could not say its versions ({type(error).__name__})",
                expected="a node with what is installed here",
            ) from error


def check_same(found: Mapping[str, str], *, where: str, own: Mapping[str, str] | None = None) -> None:
    """Compares the versions of another process with those of this one.

    Raises:
        EnvironmentLacks: they differ.
    """
    own = versions() if own is None else own
    other = [name for name, version in own.items() if found.get(name) != version]
    if other:
        there = ", ".join(f"{name} {found.get(name, 'unknown')}" for name in other)
        here = ", ".join(f"{name} {own[name]}" for name in other)
        raise EnvironmentLacks(
            f"{where} has {there}", expected=f"{here}, as here", hint="install the same versions on every node"
        )


def _asker() -> Callable[[], dict[str, str]]:
    """A function that needs nothing of ours where it runs: as it is made here, it goes there by value."""

    def ask() -> dict[str, str]:
        import importlib.metadata
        import sys

        found = {"Python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
        for name in ("latentrt", "ray"):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "not installed"
        return found

    return ask


def _connect(ray: Any, address: str | None, cpus: int | None) -> None:
    host, port = _place(address)
    if host is not None:
        try:
            socket.create_connection((host, port), _PROBE_S).close()
        except (OSError, UnicodeError) as error:
            raise EnvironmentLacks(
                f"nobody answers at {address} ({error})", expected="a Ray cluster", hint="`ray status` says more there"
            ) from error
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None or "://" not in address:  # the client's server takes these for its own
        options["include_dashboard"] = False
    if address == "local" and cpus is not None:
        options["num_cpus"] = cpus
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, TimeoutError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        if "ersion mismatch" in text:
            raise EnvironmentLacks(
                f"the cluster and this process have other versions ({text})", expected="the same Ray and Python"
            ) from error
        place = "a cluster of this machine" if address is None else address
        raise EnvironmentLacks(f"no connection to {place} ({text})", expected=_ADDRESSES) from error


def _place(address: str | None) -> tuple[str | None, int]:
    """Host and port, where an address names them.

    Raises:
        RequestError: it is no address.
    """
    if address is None or address in ("auto", "local"):
        return None, 0
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RequestError(f"address {address!r}", expected=_ADDRESSES)
    return host.strip("[]"), int(port)
