"""A bundle without its weights, a few megabytes, for a machine where they can be made again.

    python -m benchmarks.gpu.carry pack BUNDLE -o DIR
    python -m benchmarks.gpu.carry unpack DIR --checkpoint CHECKPOINT -o BUNDLE

A checkpoint with random weights takes a minute to make and gigabytes to move, and the exporter of another torch may not
be the one that was tested. So the graphs travel, and the weights are taken from the checkpoint that is there.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from latentrt.bundle import MANIFEST, Bundle, sha256_file
from latentrt.cli.arguments import Parser
from latentrt.errors import BundleError, LatentRTError


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a weight lies in the file beside its graph."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]
    offset: int
    length: int


def pack(source: Path, output: Path) -> Path:
    """Copies a bundle without the weights that a checkpoint has, beside `output` first, and returns it.

    Raises:
        BundleError: no bundle, or something is at `output`.
    """
    bundle, staging = Bundle.open(source), _staging(output)
    weights = {path for part in bundle.components.values() for path in part.graph.weights}
    for name in bundle.manifest["files"]:
        if bundle.root / name not in weights:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(bundle.root / name, staging / name)
    for part in bundle.components.values():
        keys = _keys(bundle, part.name)
        for path in part.graph.weights:
            with path.open("rb") as file, _rest(staging, part.name).open("wb") as rest:
                for slot in _slots(part.graph.path):
                    if slot.name not in keys:
                        file.seek(slot.offset)
                        rest.write(file.read(slot.length))
    shutil.copy2(bundle.root / MANIFEST, staging / MANIFEST)  # last: it makes the folder count
    return staging.rename(output)


def unpack(packed: Path, checkpoint: Path, output: Path) -> Path:
    """Makes a bundle of what was packed, with the weights of `checkpoint`, and returns it.

    The manifest gets the digests of these weights: another version of torch may draw other random numbers.

    Raises:
        BundleError: nothing was packed there, something is at `output`, or a weight is not in the checkpoint.
    """
    from latentrt.export.checkpoint.family import read_family
    from latentrt.export.checkpoint.folder import Checkpoint
    from latentrt.export.graphs.components import component_specs

    if not (packed / MANIFEST).is_file():
        raise BundleError(f"{packed} has no {MANIFEST}", expected="a folder made by `carry pack`")
    manifest = json.loads((packed / MANIFEST).read_text(encoding="utf-8"))
    staging = _staging(output)
    shutil.copytree(packed, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.rest", MANIFEST))
    source = Checkpoint.open(checkpoint)
    for spec in component_specs(source, read_family(source)):
        row = manifest["components"][spec.name]
        parameters = {name: value.detach().numpy() for name, value in spec.build().named_parameters()}
        keys = json.loads((packed / row["keys"]).read_text(encoding="utf-8"))
        weights = {}
        for name, entry in keys.items():
            value = parameters.get(spec.prefix + entry["key"], parameters.get(entry["key"]))
            if value is None:
                raise BundleError(f"the checkpoint has no {name}", expected=f"all {len(keys)} weights of {spec.name}")
            weights[name] = value.T if entry["transposed"] else value
        _fill_graph(staging / row["graph"], weights)
        for name in row["weights"]:
            _fill(staging / name, _slots(packed / row["graph"]), weights, _rest(packed, spec.name).read_bytes())
        for name in (row["graph"], *row["weights"]):
            path = staging / name
            manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    return staging.rename(output)


def _fill(path: Path, slots: Sequence[Slot], weights: Mapping[str, np.ndarray], rest: bytes) -> None:
    """Writes every weight at its place, in its number format; `rest` has those that the checkpoint has not."""
    taken = 0
    with path.open("wb") as file:
        for slot in slots:
            file.seek(slot.offset)
            if slot.name in weights:
                file.write(_as(slot.dtype, slot.dims, slot.name, weights).tobytes())
            else:
                file.write(rest[taken : taken + slot.length])
                taken += slot.length


def _fill_graph(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Small weights lie in the graph itself: it is written anew if one of them is another than in the checkpoint."""
    model = onnx.load(path, load_external_data=False)
    before = model.SerializeToString(deterministic=True)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.name in weights:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            value = _as(dtype, tuple(tensor.dims), tensor.name, weights)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    after = model.SerializeToString(deterministic=True)
    if after != before:
        path.write_bytes(after)


def _as(dtype: Any, dims: tuple[int, ...], name: str, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """A weight of the checkpoint in the form in which a graph has it."""
    value = weights[name]
    if value.shape != dims:
        raise BundleError(
            f"{name} is {value.shape} in the checkpoint",
            expected=f"{dims} as in the graph",
            hint="take the checkpoint that the bundle was exported from, or one of the same sizes",
        )
    return np.ascontiguousarray(value.astype(dtype))


def _slots(graph: Path) -> list[Slot]:
    return list(_external(onnx.load(graph, load_external_data=False)))


def _external(model: onnx.ModelProto) -> Iterator[Slot]:
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {pair.key: pair.value for pair in tensor.external_data}
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            yield Slot(tensor.name, dtype, tuple(tensor.dims), int(entry["offset"]), int(entry["length"]))


def _keys(bundle: Bundle, component: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(
        (bundle.root / bundle.manifest["components"][component]["keys"]).read_text(encoding="utf-8")
    )
    return found


def _rest(folder: Path, component: str) -> Path:
    return folder / f"{component}.rest"


def _staging(output: Path) -> Path:
    if output.exists():
        raise BundleError(f"{output} exists", expected="a new path", hint="choose another")
    staging = output.with_name(output.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(prog="python -m benchmarks.gpu.carry", description=__doc__, formatter_class=_Raw)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="a bundle to a folder without weights")
    unpacking = commands.add_parser("unpack", help="such a folder and a checkpoint to a bundle")
    packing.add_argument("source", type=Path, metavar="BUNDLE")
    unpacking.add_argument("source", type=Path, metavar="DIR")
    unpacking.add_argument("--checkpoint", type=Path, required=True)
    for command in (packing, unpacking):
        command.add_argument("-o", "--output", type=Path, required=True)
    try:
        options = parser.parse_args(arguments)
        if options.command == "pack":
            made = pack(options.source, options.output)
        else:
            made = unpack(options.source, options.checkpoint, options.output)
    except LatentRTError as error:
        print(f"carry: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{made}: {sum(file.stat().st_size for file in made.rglob('*') if file.is_file()) / 1e6:.1f} MB")
    return 0


_Raw = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    sys.exit(main())
