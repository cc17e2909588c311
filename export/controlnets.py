"""ControlNets as components of a bundle: read, checked against its denoiser, exported and compared with torch."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import ControlNetModel

from latentrt.bundle import CONTROLNET, Bundle, sha256_file
from latentrt.errors import CheckpointError, GateError, RequestError
from latentrt.export.checkpoint import check_safetensors, first_line, read_json
from latentrt.export.derived import derive_bundle
from latentrt.export.modules.control import Control
from latentrt.export.onnx_from_torch import Dims, GraphInput, export_graph
from latentrt.export.parity.components import Array, Run, compare
from latentrt.export.passes.residuals import add_running_residuals, residual_dims
from latentrt.export.staging import Progress
from latentrt.export.step_control import step_residuals
from latentrt.family import Family
from latentrt.vram import axis_lengths, tensor_shape

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_LAYOUT = "a folder in diffusers' layout, with config.json and diffusion_pytorch_model.safetensors"
_UNCOVERED = ("class_embed_type", "encoder_hid_dim_type", "global_pool_conditions")
_CASES = (("64x64, batch 1", (64, 64), 1, 1), ("guided 104x72, batch 3", (104, 72), 3, 2))


@dataclass(frozen=True, slots=True)
class ControlNet:
    """A ControlNet in a folder, whole but not loaded.

    Args:
        name: by which requests ask for it.
        root: the folder.
        weights: its file.
        config: its config.json.
    """

    name: str
    root: Path
    weights: Path
    config: Mapping[str, Any]

    @classmethod
    def open(cls, name: str, root: Path) -> Self:
        """Finds a ControlNet and checks that its files are complete, without reading the weights.

        Raises:
            RequestError: a name that no file could have.
            CheckpointError: missing, truncated, or no ControlNet of a U-Net.
        """
        if _NAME.fullmatch(name) is None:
            raise RequestError(f"a ControlNet of the name '{name}'", expected="small letters, digits, - and _")
        if not root.is_dir():
            raise CheckpointError(f"no folder {root}", expected=_LAYOUT, hint="check the path")
        config = read_json(root / "config.json", expected=_LAYOUT)
        if config.get("_class_name") != "ControlNetModel":
            raise CheckpointError(
                f"{root} is a {config.get('_class_name', 'model of no class')}",
                expected="a ControlNetModel, which belongs to a U-Net",
                hint="ControlNets of transformers (Stable Diffusion 3) cannot be exported yet",
            )
        if odd := [key for key in _UNCOVERED if config.get(key)]:
            raise CheckpointError(f"{root} has {odd[0]} {config[odd[0]]}", expected="a ControlNet without it")
        names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
        weights = next((root / file for file in names if (root / file).is_file()), None)
        if weights is None:
            raise CheckpointError(f"no weights in {root}", expected=_LAYOUT)
        check_safetensors(weights)
        return cls(name, root, weights, config)

    @property
    def component(self) -> str:
        """Name of its component."""
        return CONTROLNET + self.name

    def provenance(self) -> dict[str, Any]:
        """Where it comes from, as the manifest has it."""
        files = (self.root / "config.json", self.weights)
        return {"source": str(self.root), "sha256": {file.name: sha256_file(file) for file in files}}

    def residuals(self) -> list[Dims]:
        """Axes of what it adds, in the order of the skip connections, the middle block's last."""
        return _config_residuals(self.config)

    def check(self, family: Family, network: str, config: Mapping[str, Any]) -> None:
        """Raises CheckpointError unless it belongs to a denoiser, given its part's name and configuration."""
        if network != "unet":
            raise CheckpointError(
                f"the ControlNet {self.name} belongs to a U-Net, and the checkpoint's denoiser is a {network}",
                expected="a ControlNet of the same family",
                hint="ControlNets of transformers (Stable Diffusion 3) cannot be exported yet",
            )
        self.check_fits(family, _config_residuals(config))

    def check_fits(self, family: Family, residuals: Sequence[Dims]) -> None:
        """Raises CheckpointError unless it reads what a family's U-Net reads, and adds what this one takes."""
        width = self.config.get("cross_attention_dim", 1280)
        sizes = self.config.get("addition_embed_type") == "text_time"
        halvings = len(self.config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)) - 1
        for what, found, expected in (
            ("features of a token's context", width, family.width),
            ("channels of the latent", self.config.get("in_channels", 4), family.latent_channels),
            ("inputs for pooled texts and sizes", int(sizes), int(bool(family.time_ids))),
            ("pixels for one of the latent", 2**halvings, family.vae_factor),
            ("channels of its residuals", _channels(self.residuals()), _channels(residuals)),
        ):
            if found != expected:
                raise CheckpointError(
                    f"the ControlNet {self.name} does not belong to this model: its {what}: {found}",
                    expected=f"{expected}, as {family.name} has",
                    hint="use one that was trained for this family",
                )

    def load(self) -> ControlNetModel:
        """Its module in float32.

        Raises:
            CheckpointError: weights that do not fit the configuration, or are not finite.
        """
        variant = "fp16" if ".fp16." in self.weights.name else None
        try:
            module, report = ControlNetModel.from_pretrained(
                self.root, dtype=torch.float32, variant=variant, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:
            raise CheckpointError(
                f"{self.root} cannot be loaded ({first_line(error)})", expected="weights that fit config.json"
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(f"{self.root} lacks {len(missing)} weights, such as {missing[0]}")
        broken = [name for name, weight in module.named_parameters() if not torch.isfinite(weight).all()]
        if broken:
            raise CheckpointError(f"weight {broken[0]} of {self.root} is not finite", expected="finite weights")
        return module.eval().requires_grad_(False)

    def write(self, staging: Path, family: Family, *, check: bool) -> dict[str, Any]:
        """Writes graph, weights and map of keys.

        Returns:
            Its row of the manifest, and in it `parity`: how it compared with torch, empty without `check`.
        """
        module, residuals = Control(self.load()), self.residuals()
        path = staging / f"{self.component}.onnx"
        inputs = _inputs(family, len(residuals))
        outputs = {f"next_residual_{number}": dims for number, dims in enumerate(residuals)}
        graph = export_graph(
            module,
            inputs=inputs,
            outputs=outputs,
            path=path,
            prefix="controlnet.",
            finish=partial(add_running_residuals, dims=residuals),
        )
        runs = list(_reference_runs(module, family, inputs, residuals)) if check else []
        del module  # the engine below needs the memory
        keys = {name: {"key": key, "transposed": transposed} for name, (key, transposed) in graph.keys.items()}
        path.with_suffix(".keys.json").write_text(json.dumps(keys, indent=1, sort_keys=True))
        parity = compare(self.component, path, runs) if runs else []
        return {
            "graph": path.name,
            "weights": [path.with_suffix(".weights").name],
            "keys": path.with_suffix(".keys.json").name,
            "checkpoint_part": self.component,
            "precision": "fp32",
            "parameters": graph.parameters,
            "conversion": None,
            "inputs": {name: {"dtype": dtype, "dims": list(dims)} for name, (dtype, dims) in graph.inputs.items()},
            "outputs": {name: {"dtype": dtype, "dims": list(dims)} for name, (dtype, dims) in graph.outputs.items()},
            "parity": [result.row() for result in parity],
        }


def add_controlnets(
    bundle: Bundle,
    output: Path,
    controlnets: Sequence[ControlNet],
    *,
    check: bool = True,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Bundle:
    """Writes a bundle with ControlNets added to those that it has, in float32 whatever the rest is in.

    Args:
        bundle: only read.
        output: the new bundle's directory; must not exist unless `overwrite`.
        controlnets: to add; one of a name that is there replaces it.
        check: compare each with torch.
        overwrite, progress: as `derive_bundle` takes them.

    Raises:
        CheckpointError: a ControlNet that does not belong to the bundle.
        BundleError: a denoiser without skip connections, or something else at `output`.
        GateError: a ControlNet's graph is not equal to torch.
        RequestError, EnvironmentLacks: as `derive_bundle`.
    """
    family = bundle.family
    taken = step_residuals(bundle.component("step").graph.path)
    for net in controlnets:
        net.check_fits(family, taken)
    origins = {net.name: net.provenance() for net in controlnets}
    return derive_bundle(
        bundle,
        output,
        writers={net.component: partial(_checked_row, net, family, check) for net in controlnets},
        options={"controlnets": origins, "parity": check},
        fields={"controlnets": {**bundle.manifest.get("controlnets", {}), **origins}},
        overwrite=overwrite,
        progress=progress,
    )


def _checked_row(net: ControlNet, family: Family, check: bool, staging: Path) -> dict[str, Any]:
    row = net.write(staging, family, check=check)
    for case in row["parity"]:
        if not case["passed"]:
            raise GateError(
                f"{net.component} differs from torch by {case['worst']:.2e} in {case['case']}",
                expected=f"at most {case['limit']:.0e}",
            )
    return row


def _config_residuals(config: Mapping[str, Any]) -> list[Dims]:
    """Axes of the skip connections that the encoder of a U-Net or of its ControlNet makes, and of its middle block."""
    channels = list(config.get("block_out_channels", (320, 640, 1280, 1280)))
    layers = config.get("layers_per_block", 2)
    counts = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    found = [residual_dims(channels[0], 0)]
    for level, (width, count) in enumerate(zip(channels, counts, strict=True)):
        found += [residual_dims(width, level)] * count
        if level + 1 < len(channels):
            found.append(residual_dims(width, level + 1))
    return [*found, residual_dims(channels[-1], len(channels) - 1)]


def _channels(residuals: Sequence[Dims]) -> list[str | int]:
    return [dims[2] for dims in residuals]


def _inputs(family: Family, residuals: int) -> dict[str, GraphInput]:
    """An example of each input; sizes unlike and odd, so that the trace binds none to another."""
    channels = family.latent_channels
    dims: dict[str, Dims] = {
        "state": ("B", 4, channels, "h", "w"),
        "timestep": ("B",),
        "scalings": ("B", 3),
        "context": ("K", "B", "L", family.width),
        "image": ("B", "H", "W", 3),
        "scale": ("K", "B", residuals),
    }
    if family.time_ids:
        dims |= {"pooled": ("K", "B", family.pooled_width), "time_ids": ("K", "B", len(family.time_ids))}
    lengths = axis_lengths(family, size=(104, 72), batch=3, branches=2, context=family.context_length(1))
    return {
        name: GraphInput(
            torch.ones(tensor_shape(axes, lengths), dtype=torch.uint8 if name == "image" else torch.float32), axes
        )
        for name, axes in dims.items()
    }


def _reference_runs(
    module: Control, family: Family, inputs: Mapping[str, GraphInput], residuals: Sequence[Dims]
) -> Iterator[Run]:
    """Torch on random inputs, running residuals included."""
    running = {f"residual_{number}": dims for number, dims in enumerate(residuals)}
    for case, size, batch, branches in _CASES:
        rng = np.random.default_rng(4)
        lengths = axis_lengths(
            family, size=size, batch=batch, branches=branches, context=family.context_length(branches)
        )
        dims = {name: value.dims for name, value in inputs.items()} | running
        feed: dict[str, Array] = {
            name: rng.standard_normal(tensor_shape(axes, lengths), np.float32) for name, axes in dims.items()
        }
        feed["image"] = rng.integers(0, 256, feed["image"].shape, np.uint8)
        feed["timestep"] = np.linspace(500, 20, batch).astype(np.float32)
        if "time_ids" in feed:
            feed["time_ids"] = rng.integers(0, 1024, feed["time_ids"].shape).astype(np.float32)
        with torch.no_grad():
            found = module(**{name: torch.from_numpy(value) for name, value in feed.items()})
        yield Run(case, feed, {f"next_{name}": value.numpy() for name, value in zip(running, found, strict=True)})
