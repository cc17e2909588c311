"""What `latentrt bench --against CHECKPOINT` compares with: diffusers on torch, in the forms in which it does best.

Imports torch only in the process that measures.
"""

import inspect
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentrt.bench.runner import Candidate, Options, Peer, Run, Workload, first_order
from latentrt.errors import CheckpointError
from latentrt.export.extras import EXPORT_NEEDS
from latentrt.export.parity.pictures import photo
from latentrt.export.quiet import quiet
from latentrt.export.references.schedulers import REFERENCES
from latentrt.output.result import Timings

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def _candidates(checkpoint: str) -> Sequence[Candidate]:
    """torch in float32 as diffusers runs it, and in bfloat16 with channels-last weights.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if not Path(checkpoint).is_dir():
        raise CheckpointError(f"no checkpoint at {checkpoint}", expected="a folder in diffusers' layout")
    return [
        Candidate(
            name,
            "latentrt.export.bench_torch:open_diffusers",
            {"path": checkpoint, "compute": compute},
            precision=dict.fromkeys(("text_encoder", "step", "decoder"), compute),
        )
        for name, compute in (("torch fp32", "fp32"), ("torch bf16 channels-last", "bf16"))
    ]


candidates = Peer(_candidates, requires=EXPORT_NEEDS)


@contextmanager
def open_diffusers(options: Options, workload: Workload) -> Iterator[Run]:
    """The opener: a pipeline of diffusers, whose network is timed alone, as its scheduler costs next to nothing.

    With the option `compiled` it is compiled for this workload, and what the compiler makes is kept in `cache_dir`.
    """
    if options.get("cache_dir") is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(options["cache_dir"])  # read when torch is imported
    with quiet():
        import torch
    if workload.threads is not None:
        torch.set_num_threads(workload.threads)
    without = [part for part in (options.get("without") or "").split(",") if part]
    pipe = open_pipeline(str(options["path"]), dtype=_DTYPES[str(options["compute"])], without=without)
    network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    if options["compute"] == "bf16":
        network.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if options.get("compiled") is not None:
        _compile(pipe, network)
        make_images(pipe, replace(workload, steps=1), output_type="np")
    clock = Clock()
    network.register_forward_pre_hook(clock.begins)
    network.register_forward_hook(clock.ends)
    yield lambda: clock.time(lambda: make_images(pipe, workload, output_type="np"))


def open_pipeline(path: str, *, dtype: str, without: Sequence[str] = ()) -> Any:
    """The pipeline that a checkpoint names, with Euler's sampler, in a dtype of torch by its name.

    Args:
        without: text encoders to leave out.

    Raises:
        CheckpointError: it cannot be read.
    """
    with quiet():
        import torch
        from diffusers import DiffusionPipeline, StableDiffusionPipeline

        from latentrt.export.checkpoint.family import read_family, scheduler_config
        from latentrt.export.checkpoint.files import variant_of
        from latentrt.export.checkpoint.folder import Checkpoint, tokenizer_of

        checkpoint = Checkpoint.open(Path(path))
        sampler = REFERENCES[first_order(read_family(checkpoint).noise)]
        # A pipeline of latent consistency models takes their own sampler alone.
        consistent = str(checkpoint.index["_class_name"]).startswith("LatentConsistency")
        pipe = (StableDiffusionPipeline if consistent else DiffusionPipeline).from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            variant=variant_of(checkpoint.weight_files(checkpoint.network)[0]),
            safety_checker=None,
            **{name: None for part in without for name in (part, tokenizer_of(part))},
        )
    pipe.scheduler = sampler.build(scheduler_config(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_images(pipe: Any, workload: Workload, *, output_type: str) -> Any:
    """What such a pipeline makes of a workload, as its `output_type`; one that starts from a photo paints all of it
    anew."""
    import torch
    from PIL import Image

    width, height = workload.size
    given: dict[str, Any] = {"width": width, "height": height}
    taken = inspect.signature(pipe.__call__).parameters
    if "strength" in taken:
        starts = {"image": Image.fromarray(photo(workload.size)), "mask_image": Image.new("L", workload.size, 255)}
        given = {name: value for name, value in (given | starts).items() if name in taken} | {"strength": 1.0}
    return pipe(
        workload.prompt,
        num_images_per_prompt=workload.batch,
        num_inference_steps=workload.steps,
        guidance_scale=workload.guidance,
        generator=torch.Generator().manual_seed(0),
        output_type=output_type,
        **given,
    ).images


def _compile(pipe: Any, network: Any) -> None:
    """The networks, compiled when they first run."""
    import torch

    names = [name for name in pipe.components if name.startswith("text_encoder")]
    for module in (*filter(None, (getattr(pipe, name) for name in names)), network):
        module.forward = torch.compile(module.forward)  # type: ignore[no-untyped-call, unused-ignore]
    pipe.vae.decode = torch.compile(pipe.vae.decode)  # type: ignore[no-untyped-call, unused-ignore]


class Clock:
    """Notes when the network begins and ends; the text comes before its first call, decoding after its last."""

    def __init__(self) -> None:
        self._begun: list[float] = []
        self._ended: list[float] = []

    def begins(self, *_: Any) -> None:
        self._begun.append(time.perf_counter())

    def ends(self, *_: Any) -> None:
        self._ended.append(time.perf_counter())

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A network that takes no hooks, watched."""

        def watched(*arguments: Any, **named: Any) -> Any:
            self.begins()
            result = function(*arguments, **named)
            self.ends()
            return result

        return watched

    def time(self, function: Any) -> Timings:
        self._begun.clear()
        self._ended.clear()
        began = time.perf_counter()
        function()
        done = time.perf_counter()
        return Timings(
            text_ms=1e3 * (self._begun[0] - began),
            steps_ms=tuple(1e3 * (end - start) for start, end in zip(self._begun, self._ended, strict=True)),
            decode_ms=1e3 * (done - self._ended[-1]),
            total_ms=1e3 * (done - began),
        )
