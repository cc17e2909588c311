"""What a front and its replicas tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latentrt.arrays import FloatArray
from latentrt.errors import LatentRTError
from latentrt.output.result import Result
from latentrt.request import Request
from latentrt.serving.jobs import JobState
from latentrt.serving.model import LoraNames
from latentrt.serving.stats import Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a replica is to make.

    Args:
        id: of the job.
        model: its name.
        request: with defaults and seeds filled in, so that every replica makes the same images of it.
        loras: names and scales.
    """

    id: str
    model: str
    request: Request
    loras: LoraNames


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Of a job that a replica makes.

    Args:
        replica: its name.
        state: of the job; after a final one nothing follows.
        done, total: engine calls made, and of the whole run.
        denoised: [B, C, h, w], what previews are made of.
        result: of a job that is done; its request is left out, since whoever asked has it.
        error: of one that failed.
    """

    replica: str
    state: JobState
    done: int = 0
    total: int = 0
    denoised: FloatArray | None = None
    result: Result | None = None
    error: LatentRTError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a replica has done and does.

    Args:
        replica: its name.
        stats: of each model that it has had in memory.
        present: images of each job in the present engine call of each model.
    """

    replica: str
    stats: Mapping[str, Stats]
    present: Mapping[str, Mapping[str, int]]


def variant_name(model: str, loras: LoraNames) -> str:
    """A bundle with its LoRAs as one name: replicas that have it in memory are asked first."""
    return "+".join([model, *(f"{name}={scale:g}" for name, scale in loras)])


def bundle_name(variant: str) -> str:
    """The bundle of a variant. Names of models hold no `+`."""
    return variant.partition("+")[0]
