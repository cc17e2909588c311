"""Which transfer brings what, and what runs after each: the calls of half an hour on a GPU, written beforehand."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.gpu.pack.parts import Part, Piece
from latentrt.errors import RequestError

BRINGING_S = 90  # of a call that only looks at what was brought


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things are, there; the checkout is where commands run.

    Args:
        pack: the packed folder, relative to the checkout.
        site: where parts are installed to.
        work: of the check.
        results: as a shell takes it, so that it may be a variable.
    """

    pack: str
    site: str
    work: str
    results: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One command there.

    Args:
        name: what it finds out.
        minutes: its limit.
        needs: parts that it installs first.
        lines: of shell, run in the checkout.
    """

    name: str
    minutes: float
    needs: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """What goes along with a call; with None a call that has nothing else to do."""

    call: Call | None
    pieces: list[tuple[str, Piece]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for _, piece in self.pieces)

    @property
    def limit_s(self) -> int:
        return BRINGING_S if self.call is None else math.ceil(60 * self.call.minutes)


def distribute(parts: Mapping[str, Part], calls: Sequence[Call], *, room: int) -> list[Transfer]:
    """Pieces to transfers of `room` bytes each, so that a call finds all that it needs: what does not fit beside it
    comes with calls before, and with calls of their own before the first one that has too little.

    Raises:
        RequestError: a piece is larger than the room.
    """
    waiting = [(name, piece) for call in calls for name in call.needs for piece in parts[name].pieces]
    waiting = list(dict.fromkeys(waiting))
    if largest := max((piece.bytes for _, piece in waiting if piece.bytes > room), default=0):
        raise RequestError(
            f"pieces have {largest / 1e6:.1f} MB, and a transfer has room for {room / 1e6:.1f}",
            expected="pieces that fit",
            hint="smaller ones (--piece-mb), or a larger transfer (--transfer-mb)",
        )
    transfers: list[Transfer] = []
    for call in calls:
        while sum(piece.bytes for name, piece in waiting if name in call.needs) > room:
            transfers.append(_filled(None, waiting, room))
        transfers.append(_filled(call, waiting, room))
    return transfers


def calls(places: Places, *, architecture: str, size: str, rtx: bool) -> list[Call]:
    """Three of at most nine minutes: kernels and parity, latency, TensorRT for RTX."""
    w, site = shlex.quote(places.work), shlex.quote(places.site)
    check = f"python3 -m benchmarks.gpu --work {w} --results {places.results} --architecture {architecture}"
    unpack, whole = "python3 -m benchmarks.gpu.carry unpack", f"{w}/checkpoints/{architecture}"
    shapes = [
        f"[ -d {w}/bundles/{name} ] || {unpack} {site}/bundles/{name} --checkpoint examples/shapes/checkpoint"
        f" -o {w}/bundles/{name}"
        for name in ("shapes-checkpoint-fp32", "shapes-checkpoint-fp16")
    ]
    full = f"{architecture}-fp16"
    background = (
        f"[ -f {whole}/model_index.json ] || python3 -m latentrt.export.synthetic.checkpoints {architecture}"
        f" -o {whole}; [ -d {w}/bundles/{full} ] || {unpack} {site}/bundles/{full} --checkpoint {whole}"
        f" -o {w}/bundles/{full}"
    )
    found = [
        Call(
            name="kernels one by one, then parity of the example on ONNX Runtime",
            minutes=8,
            needs=("base", "onnxruntime-gpu", "bundles"),
            lines=(
                f"mkdir -p {w}/bundles {w}/checkpoints {w}/logs",
                f"setsid nohup sh -c {shlex.quote(background)} > {w}/logs/full-size.log 2>&1 < /dev/null &",
                *shapes,
                f"{check} --only toys,parity --backend onnxruntime --samplers euler,dpmpp-2m --budget-minutes 6.5",
            ),
        ),
        Call(
            name="latency of the full size: graphs for CUDA, plain graphs, torch",
            minutes=9,
            needs=("base", "onnxruntime-gpu", "bundles"),
            lines=(
                f"for i in $(seq 120); do [ -d {w}/bundles/{full} ] && break; sleep 1; done",
                f"sh -c {shlex.quote(background)}",
                f"{check} --only latency,full-size --backend onnxruntime --precision fp16 --size {size}"
                " --budget-minutes 7.5",
            ),
        ),
    ]
    if rtx:
        found.append(
            Call(
                name="TensorRT for RTX: whether it runs, then its parity and latency",
                minutes=8,
                needs=("base", "onnxruntime-gpu", "bundles", "tensorrt-rtx"),
                lines=(
                    f"{check} --only rtx-probe,parity,latency --backend tensorrt-rtx --precision fp16 --batch 1"
                    f" --samplers euler --size {size} --budget-minutes 6.5",
                ),
            )
        )
    return found


def script(number: int, transfer: Transfer, places: Places) -> str:
    """What a transfer's call runs; its argument is the folder of results."""
    folder = f"{places.pack}/{number}"
    head = ["#!/bin/sh", "set -eu"]
    if transfer.call is None:
        return "\n".join([*head, f"sh {folder}/setup.sh {shlex.quote(places.site)}", ""])
    call = transfer.call
    install = " ".join(["sh", f"{folder}/setup.sh", shlex.quote(places.site), *call.needs])
    return "\n".join(
        [
            *head,
            f"# {call.name}",
            "export PYTHONUNBUFFERED=1",
            f"mkdir -p {places.results}",
            install,
            f". {shlex.quote(places.site)}/env.sh",
            f"trap 'tar -czf {places.results}/logs-{number}.tar.gz -C {shlex.quote(places.work)} logs' EXIT",
            *call.lines,
            "",
        ]
    )


def describe(transfers: Sequence[Transfer], places: Places, *, tree: int, limit: int) -> str:
    """The plan for people."""
    lines = [
        f"{len(transfers)} calls on one machine, one after the other before it is given back, each in the checkout.",
        f"A transfer takes {limit / 1e6:.1f} MB, {tree / 1e6:.1f} MB of them the checkout. A call that says that a"
        " piece is missing or damaged wants the named folder again.",
        "",
    ]
    for number, transfer in enumerate(transfers, start=1):
        folder = f"{places.pack}/{number}"
        name = "brings pieces, and looks at them" if transfer.call is None else transfer.call.name
        lines += [
            f"{number}. {name}",
            f"   bring:  {folder} ({transfer.bytes / 1e6:.1f} MB: {', '.join(_named(transfer))})",
            f"   run:    sh {folder}/run.sh",
            f"   limit:  {transfer.limit_s} s",
        ]
    return "\n".join(lines) + "\n"


def _named(transfer: Transfer) -> list[str]:
    counts: dict[str, int] = {}
    for name, _ in transfer.pieces:
        counts[name] = counts.get(name, 0) + 1
    return [f"{name} in {count} piece{'s' if count > 1 else ''}" for name, count in counts.items()] or ["nothing new"]


def _filled(call: Call | None, waiting: list[tuple[str, Piece]], room: int) -> Transfer:
    """A transfer of what waits, in order, as much as fits; it waits no more."""
    transfer = Transfer(call)
    while waiting and transfer.bytes + waiting[0][1].bytes <= room:
        transfer.pieces.append(waiting.pop(0))
    return transfer
