"""Images on their way, one by one, and how several make one engine call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from latentrt.arrays import FloatArray, Shape
from latentrt.images.control import Pass
from latentrt.pipeline import Beginning
from latentrt.text.conditioning import BRANCHED

_GATES = "block_gate"  # [K, n], the one input that images of a call share


@dataclass(frozen=True, slots=True)
class Key:
    """What images that share an engine call agree on, besides the LoRAs in the weights.

    Args:
        shape: (C, h, w) of the latent.
        context: tokens of the context.
        gates: float32 [K, n], which blocks take part in which branch, as bytes.
        branches: of guidance.
        controls: graphs of the ControlNets in this call; None: the plain step.
    """

    shape: Shape
    context: int
    branches: int
    gates: bytes = b""
    controls: tuple[str, ...] | None = None


@dataclass(slots=True, eq=False)
class Row:
    """One image on its way through its own calls.

    Args:
        feed: inputs that stand for all calls, without the axis of the batch.
        rows: those that change, [calls, ...].
        passes: of ControlNets: image [H, W, 3], scale [calls, K, R].
        controlled: it needs the step with residuals.
        state: [4, C, h, w], after the calls so far.
        call: the next one.
    """

    feed: dict[str, FloatArray]
    rows: dict[str, FloatArray]
    passes: list[Pass]
    controlled: bool
    state: FloatArray
    call: int = 0
    denoised: FloatArray | None = field(default=None)

    @property
    def calls(self) -> int:
        """Of the whole run."""
        return len(self.rows["timestep"])

    @property
    def over(self) -> bool:
        return self.call >= self.calls

    def branches(self) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Guidance branches that the next call needs; the last one always."""
        used = self._weights() != 0
        used[-1] = True
        return np.flatnonzero(used)

    def key(self) -> Key:
        """That of the next call."""
        branches = self.branches()
        gates = self.feed[_GATES][branches].tobytes() if _GATES in self.feed else b""
        acting = tuple(each.component for each in self.passes if each.scale[self.call].any())
        return Key(
            shape=self.state.shape[1:],
            context=self.feed["context"].shape[1],
            branches=len(branches),
            gates=gates,
            controls=acting if self.controlled else None,
        )

    def inputs(self) -> dict[str, FloatArray]:
        """Those of the next call, without the axis of the batch."""
        on = self.branches()
        now = {name: values[self.call] for name, values in self.rows.items()}
        fixed = {name: values[on] if name in BRANCHED else values for name, values in self.feed.items()}
        return {**fixed, **now, "guidance": self._weights()[on], "state": self.state}

    def take(self, state: FloatArray, denoised: FloatArray) -> None:
        """What a call has made of it."""
        self.state, self.denoised, self.call = state, denoised, self.call + 1

    def _weights(self) -> FloatArray:
        return self.rows["guidance"][self.call] if "guidance" in self.rows else self.feed["guidance"]


def rows_of(beginning: Beginning, calls: Sequence[int]) -> list[Row]:
    """The images of a plan, apart.

    Args:
        beginning: of all.
        calls: how many each makes.
    """
    found = []
    for image, count in enumerate(calls):
        feed = {name: _of_image(name, values, image) for name, values in beginning.feed.items()}
        rows = {
            name: np.moveaxis(values, 2, 0)[image][:count] if name == "guidance" else values[:count, image]
            for name, values in beginning.rows.items()
        }
        passes = [
            Pass(
                each.component,
                each.image[image],
                each.scale[:count, :, image],
                None if each.image_latent is None else each.image_latent[image],
            )
            for each in beginning.passes
        ]
        state = feed.pop("state")
        found.append(Row(feed, rows, passes, controlled=bool(beginning.passes), state=state))
    return found


def call_inputs(rows: Sequence[Row], size: int) -> tuple[dict[str, FloatArray], list[Pass] | None]:
    """The inputs of one engine call, and the ControlNets in it.

    Args:
        rows: images of one key.
        size: of the batch; the last image stands in for those that are missing.
    """
    padded = [*rows, *[rows[-1]] * (size - len(rows))]
    each = [row.inputs() for row in padded]
    feed = {
        name: first if name == _GATES else np.stack([own[name] for own in each], axis=_axis(name))
        for name, first in each[0].items()
    }
    if not rows[0].controlled:
        return feed, None
    return feed, [_joined(passes) for passes in zip(*(_acting(row) for row in padded), strict=True)]


def _acting(row: Row) -> list[Pass]:
    """Its passes in the next call, with the branches of that: image [H, W, 3], scale [K, R]."""
    on = row.branches()
    return [
        Pass(each.component, each.image, each.scale[row.call][on], each.image_latent)
        for each in row.passes
        if each.scale[row.call].any()
    ]


def _joined(passes: Sequence[Pass]) -> Pass:
    """One ControlNet's part in a call of several images: scale [1, K, B, R]."""
    latents = [each.image_latent for each in passes if each.image_latent is not None]
    return Pass(
        passes[0].component,
        np.stack([each.image for each in passes]),
        np.stack([each.scale for each in passes], axis=1)[None],
        np.stack(latents) if latents else None,
    )


def _axis(name: str) -> int:
    """The axis of the batch of an input of the step."""
    return 1 if name in BRANCHED or name == "guidance" else 0


def _of_image(name: str, values: FloatArray, image: int) -> FloatArray:
    if name == _GATES:
        return values
    return np.array(values[:, image] if _axis(name) else values[image])
