"""What was counted of a component's tensors: sums and maxima, kept apart by bucket of the timestep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray
from latentrt.calibration.histogram import BINS, Counts
from latentrt.calibration.observers import Observations, ObservedTensor


class Statistics:
    """Counts of some tensors. Adding in any order gives the same, so that a resumed run equals an unbroken one.

    Args:
        probes: the tensors.
        buckets: into how many parts the timesteps are divided; bucket 0 is the clean end.

    Attributes:
        counts: by tensor [buckets, BINS], histograms of magnitudes.
        channels: by tensor [buckets, C], largest magnitude of each channel.
        calls: [buckets], how many calls were added.
    """

    def __init__(self, probes: Sequence[ObservedTensor], *, buckets: int) -> None:
        self.buckets = buckets
        self.counts: dict[str, Counts] = {p.tensor: np.zeros((buckets, BINS), np.int64) for p in probes}
        self.channels: dict[str, FloatArray] = {p.tensor: np.zeros((buckets, p.channels), np.float32) for p in probes}
        self.calls = np.zeros(buckets, np.int64)

    def add(self, bucket: int, observations: Observations) -> None:
        """Counts one call."""
        self.calls[bucket] += 1
        for tensor, seen in observations.items():
            self.counts[tensor][bucket] += seen.counts
            np.maximum(self.channels[tensor][bucket], seen.channels, out=self.channels[tensor][bucket])

    @property
    def tensors(self) -> tuple[str, ...]:
        """Their names, in the order of the probes."""
        return tuple(self.counts)

    def histogram(self, tensor: str) -> Counts:
        """[BINS] over all timesteps."""
        total: Counts = self.counts[tensor].sum(axis=0)
        return total

    def channel_maxima(self, tensor: str) -> FloatArray:
        """[C] over all timesteps."""
        maxima: FloatArray = self.channels[tensor].max(axis=0)
        return maxima

    def all_maxima(self) -> dict[str, FloatArray]:
        """`channel_maxima` of every tensor."""
        return {tensor: self.channel_maxima(tensor) for tensor in self.tensors}

    def largest(self, tensor: str) -> float:
        """The largest magnitude of all."""
        return float(self.channels[tensor].max())

    def maxima(self, tensor: str) -> FloatArray:
        """[buckets], the largest magnitude at each part of the run: its drift over time."""
        drift: FloatArray = self.channels[tensor].max(axis=1)
        return drift

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything as arrays by name, for `restore`; tensors are told apart by their place."""
        stored: dict[str, npt.NDArray[Any]] = {"calls": self.calls}
        for place, tensor in enumerate(self.tensors):
            stored |= {f"counts.{place}": self.counts[tensor], f"channels.{place}": self.channels[tensor]}
        return stored

    def restore(self, stored: Mapping[str, npt.NDArray[Any]]) -> None:
        """Takes over what `arrays` gave for the same tensors."""
        self.calls[...] = stored["calls"]
        for place, tensor in enumerate(self.tensors):
            self.counts[tensor][...] = stored[f"counts.{place}"]
            self.channels[tensor][...] = stored[f"channels.{place}"]
