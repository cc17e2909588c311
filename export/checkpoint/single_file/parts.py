"""A network found in a file: checked on shapes alone, then converted and written as a part of a diffusers folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ModelMixin
from safetensors.torch import save_file
from torch import nn

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.single_file.architectures import PartRow
from latentrt.export.checkpoint.single_file.layouts import Layout
from latentrt.export.checkpoint.single_file.sizes import Shapes
from latentrt.export.checkpoint.single_file.weights import Tensors, Weights
from latentrt.export.messages import first_line

_STORED_AS = {torch.float64: torch.float32, torch.float8_e4m3fn: torch.float16, torch.float8_e5m2: torch.float16}


@dataclass(frozen=True, slots=True)
class NetworkPart:
    """One network within a file.

    Args:
        prefix: of its keys there.
        layout: how they are named.
        config: its configuration as far as its shapes tell it.
    """

    row: PartRow
    weights: Weights
    prefix: str
    layout: Layout
    config: Mapping[str, Any]

    @property
    def keys(self) -> list[str]:
        """Its keys in the file."""
        return [key for key in self.weights.shapes if key.startswith(self.prefix)]

    @property
    def parameters(self) -> int:
        """Values in all."""
        return sum(torch.Size(self.weights.shapes[key]).numel() for key in self.keys)

    def convert(self, tensors: Tensors) -> Tensors:
        """Tensors under the file's keys, to diffusers' names."""
        try:
            return self.layout.convert({key.removeprefix(self.prefix): value for key, value in tensors.items()})
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise _incomplete(self.row, self.weights, error) from error


def find_part(row: PartRow, weights: Weights) -> NetworkPart | None:
    """The network in a file, if it is there; a CheckpointError for one that is incomplete."""
    for prefix in row.prefixes:
        for layout in row.layouts:
            if prefix + layout.tell in weights.shapes:
                part = NetworkPart(row, weights, prefix, layout, {})
                try:
                    config = row.sizes(_shapes(part))
                except (LookupError, ValueError) as error:
                    raise _incomplete(row, weights, error) from error
                return NetworkPart(row, weights, prefix, layout, config)
    return None


def write_part(part: NetworkPart, config: Mapping[str, Any], folder: Path) -> set[str]:
    """Writes configuration and weights, the latter in their own type (float8 as float16, which holds its values).

    Returns:
        The keys of the file that were used.

    Raises:
        CheckpointError: weights that do not fit `config`, or of a type that holds no plain values.
    """
    try:
        module = _on_meta(part.row.kind, config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the {part.row.part} in {part.weights.path} with {_sizes_text(part.config)} cannot be a "
            f"{part.row.kind.__name__} ({first_line(error)})",
            hint="give a diffusers folder of the same model with --components: its settings are taken",
        ) from error
    names = _names(module, part)
    used = _sources(part, names)
    for key in sorted(used):
        if not part.weights.dtypes[key].is_floating_point:
            raise CheckpointError(
                f"weight {key} of {part.weights.path} is {str(part.weights.dtypes[key]).removeprefix('torch.')}",
                expected="floating point",
                hint="quantised files cannot be read: take the one in fp16 or fp32",
            )
    folder.mkdir(parents=True)
    _save_config(module, folder)
    converted = part.convert(part.weights.read(part.keys))
    stored = {name: _stored(converted[source]) for source, name in names.items()}
    name = "diffusion_pytorch_model.safetensors" if isinstance(module, ModelMixin) else "model.safetensors"
    save_file(stored, folder / name, metadata={"format": "pt"})
    return used


def _names(module: nn.Module, part: NetworkPart) -> dict[str, str]:
    """By converted name, the name to store; refuses what does not fit the module."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    expected = {name: own[name].shape for name in module.state_dict() if name in own}
    shapes = {_bare(name): (name, shape) for name, shape in _shapes(part).items()}
    missing = [name for name in expected if _bare(name) not in shapes]
    unlike = [name for name in expected if name not in missing and shapes[_bare(name)][1] != tuple(expected[name])]
    if missing or unlike:
        name = (missing or unlike)[0]
        how = "is missing" if missing else f"is {list(shapes[_bare(name)][1])} and not {list(expected[name])}"
        raise CheckpointError(
            f"the {part.row.part} in {part.weights.path} lacks {len(missing)} of {len(expected)} weights and has "
            f"{len(unlike)} of another shape; {name} {how}",
            expected=f"all weights of a {type(module).__name__} with {_sizes_text(part.config)}",
            hint="the file is incomplete, or of an architecture that is not known",
        )
    return {shapes[_bare(name)][0]: name for name in expected}


def _sources(part: NetworkPart, names: Mapping[str, str]) -> set[str]:
    """The file's keys that end in these converted names. Every key is sent through the conversion as a thin tensor full
    of its own number, and read off what comes out; 0 and 1 are left for what a conversion adds itself."""
    numbered = dict(enumerate(part.keys, start=2))
    tags = {}
    for number, key in numbered.items():
        rows, rest = part.weights.shapes[key][:1], part.weights.shapes[key][1:]
        tags[key] = torch.full((*rows, *(1 for _ in rest)), float(number))
    converted = part.convert(tags)
    numbers = {int(converted[name].flatten()[0]) for name in names}
    return {key for number, key in numbered.items() if number in numbers}


def _shapes(part: NetworkPart) -> Shapes:
    meta = {key: torch.empty(part.weights.shapes[key], device="meta") for key in part.keys}
    return {name: tuple(tensor.shape) for name, tensor in part.convert(meta).items()}


def _on_meta(kind: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        if issubclass(kind, ModelMixin):
            return cast(nn.Module, cast(Any, kind).from_config(dict(config)))
        return kind(cast(Any, kind).config_class(**config))


def _save_config(module: nn.Module, folder: Path) -> None:
    if isinstance(module, ModelMixin):
        module.save_config(folder)
    else:
        document = cast(Any, module).config.to_dict() | {"architectures": [type(module).__name__]}
        (folder / "config.json").write_text(json.dumps(document, indent=2, sort_keys=True), encoding="utf-8")


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(_STORED_AS.get(tensor.dtype, tensor.dtype)).contiguous()


def _bare(name: str) -> str:
    """transformers' text models have had their weights with and without this prefix."""
    return name.removeprefix("text_model.")


def _sizes_text(config: Mapping[str, Any]) -> str:
    shown = ("block_out_channels", "cross_attention_dim", "num_layers", "hidden_size", "num_hidden_layers", "d_model")
    return ", ".join(f"{field} {config[field]}" for field in shown if config.get(field) is not None)


def _incomplete(row: PartRow, weights: Weights, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the {row.part} in {weights.path} is incomplete ({type(error).__name__}: {first_line(error)})",
        expected=f"all weights of a {row.kind.__name__}",
        hint="the file is damaged, or of an architecture that is not known",
    )
