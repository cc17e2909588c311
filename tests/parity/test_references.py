"""The references of a comparison are diffusers' own: a fault that is put into a wrapper of ours makes it fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latentrt.errors import GateError
from latentrt.export import package
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs.components import ComponentSpec, component_specs
from latentrt.export.graphs.modules import mmdit, step, t5, text, unet, vae
from latentrt.export.package import export_bundle
from latentrt.export.parity.components import component_feeds, difference, reference_runs
from latentrt.export.synthetic.checkpoints import make_checkpoint

ARCHITECTURES = ("tiny-sd15", "tiny-lcm", "tiny-sdxl", "tiny-sdxl-refiner", "tiny-sd3", "tiny-sd35")
Specs = Callable[[str], dict[str, ComponentSpec]]


@pytest.fixture(scope="module")
def specs(once) -> Specs:
    """The components of an architecture with random weights."""

    def of(architecture: str) -> dict[str, ComponentSpec]:
        root = once(f"reference-{architecture}", lambda folder: make_checkpoint(architecture, folder / "checkpoint"))
        checkpoint = Checkpoint.open(root)
        return {spec.name: spec for spec in component_specs(checkpoint, read_family(checkpoint))}

    return of


def worst(spec: ComponentSpec) -> float:
    """The largest difference of a wrapper from its reference at two sizes, over the limit of a comparison."""
    part, cases = spec.load(), component_feeds(spec.inputs)
    cases = cases[: max(2, len(cases) // 2)]
    ours = reference_runs(spec.wrap(part), spec.inputs, cases=cases)
    theirs = reference_runs(spec.refer(part), spec.inputs, cases=cases)
    pairs = [
        difference(a.outputs[name], b.outputs[name]) for a, b in zip(ours, theirs, strict=True) for name in b.outputs
    ]
    assert [run.outputs.keys() for run in ours] == [run.outputs.keys() for run in theirs]
    return max(found / limit for found, limit in pairs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_wrapper_equals_its_reference(architecture: str, specs: Specs):
    assert {name: value for name, spec in specs(architecture).items() if (value := worst(spec)) > 0.5} == {}


def _no_shift(vae_: Any) -> Any:
    """Of the autoencoder, the scale alone."""
    made = vae.LatentAffine(vae_)
    made.shift = 0.0
    return made


def _other_scale(vae_: Any) -> Any:
    made = vae.LatentAffine(vae_)
    made.scale = made.scale * 1.01
    return made


def _unmasked(module: Any, **given: torch.Tensor) -> Any:
    """A text encoder without its causal mask."""
    module.causal = torch.zeros_like(module.causal)
    return _TEXT(module, **given)


def _one_lower(module: Any, skip: torch.Tensor, **given: torch.Tensor) -> Any:
    """A text encoder that is read one layer off."""
    return _TEXT(module, skip=1 - skip, **given)


def _normed(module: Any, **given: torch.Tensor) -> Any:
    """A text encoder with its final norm, where it is read before it."""
    hidden, pooled = _TEXT(module, **given)
    return getattr(module.model, "text_model", module.model).final_layer_norm(hidden), pooled


def _from_a_corner(embed: Any, rows: int, columns: int) -> torch.Tensor:
    """The first positions, not those in the middle."""
    return embed.pos_embed[:, : rows * columns]


def _halved(image: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return _PIXELS(image, keep) / 2


def _affined(kind: type[nn.Module], affine: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Puts a factor and a shift of another kind into a half of the autoencoder."""
    return lambda patch: patch.setattr(kind, "__init__", _with_affine(kind, affine))


_TEXT, _T5 = text.TextEncoder.forward, t5.T5Encoder.forward
_ANGLES, _GUIDES = unet.TimeIds.forward, unet.GuidanceAngles.forward
_BYTES, _PIXELS = vae.to_bytes, vae.to_pixels


def _replaced(owner: Any, name: str, by: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, by)


def _with_affine(kind: type[nn.Module], affine: Callable[[Any], Any]) -> Callable[..., None]:
    before = kind.__init__

    def init(module: nn.Module, part: nn.Module) -> None:
        before(module, part)
        module.affine = affine(part)

    return init


def _shifted(module: Any, ids: torch.Tensor) -> torch.Tensor:
    module.buckets = torch.zeros_like(module.buckets)
    return _T5(module, ids)


FAULTS: dict[str, tuple[str, str, Callable[[pytest.MonkeyPatch], None]]] = {
    "shift left out, decoding": ("tiny-sd3", "decoder", _affined(vae.Decoder, _no_shift)),
    "shift left out, encoding": ("tiny-sd3", "encoder", _affined(vae.Encoder, _no_shift)),
    "another scale": ("tiny-sd15", "encoder", _affined(vae.Encoder, _other_scale)),
    "levels of bytes": ("tiny-sd15", "decoder", _replaced(vae, "to_bytes", lambda image: _BYTES(image * 0.98))),
    "picture not scaled": ("tiny-sd15", "encoder", _replaced(vae, "to_pixels", _halved)),
    "another layer": ("tiny-sdxl", "text_encoder", _replaced(text.TextEncoder, "forward", _one_lower)),
    "final norm": ("tiny-sdxl", "text_encoder_2", _replaced(text.TextEncoder, "forward", _normed)),
    "no causal mask": ("tiny-sd15", "text_encoder", _replaced(text.TextEncoder, "forward", _unmasked)),
    "T5 without positions": ("tiny-sd3", "text_encoder_3", _replaced(t5.T5Encoder, "forward", _shifted)),
    "sizes left out": ("tiny-sdxl", "step", _replaced(unet.TimeIds, "forward", lambda net, ids: 0 * _ANGLES(net, ids))),
    "guidance off by one": (
        "tiny-lcm", "step", _replaced(unet.GuidanceAngles, "forward", lambda self, scale: _GUIDES(self, scale + 1)),
    ),
    "positions of a corner": ("tiny-sd3", "step", _replaced(mmdit, "positions", _from_a_corner)),
    "rescale left out": (
        "tiny-sd15", "step", _replaced(step, "_rescaled", lambda prediction, *, towards, amount: prediction),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_wrapper_is_seen(fault: str, specs: Specs, monkeypatch: pytest.MonkeyPatch):
    architecture, component, inject = FAULTS[fault]
    spec = specs(architecture)[component]
    inject(monkeypatch)
    assert worst(spec) > 1


def test_the_export_ends_with_its_gate(tmp_path: Path, specs: Specs, monkeypatch: pytest.MonkeyPatch, once):
    """The whole way of one graph, with a fault that is not seen where the module that is exported is its reference."""
    decoder = specs("tiny-lcm")["decoder"]
    root = once("reference-tiny-lcm", lambda folder: make_checkpoint("tiny-lcm", folder / "checkpoint"))
    monkeypatch.setattr(package, "component_specs", lambda *_: (decoder,))
    monkeypatch.setattr(vae.Decoder, "__init__", _with_affine(vae.Decoder, _other_scale))
    with pytest.raises(GateError, match="decoder differs from torch"):
        export_bundle(Checkpoint.open(root), tmp_path / "bundle")
    assert (tmp_path / "bundle.rejected").is_dir()
