"""ControlNets as components of a bundle: read, checked against its denoiser, exported and compared with torch."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from latentrt.bundle import CONTROLNET, Bundle, sha256_file
from latentrt.errors import CheckpointError, GateError, RequestError
from latentrt.export.bundles.derived import derive_bundle
from latentrt.export.bundles.step_control import MADE, residuals_made, step_residuals
from latentrt.export.checkpoint.files import check_allowed, check_safetensors, load_module, read_json, refuse_pointer
from latentrt.export.checkpoint.settings import CONTROLNETS
from latentrt.export.checkpoint.single_file.controlnet import controlnet_folder
from latentrt.export.controlnets.kinds import KINDS, Kind
from latentrt.export.graphs.onnx_from_torch import Dims, GraphInput, export_graph
from latentrt.export.parity.components import compare, reference_runs
from latentrt.export.passes.residuals import add_running_residuals
from latentrt.export.references.modules import ControlReference
from latentrt.export.staging import ExportProgress
from latentrt.family import Family
from latentrt.lora.targets import checkpoint_part
from latentrt.manifest.axes import axis_lengths, tensor_shape

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_LAYOUT = "a folder in diffusers' layout, with config.json and diffusion_pytorch_model.safetensors, or a single file"
_PICKLES = ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin")


@dataclass(frozen=True, slots=True)
class ControlNet:
    """A ControlNet in a folder, whole but not loaded.

    Args:
        name: by which requests ask for it.
        weights: its file.
        config: its config.json, with the defaults of its class.
        original: the single file that the folder was converted from.
    """

    name: str
    root: Path
    weights: Path
    config: Mapping[str, Any]
    original: Path | None = None

    @classmethod
    def open(cls, name: str, root: Path, *, allow_pickle: bool = False) -> Self:
        """Finds a ControlNet and checks that its files are complete. The weights of a single file are converted, those
        of a folder are not read.

        Args:
            root: a folder in diffusers' layout, or a single file in the original layout or in that one.
            allow_pickle: of a pickle, tensors and plain values only.

        Raises:
            RequestError: a name that no file could have.
            CheckpointError: missing, truncated, or of a kind that is not covered.
        """
        if _NAME.fullmatch(name) is None:
            raise RequestError(f"a ControlNet of the name '{name}'", expected="small letters, digits, - and _")
        original = root if root.is_file() else None
        if original is not None:
            root = controlnet_folder(original, allow_pickle=allow_pickle)
        if not root.is_dir():
            raise CheckpointError(f"no folder {root}", expected=_LAYOUT, hint="check the path")
        config = read_json(root / "config.json", expected=_LAYOUT)
        kind = KINDS.get(config.get("_class_name", ""))
        if kind is None:
            raise CheckpointError(
                f"{root} is a {config.get('_class_name', 'model of no class')}", expected=" or ".join(KINDS)
            )
        config = CONTROLNETS[config["_class_name"]].complete(config, where=root / "config.json")
        names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
        weights = next((root / file for file in (*names, *_PICKLES) if (root / file).is_file()), None)
        if weights is None:
            raise CheckpointError(f"no weights in {root}", expected=_LAYOUT)
        if weights.name in _PICKLES:
            refuse_pointer(weights)
            check_allowed([weights], allow_pickle=allow_pickle)
        else:
            check_safetensors(weights)
        return cls(name, root, weights, config, original)

    @property
    def component(self) -> str:
        """Name of its component."""
        return CONTROLNET + self.name

    def provenance(self) -> dict[str, Any]:
        """Where it comes from, as the manifest has it."""
        files = (self.root / "config.json", self.weights) if self.original is None else (self.original,)
        source = self.root if self.original is None else self.original
        return {"source": str(source), "sha256": {file.name: sha256_file(file) for file in files}}

    @property
    def kind(self) -> Kind:
        """The row of its class."""
        return KINDS[self.config["_class_name"]]

    def check(self, family: Family, network: str, places: Sequence[Dims]) -> None:
        """Raises CheckpointError unless it reads what a family's denoiser reads, and adds what this one takes.

        Args:
            network: the part of the checkpoint that the denoiser comes from.
            places: axes of what can be added to it.
        """
        if network != self.kind.network:
            raise CheckpointError(
                f"the ControlNet {self.name} belongs to a {self.kind.network}, and the model's denoiser is a {network}",
                expected="a ControlNet of the same family",
            )
        facts = self.kind.facts(self.config, family)
        own = self.kind.residuals(self.config, family)
        taken = places if self.kind.made(self.config) is None else places[: len(own)]
        for what, found, expected in (*facts, ("channels of its residuals", _channels(own), _channels(taken))):
            if found != expected:
                raise CheckpointError(
                    f"the ControlNet {self.name} does not belong to this model: its {what}: {found}",
                    expected=f"{expected}, as {family.name} has",
                    hint="use one that was trained for this family",
                )

    def load(self) -> nn.Module:
        """Its module in float32."""
        variant = "fp16" if ".fp16." in self.weights.name else None
        return load_module(self.kind.model, self.root, weights=self.weights, variant=variant)

    def reference(self, family: Family, graphs: Path) -> nn.Module:
        """What its graph must equal, by diffusers alone; the folder has the graphs of its bundle."""
        net = self.kind.completed(self.load(), family, graphs)
        return ControlReference(net, offset=self.kind.offset(self.config, graphs))

    def write(self, staging: Path, family: Family, *, check: bool) -> dict[str, Any]:
        """Writes graph, weights and map of keys.

        Args:
            staging: the folder of the bundle in the making, with the graphs of step and encoder.

        Returns:
            Its row of the manifest, and in it `parity`: how it compared with torch, empty without `check`.
        """
        kind, config = self.kind, self.config
        residuals, offset = kind.residuals(config, family), kind.offset(config, staging)
        net = kind.completed(self.load(), family, staging)
        module = kind.module(net, offset)
        path = staging / f"{self.component}.onnx"
        inputs = _examples(
            family,
            {
                "state": ("B", 4, family.latent_channels, "h", "w"),
                "timestep": ("B",),
                "scalings": ("B", 3),
                "scale": ("K", "B", len(residuals)),
                **kind.inputs(config, family),
            },
        )
        running = _examples(family, {f"residual_{number}": dims for number, dims in enumerate(residuals)})
        outputs = {f"next_residual_{number}": dims for number, dims in enumerate(residuals)}
        graph = export_graph(
            module,
            inputs=inputs,
            outputs=outputs,
            path=path,
            prefix="controlnet.",
            finish=partial(add_running_residuals, dims=residuals),
        )
        runs = reference_runs(ControlReference(net, offset=offset), {**inputs, **running}) if check else []
        del module, net  # the engine below needs the memory
        parity = compare(self.component, graph.file(self.component, path), runs) if runs else []
        row = graph.describe(path, part=self.component) | {MADE: kind.made(config)}
        return row | {"parity": [result.row(self.component) for result in parity]}


def add_controlnets(
    bundle: Bundle,
    output: Path,
    controlnets: Sequence[ControlNet],
    *,
    check: bool = True,
    overwrite: bool = False,
    progress: Callable[[ExportProgress], None] = lambda _: None,
) -> Bundle:
    """Writes a bundle with ControlNets added to those that it has, in float32 whatever the rest is in.

    Args:
        controlnets: to add; one of a name that is there replaces it.
        overwrite, progress: as `derive_bundle` takes them.

    Raises:
        CheckpointError: a ControlNet that does not belong to the bundle.
        BundleError: a denoiser that no ControlNet is known for, or something else at `output`.
        GateError: a ControlNet's graph is not equal to torch.
        RequestError, EnvironmentLacks: as `derive_bundle`.
    """
    family, rows = bundle.family, bundle.manifest["components"]
    step = bundle.component("step").graph
    for net in controlnets:
        net.check(family, checkpoint_part(bundle, "step"), step_residuals(step.path))
    check_together(rows, controlnets)
    origins = {net.name: net.provenance() for net in controlnets}
    graphs = {name: part.graph.digest for name, part in bundle.components.items()}  # a ControlNet may share parts
    return derive_bundle(
        bundle,
        output,
        writers={net.component: partial(_checked_row, net, family, check) for net in controlnets},
        options={"controlnets": origins, "parity": check, "bundle": graphs},
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


def check_together(rows: Mapping[str, Mapping[str, Any]], controlnets: Sequence[ControlNet]) -> None:
    """Raises CheckpointError for ControlNets that one step cannot serve."""
    residuals_made({**rows, **{net.component: {MADE: net.kind.made(net.config)} for net in controlnets}})


def _channels(residuals: Sequence[Dims]) -> list[int]:
    return [axis for dims in residuals for axis in dims if isinstance(axis, int)]


def _examples(family: Family, dims: Mapping[str, Dims]) -> dict[str, GraphInput]:
    """An example of each input; sizes unlike and odd, so that the trace binds none to another."""
    size = (13 * family.multiple_px, 9 * family.multiple_px)
    lengths = axis_lengths(family, size=size, batch=3, branches=2, context=family.context_length(1))
    types = {"image": torch.uint8}
    return {
        name: GraphInput(torch.ones(tensor_shape(axes, lengths), dtype=types.get(name, torch.float32)), axes)
        for name, axes in dims.items()
    }
