"""A bundle of a few kilobytes whose manifest has every section: graphs of one node each, for tests of what is read.

`latentrt.testing.fake_pipeline` has engines for it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latentrt import Pipeline
from latentrt.backends.tensorrt.records import PLAN, RECORD, EngineRecord, Profile
from latentrt.bundle import FORMAT, FORMAT_VERSION, MANIFEST, Bundle, sha256_file
from latentrt.graph import TensorSpec
from latentrt.testing import fake_pipeline

Manifest = dict[str, Any]

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}
KEYS = {"weight": {"key": "mid_block.to_q.weight", "transposed": True}}


def small_bundle(root: Path) -> Path:
    """Makes it at `root`, with an encoder, a ControlNet, a LoRA merged in and what a calibration leaves behind."""
    (root / "tokenizer").mkdir(parents=True)
    with fake_pipeline(root) as pipe:
        (root / "tokenizer.json").rename(root / "tokenizer" / "tokenizer.json")
        family = pipe.bundle.family.to_dict()
        family["towers"][0]["tokenizer"] = "tokenizer/tokenizer.json"
        ios = {name: (dict(engine.inputs), dict(engine.outputs)) for name, engine in pipe.engines.items()}
    ios |= _controlled(ios["step"])
    components = {name: _component(root, name, *io) for name, io in ios.items()}
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {path.relative_to(root).as_posix(): _entry(path) for path in paths}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "family": family,
        "components": components,
        "preview": [[0.25, 0.0, -0.25]] * 4 + [[0.5, 0.5, 0.5]],
        **_history(components),
        "files": files,
    }
    (root / MANIFEST).write_text(json.dumps(manifest))
    _engine(root)
    return root


def with_fakes(bundle: Bundle, folder: Path) -> Pipeline:
    """The bundle as a pipeline that needs no backend."""
    return Pipeline(bundle, fake_pipeline(folder).engines)


def resigned(root: Path, name: str) -> None:
    """Makes the manifest true of a file that was changed."""
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["files"][name] = _entry(root / name)
    (root / MANIFEST).write_text(json.dumps(manifest))


def graph(name: str, inputs: Iterable[str], outputs: Iterable[str], specs: Mapping[str, TensorSpec]) -> onnx.ModelProto:
    """One product with a weight; the inputs and outputs are there, and what they hold does not matter."""
    weight = numpy_helper.from_array(np.arange(64, dtype=np.float32).reshape(8, 8), "weight")
    row = numpy_helper.from_array(np.ones((1, 8), np.float32), "row")
    constants = [weight, row]
    nodes = [helper.make_node("MatMul", ["row", "weight"], ["product"], name="mid_block/to_q")]
    for output in outputs:
        spec = specs[output]
        shape = numpy_helper.from_array(np.array([dim or 8 for dim in spec.dims], np.int64), f"shape of {output}")
        value = helper.make_tensor("value", _TYPES[spec.dtype], [1], [0])
        nodes.append(helper.make_node("ConstantOfShape", [shape.name], [output], value=value))
        nodes[-1].name = f"make {output}"
        constants.append(shape)
    made = helper.make_graph(
        nodes,
        name,
        [_value(tensor, specs[tensor]) for tensor in inputs],
        [_value(tensor, specs[tensor]) for tensor in outputs],
        constants,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def _value(name: str, spec: TensorSpec) -> onnx.ValueInfoProto:
    dims = [f"{name}_{axis}" if dim is None else dim for axis, dim in enumerate(spec.dims)]
    return helper.make_tensor_value_info(name, _TYPES[spec.dtype], dims)


def _controlled(step: tuple[dict[str, TensorSpec], dict[str, TensorSpec]]) -> Manifest:
    inputs, outputs = step
    residual = TensorSpec("float32", (None, None, 4, None, None))
    seen = {name: inputs[name] for name in ("state", "timestep", "scalings", "context")}
    seen |= {"image": TensorSpec("uint8", (None, None, None, 3)), "scale": TensorSpec("float32", (None, None, 1))}
    return {
        "step-control": ({**inputs, "residual_0": residual}, outputs),
        "controlnet-edges": ({**seen, "residual_0": residual}, {"next_residual_0": residual}),
    }


def _component(root: Path, name: str, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> Manifest:
    shared = "step" if name == "step-control" else name
    model = graph(name, inputs, outputs, {**inputs, **outputs})
    onnx.save_model(
        model, root / f"{name}.onnx", save_as_external_data=True, location=f"{shared}.weights", size_threshold=128
    )
    (root / f"{shared}.keys.json").write_text(json.dumps(KEYS))
    return {
        "graph": f"{name}.onnx",
        "weights": [f"{shared}.weights"],
        "keys": f"{shared}.keys.json",
        "checkpoint_part": {"text_encoder": "text_encoder", "step": "unet", "step-control": "unet"}.get(name, "vae"),
        "precision": "fp16",
        "parameters": 72,
        "inputs": {key: _described(key, spec) for key, spec in inputs.items()},
        "outputs": {key: _described(key, spec) for key, spec in outputs.items()},
        "conversion": {
            "asked": "fp16",
            "nodes": 1,
            "float32": [{"reason": "range", "nodes": ["a"]}],
            "range": {"check": "quick", "limit": 1.0, "largest": 0.5, "node": "a", "beyond": {"b": 2.0}},
        },
        "lora": [{"name": "a.safetensors", "sha256": "0" * 64, "scale": 0.5}],
        **({"residuals_made": 1} if name.startswith("controlnet-") else {}),
    }


def _described(name: str, spec: TensorSpec) -> Manifest:
    dims = [f"{name}_{axis}" if dim is None else dim for axis, dim in enumerate(spec.dims)]
    return {"dtype": spec.dtype, "dims": dims}


def _entry(path: Path) -> Manifest:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _history(components: Manifest) -> Manifest:
    """The sections that nothing at run time acts on."""
    digest = {"a/model.safetensors": hashlib.sha256(b"a").hexdigest()}
    tools, created = {"latentrt": "0.1.0", "onnx": "1.0"}, "2026-01-01T00:00:00+00:00"
    layer = {"name": "a", "op": "Conv", "weight": "w", "parameters": 8, "work_macs": 8, "sqnr_db": 30.0}
    layer |= {"output_sqnr_db": None, "precision": "int8", "reason": None}
    quantised = {
        "quantised": ["a"],
        "float": [{"reason": "rule", "operators": ["b"]}],
        "calls": [1, 2],
        "tensors": {"x": {"layer": "a", "range": 1.0, "largest": [1.0, 2.0], "smooth": None}},
        "layers": [layer],
        "budget": {
            "returned": ["a"],
            "held": True,
            "sqnr_db": {"before": 1.0, "after": 2.0},
            "bytes": {"before": 1, "after": 2},
            "work_returned": 0.5,
        },
    }
    judged = {"subject": "step", "case": "a", "backend": "onnxruntime", "value": 40.0, "limit": 30.0, "unit": "dB"}
    judged |= {"higher_is_better": True, "series": [1.0], "passed": True}
    evaluation = {"negative": "", "size": [64, 64], "steps": 4, "guidance": 7.5, "sampler": "euler", "seed": 0}
    return {
        "provenance": {
            "checkpoint": {"source": "a", "sha256": digest},
            "tools": tools,
            "opset": 23,
            "created": created,
            "derived_from": {"manifest": "0" * 64, "tools": tools, "created": created},
        },
        "controlnets": {"edges": {"source": "a", "sha256": digest}},
        "calibration": {
            "policy": {
                "precision": {"step": "int8"},
                "ranges": "mse",
                "alpha": 0.5,
                "alphas_tried": None,
                "min_sqnr": 2.0,
            },
            "recipe": {"seed": 0, "sizes": [[64, 64]]},
            "tools": tools,
            "components": {"step": quantised},
            "exam": {**evaluation, "min_sqnr": 30.0, "min_psnr": None},
            "judged": [judged],
        },
        "parity": [
            {"component": name, "case": "a", "backend": "onnxruntime", "worst": 1e-6, "limit": 1e-4, "passed": True}
            for name in components
        ],
    }


def _engine(root: Path) -> None:
    """A record of an engine for the step, beside a plan that is none."""
    shapes = {"state": (1, 4, 4, 8, 8)}
    record = EngineRecord(
        component="step",
        graph="0",
        variant="tensorrt-rtx",
        version="1.7",
        gpus=("sm89", "sm80+"),
        precision="fp16",
        options={"size": "64x64"},
        profile=Profile(min=shapes, opt=shapes, max=shapes),
        plan_bytes=4,
        plan_sha256="0" * 64,
        weights_bytes=8,
        activation_bytes=None,
        layers=3,
        types={"float32": 3},
        seconds=1.5,
        products=("float16",),
        io={"state": "float32"},
    )
    folder = root / "engines" / "tensorrt-rtx" / "0"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(record.to_json())
    (folder / PLAN).write_bytes(b"plan")
