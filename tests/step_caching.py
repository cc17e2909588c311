"""Step caching in torch, for tests: what shallow calls reuse is kept and put back by hooks on diffusers' own modules.

A shallow call here computes the whole network and leaves out what is reused: slow, and plainly right.
"""

import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def cached(network: nn.Module, *, layers: int, deep: Collection[int]) -> Iterator[None]:
    """A denoiser of diffusers whose calls are shallow but for those of these numbers.

    Args:
        network: a `UNet2DConditionModel` or an `SD3Transformer2DModel`.
        layers: those that shallow calls compute: the last of the last up block, or the first blocks.
    """
    calls = _Calls(frozenset(deep))
    hooks = [network.register_forward_pre_hook(calls.count)]
    if hasattr(network, "up_blocks"):
        resnets = network.up_blocks[-1].resnets
        before = resnets[-layers - 1] if layers < len(resnets) else network.up_blocks[-2].resnets[-1]
        calls.width = before.out_channels
        hooks.append(resnets[-layers].register_forward_pre_hook(calls.join))
    else:
        blocks = network.transformer_blocks
        hooks += [blocks[layers - 1].register_forward_hook(calls.begin), blocks[-1].register_forward_hook(calls.end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    assert calls.number >= max(deep)


@contextmanager
def repeated(net: nn.Module, *, deep: Collection[int]) -> Iterator[None]:
    """A ControlNet whose calls of other numbers than these give once more what it gave before."""
    forward, calls, given = net.forward, itertools.count(), []

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) in deep:
            given[:] = [forward(*args, **kwargs)]
        return given[0]

    net.forward = call
    try:
        yield
    finally:
        net.forward = forward


class _Calls:
    """Which call it is, and what the last deep one left."""

    def __init__(self, deep: frozenset[int]) -> None:
        self._deep = deep
        self.number = -1
        self.width = 0
        self._front = self._kept = torch.empty(0)

    @property
    def shallow(self) -> bool:
        return self.number not in self._deep

    def count(self, *_: Any) -> None:
        self.number += 1

    def join(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Before a layer whose input is joined with a skip connection's."""
        joined, *rest = given
        if self.shallow:
            return torch.cat([self._kept, joined[:, self.width :]], dim=1), *rest
        self._kept = joined[:, : self.width].clone()
        return None

    def begin(self, _: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
        """After the last of the first blocks: texts and tokens."""
        self._front = output[1].clone()

    def end(self, _: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        """After the last block."""
        if self.shallow:
            return output[0], self._front + self._kept
        self._kept = output[1] - self._front
        return None
