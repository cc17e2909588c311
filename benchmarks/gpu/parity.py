"""Every component and whole images against torch on the same device, in processes of their own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from latentrt.arrays import to_host
from latentrt.backends import open_engine
from latentrt.bundle import Bundle
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs.components import ComponentSpec, component_specs
from latentrt.export.graphs.modules.unet import UNet
from latentrt.export.parity.cases import Case, CaseTable
from latentrt.export.parity.check import run_check
from latentrt.export.parity.components import reference_runs, step_feed, text_feed, vae_feed
from latentrt.export.parity.half import COMPONENT_LIMITS_DB
from latentrt.export.parity.measurement import Measurement
from latentrt.export.parity.metrics import median_psnr_db, signal_to_noise_db
from latentrt.export.parity.torch.pipeline import reference_images, reference_pipeline
from latentrt.export.parity.torch.reference import TorchReference
from latentrt.export.quiet import quiet

_IN_FULL = ("text_encoder", "step", "decoder")
_LIMITS_DB = {"fp32": 80.0, **COMPONENT_LIMITS_DB}
_IMAGE_LIMITS_DB = {"fp32": 60.0, **COMPONENT_LIMITS_DB}

Rows = list[dict[str, Any]]
Answer = Callable[[Mapping[str, Any]], Rows]


@contextmanager
def open_check(options: Mapping[str, Any]) -> Iterator[Answer]:
    """The opener: what `latentrt check` judges, of one bundle on one backend.

    Options: `bundle`, `checkpoint`, `backend`, `device`, `samplers` (names, or None for all).
    """

    def answer(_: Mapping[str, Any]) -> Rows:
        with quiet(), exact_float32():
            measurements = run_check(
                Bundle.open(options["bundle"]),
                TorchReference(Checkpoint.open(options["checkpoint"]), device=options["device"]),
                backends=[options["backend"]],
                quick=True,
                samplers=options["samplers"],
                device=options["device"],
            )
        return _as_json(measurements.rows)

    yield answer


@contextmanager
def open_reference(options: Mapping[str, Any]) -> Iterator[Answer]:
    """The opener: torch in float16 against torch in float32, by the measures of float16 bundles. Reported, not
    judged: no float16 engine can be asked for much more. Options: `checkpoint`, `device`."""

    def answer(_: Mapping[str, Any]) -> Rows:
        with quiet(), exact_float32():
            checkpoint = Checkpoint.open(options["checkpoint"])
            family = read_family(checkpoint)
            (case,) = CaseTable(family).seeds([family.noise.default_sampler], [])
            return _as_json(in_half(checkpoint, options["device"], case=case))

    yield answer


@contextmanager
def open_full_size(options: Mapping[str, Any]) -> Iterator[Answer]:
    """The opener: the components of a full-size bundle at the size that is measured.

    Options: `bundle`, `checkpoint`, `backend`, `device`, `size`.
    """

    def answer(_: Mapping[str, Any]) -> Rows:
        bundle, checkpoint = Bundle.open(options["bundle"]), Checkpoint.open(options["checkpoint"])
        rows: list[Measurement] = []
        for spec in component_specs(checkpoint, read_family(checkpoint)):
            if spec.name in _IN_FULL:
                with quiet(), exact_float32():
                    rows += _full_size(spec, bundle, options)
        return _as_json(rows)

    yield answer


@contextmanager
def exact_float32() -> Iterator[None]:
    """torch's float32 without TF32, which cuDNN uses by default."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def in_half(checkpoint: Checkpoint, device: str, *, case: Case) -> Iterator[Measurement]:
    """torch's own float16 against its float32: the bare network, and the images of a case."""
    (spec,) = [spec for spec in component_specs(checkpoint, read_family(checkpoint)) if spec.name == "step"]
    feed = step_feed(spec.inputs, (128, 128), 1, guided=False)
    sample, timestep, context = (
        torch.from_numpy(value).to(device) for value in (feed["state"][:, 0], feed["timestep"], feed["context"][0])
    )
    network = UNet(checkpoint.unet()).to(device)
    with torch.no_grad():
        exact = network(sample, timestep, context)
        half = network.half()(sample.half(), timestep, context.half())
    noise_db = signal_to_noise_db(half.float().cpu().numpy(), exact.cpu().numpy())
    yield _reported("network", "128x128, batch 1", noise_db, "dB SQNR")

    pipeline = reference_pipeline(checkpoint, device=device)
    reference = reference_images(pipeline, checkpoint, case)
    images = reference_images(pipeline.to(torch.float16), checkpoint, case)
    yield _reported("images", f"{case}, median", median_psnr_db(images, reference), "dB PSNR")


def _full_size(spec: ComponentSpec, bundle: Bundle, options: Mapping[str, Any]) -> Iterator[Measurement]:
    """One component at one size: the bare network in the step, two prompts, one image."""
    device, backend = options["device"], options["backend"]
    width, height = options["size"]
    feeds = {
        "text_encoder": lambda: text_feed(spec.inputs, 2, 0),
        "step": lambda: step_feed(spec.inputs, (height, width), 1, guided=False),
        "decoder": lambda: vae_feed(spec.inputs, (height, width), 1),
    }
    case = f"{width}x{height}" if spec.name != "text_encoder" else "2 prompts"
    (run,) = reference_runs(spec.reference(), spec.inputs, device=device, cases=[(case, feeds[spec.name]())])
    part = bundle.component(spec.name)
    with closing(open_engine(part.graph, backend=backend, device=device, cache_dir=bundle.root / "engines")) as engine:
        found = {name: np.array(to_host(value)) for name, value in engine.run(run.feed).items()}
    for name, reference in run.outputs.items():
        is_image = reference.dtype == np.uint8
        yield Measurement(
            subject=f"component {spec.name}, full size",
            case=f"{name}, {case}",
            backend=backend,
            value=signal_to_noise_db(found[name], reference),
            limit=(_IMAGE_LIMITS_DB if is_image else _LIMITS_DB)[part.precision],
            unit="dB PSNR" if is_image else "dB SQNR",
            higher_is_better=True,
        )


def _reported(subject: str, case: str, value: float, unit: str) -> Measurement:
    return Measurement(
        subject=subject, case=case, backend="torch fp16", value=value, limit=None, unit=unit, higher_is_better=True
    )


def _as_json(rows: Iterable[Measurement]) -> Rows:
    """Values that JSON lacks, infinity and NaN, as text."""
    return [
        asdict(row) | {"value": row.value if np.isfinite(row.value) else str(row.value), "passed": row.passed}
        for row in rows
    ]
