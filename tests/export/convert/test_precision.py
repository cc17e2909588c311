"""From a float32 bundle to a 16-bit one: what is written, what an interruption leaves, what is refused, and the
cure of overflow."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphs import stated_types, type_errors

import latentrt
from latentrt import BackendError, Bundle, BundleError, RequestError
from latentrt.backends import open_engine
from latentrt.bundle import sha256_file
from latentrt.cli import main
from latentrt.cli.arguments import Parser
from latentrt.cli.console import Console
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.cli import convert as cli_convert
from latentrt.export.convert import precision
from latentrt.export.convert.half_policy import ALGEBRA, FLOAT32_RULES, RANGE
from latentrt.export.convert.precision import convert_bundle, parse_precision
from latentrt.export.graphs.modules.vae import Decoder
from latentrt.export.parity.metrics import signal_to_noise_db
from latentrt.export.passes.storage import load_graph, save_graph
from latentrt.export.staging import ExportProgress
from latentrt.names import DeviceName

GRAPHS = ("text_encoder", "step", "decoder", "encoder")
ELEMENT = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
SMALL = {"decoder": "fp16", "encoder": "fp16"}  # the rest is copied


@pytest.fixture(params=ELEMENT)
def converted(request: pytest.FixtureRequest) -> tuple[str, Bundle]:
    return request.param, Bundle.open(request.getfixturevalue(f"shapes_{request.param}"))


def load(bundle: Bundle, name: str) -> onnx.ModelProto:
    return onnx.load(bundle.component(name).graph.path, load_external_data=False)


def test_a_converted_bundle_is_whole(converted: tuple[str, Bundle], shapes_bundle: Path):
    kind, bundle = converted
    bundle.verify()
    present = {str(p.relative_to(bundle.root)) for p in bundle.root.rglob("*") if p.is_file()}
    assert {name for name in present if not name.startswith("engines/")} == {*bundle.manifest["files"], "bundle.json"}
    assert not list(bundle.root.parent.glob("*.part"))
    assert {part.precision for part in bundle.components.values()} == {kind}
    assert bundle.manifest["parity"] == []
    assert bundle.manifest["provenance"]["derived_from"]["manifest"] == sha256_file(shapes_bundle / "bundle.json")


@pytest.mark.parametrize("name", GRAPHS)
def test_inputs_outputs_and_names_of_weights_are_those_of_float32(
    name: str, converted: tuple[str, Bundle], shapes_bundle: Path
):
    _, bundle = converted
    source = Bundle.open(shapes_bundle)
    old, new = source.manifest["components"][name], bundle.manifest["components"][name]
    assert (new["inputs"], new["outputs"], new["parameters"]) == (old["inputs"], old["outputs"], old["parameters"])
    before, after = load(source, name).graph, load(bundle, name).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    keys = json.loads((bundle.root / new["keys"]).read_text())
    assert keys.keys() <= {tensor.name for tensor in after.initializer}
    assert json.loads((source.root / old["keys"]).read_text()).items() <= keys.items()


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graph_is_strongly_typed_and_as_the_manifest_says(name: str, converted: tuple[str, Bundle]):
    kind, bundle = converted
    model = load(bundle, name)
    onnx.checker.check_model(str(bundle.component(name).graph.path))
    assert type_errors(model) == []
    types = stated_types(model)
    conversion = bundle.manifest["components"][name]["conversion"]
    float32 = {node for group in conversion["float32"] for node in group["nodes"]}
    half = 0
    for node in model.graph.node:
        touched = {types[value] for value in (*node.input, *node.output) if value}
        if node.op_type == "Cast" and "/Cast_" in node.name:
            assert touched == {onnx.TensorProto.FLOAT, ELEMENT[kind]}
        elif node.name in float32:
            assert ELEMENT[kind] not in touched, node.name
        elif ELEMENT[kind] in touched and node.op_type != "Shape":
            half += 1
            assert onnx.TensorProto.FLOAT not in {types[value] for value in node.output}, node.name
    assert half == conversion["nodes"] > 60


def test_only_the_algebra_and_the_timestep_are_float32(converted: tuple[str, Bundle]):
    _, bundle = converted
    for name, row in bundle.manifest["components"].items():
        groups = {group["reason"]: group["nodes"] for group in row["conversion"]["float32"]}
        steps = {kept.reason for kept in FLOAT32_RULES if not kept.reason.startswith("T5")}
        assert groups.keys() == ({ALGEBRA, *steps} if name == "step" else {ALGEBRA})
        assert all(node.startswith("/") for node in groups[ALGEBRA])
    step = {g["reason"]: g["nodes"] for g in bundle.manifest["components"]["step"]["conversion"]["float32"]}
    angles = next(kept.reason for kept in FLOAT32_RULES if fnmatchcase("time_proj/Sin", kept.pattern))
    assert {"time_proj/Sin", "time_proj/Cos"} < set(step[angles])
    assert {"/ReduceSum_1", "/Sqrt", "/Div"} < set(step[ALGEBRA])


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_are_half_of_float32_and_rounded_once(name: str, converted: tuple[str, Bundle], shapes_bundle: Path):
    kind, bundle = converted
    whole = Bundle.open(shapes_bundle).component(name).graph.widened_bytes
    assert 0.49 < (bundle.root / f"{name}.weights").stat().st_size / whole < 0.51
    dtype = onnx.helper.tensor_dtype_to_np_dtype(ELEMENT[kind])
    before = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(shapes_bundle / f"{name}.onnx").graph.initializer
    }
    compared = 0
    for tensor in onnx.load(bundle.root / f"{name}.onnx").graph.initializer:
        if tensor.data_type == ELEMENT[kind]:
            expected = before[tensor.name.removesuffix(f".{kind}")].astype(dtype)
            assert onnx.numpy_helper.to_array(tensor).tobytes() == expected.tobytes(), tensor.name
            compared += 1
    assert compared > 40


def test_the_range_check_is_written_down(shapes_fp16: Path, shapes_bf16: Path):
    rows = Bundle.open(shapes_fp16).manifest["components"]
    for name, row in rows.items():
        found = row["conversion"]["range"]
        assert (found["check"], found["limit"], found["beyond"]) == ("quick", 32752.0, {})
        assert 1 < found["largest"] < 32752
        assert found["node"] not in {n for group in row["conversion"]["float32"] for n in group["nodes"]}, name
    assert all(row["conversion"]["range"] is None for row in Bundle.open(shapes_bf16).manifest["components"].values())


def test_the_same_bundle_gives_the_same_bytes(shapes_bundle: Path, shapes_fp16: Path, tmp_path: Path):
    names = dict.fromkeys(GRAPHS, "fp16")
    again = convert_bundle(Bundle.open(shapes_bundle), tmp_path / "again", precision=names)
    assert again.manifest["files"] == Bundle.open(shapes_fp16).manifest["files"]


def test_components_can_differ_and_the_others_are_copied(shapes_bundle: Path, tmp_path: Path):
    source = Bundle.open(shapes_bundle)
    bundle = convert_bundle(
        source, tmp_path / "mixed", precision={"encoder": "fp16", "decoder": "bf16"}, range_check="none"
    )
    bundle.verify()
    found = {name: part.precision for name, part in bundle.components.items()}
    assert found == {"text_encoder": "fp32", "step": "fp32", "decoder": "bf16", "encoder": "fp16"}
    for name in ("step.onnx", "step.weights", "tokenizer/tokenizer.json"):
        assert bundle.manifest["files"][name] == source.manifest["files"][name]
    assert {row["component"] for row in bundle.manifest["parity"]} == {"text_encoder", "step"}
    assert bundle.manifest["components"]["encoder"]["conversion"]["range"] is None


def test_an_interrupted_conversion_continues_with_what_is_missing(
    shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, output = Bundle.open(shapes_bundle), tmp_path / "bundle"
    checks = []
    measured = precision.measure
    monkeypatch.setattr(precision, "measure", lambda *a, **k: checks.append(1) or measured(*a, **k))

    def stop_at_encoder(event: ExportProgress) -> None:
        if event.component == "encoder":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_bundle(source, output, precision=SMALL, progress=stop_at_encoder)
    assert not output.exists()
    staging = tmp_path / "bundle.part"
    assert not (staging / "bundle.json").exists()
    (staging / ".encoder.weights.abc").mkdir()  # what a killed writer leaves

    decoder = (staging / "decoder.weights").stat().st_mtime_ns
    events: list[ExportProgress] = []
    bundle = convert_bundle(source, output, precision=SMALL, progress=events.append)
    resumed = {e.component: e.resumed for e in events if e.seconds is not None}
    assert resumed == {"text_encoder": True, "step": True, "decoder": True, "encoder": False}
    assert (output / "decoder.weights").stat().st_mtime_ns == decoder
    assert len(checks) == 1
    assert sorted(path.name for path in output.iterdir()) == sorted({*bundle.manifest["files"], "bundle.json"} - {
        "tokenizer/tokenizer.json"} | {"tokenizer"})  # fmt: skip
    bundle.verify()


def test_other_options_are_not_continued(shapes_bundle: Path, tmp_path: Path):
    source, output = Bundle.open(shapes_bundle), tmp_path / "bundle"

    def stop(event: ExportProgress) -> None:
        if event.component == "encoder":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_bundle(source, output, precision=SMALL, range_check="none", progress=stop)
    events: list[ExportProgress] = []
    bundle = convert_bundle(source, output, precision={"decoder": "bf16"}, progress=events.append)
    assert not any(event.resumed for event in events)
    assert bundle.component("decoder").precision == "bf16"


@pytest.mark.parametrize(
    ("arguments", "error", "found"),
    [
        ({"precision": {"decoder": "fp8"}}, RequestError, "precision 'fp8'"),
        ({"precision": {"unet": "fp16"}}, BundleError, "no component 'unet'"),
        ({"precision": {"decoder": "fp32"}}, RequestError, "all components stay float32"),
        ({"precision": {}}, RequestError, "all components stay float32"),
        ({"precision": SMALL, "range_check": "some"}, RequestError, "range check 'some'"),
    ],
)
def test_what_cannot_be_converted_is_refused(arguments: dict, error: type, found: str, shapes_bundle, tmp_path):
    with pytest.raises(error, match=found):
        convert_bundle(Bundle.open(shapes_bundle), tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_bundles_are_not_harmed(shapes_bundle: Path, shapes_fp16: Path, tmp_path: Path):
    source, half = Bundle.open(shapes_bundle), Bundle.open(shapes_fp16)
    with pytest.raises(BundleError, match=r"decoder of .* is fp16 already"):
        convert_bundle(half, tmp_path / "out", precision={"decoder": "bf16"})
    with pytest.raises(RequestError, match="is the bundle itself"):
        convert_bundle(source, shapes_bundle, precision=SMALL, overwrite=True)
    with pytest.raises(BundleError, match="already"):
        convert_bundle(source, shapes_fp16, precision=SMALL)
    (tmp_path / "notes").mkdir()
    with pytest.raises(BundleError, match="is no bundle"):
        convert_bundle(source, tmp_path / "notes", precision=SMALL, overwrite=True)
    source.verify()
    half.verify()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fp16", {"a": "fp16", "b": "fp16"}),
        ("b=bf16", {"b": "bf16"}),
        ("a=fp16, b=fp32", {"a": "fp16", "b": "fp32"}),
        ("fp17", "precision 'fp17'"),
        ("c=fp16", "component 'c'"),
        ("a=", "precision ''"),
        ("", "precision ''"),
    ],
)
def test_precisions_are_parsed(text: str, expected: dict[str, str] | str):
    if isinstance(expected, dict):
        assert parse_precision(text, ("a", "b")) == expected
    else:
        with pytest.raises(RequestError, match=expected):
            parse_precision(text, ("a", "b"))


def convert(*arguments: object) -> tuple[int, str]:
    """The command, without looking it up among those installed."""
    parser, out = Parser(), io.StringIO()
    cli_convert.configure(parser)
    options = parser.parse_args([str(argument) for argument in arguments])
    return cli_convert.run(options, Console(json=options.output.name.endswith("json"), out=out)), out.getvalue()


def test_the_command_says_what_it_did(shapes_bundle: Path, tmp_path: Path):
    common = ("--precision", "decoder=fp16", "--range-check", "none")
    code, text = convert(shapes_bundle, "-o", tmp_path / "text", *common)
    assert code == 0
    rows = [line.split() for line in text.splitlines()]
    assert ["decoder", "fp16", "105", "8", "not", "checked"] in rows
    assert ["step", "fp32"] in rows
    code, text = convert(shapes_bundle, "-o", tmp_path / "json", *common)
    document = json.loads(text)
    assert document["bundle"] == str(tmp_path / "json")
    assert document["bytes"] == sum(e["bytes"] for e in Bundle.open(tmp_path / "json").manifest["files"].values())
    assert document["components"]["decoder"]["conversion"]["nodes"] == 105
    assert document["components"]["step"] == {"precision": "fp32", "conversion": None}


def test_the_command_needs_no_torch(shapes_bundle: Path, tmp_path: Path):
    script = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "diffusers", "transformers", "onnxscript", "safetensors", "scipy"]))
from latentrt.cli.arguments import Parser
from latentrt.cli.console import Console
from latentrt.environment.requirement import check_requirements
from latentrt.export.cli.convert import CONVERT
parser = Parser()
CONVERT.configure(parser)
check_requirements("convert", CONVERT.requires)
assert not {{"onnx", "onnxruntime"}} & set(sys.modules)
words = [{str(shapes_bundle)!r}, "-o", {str(tmp_path / "out")!r}, "--precision", "decoder=fp16", "--threads", "1"]
sys.exit(CONVERT.run(parser.parse_args(words), Console()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Bundle.open(tmp_path / "out").component("decoder").precision == "fp16"


# The cure of overflow: a convolution's output is scaled by a power of two beyond what fp16 holds, and the norm
# behind it takes the scale out again, so that the picture stays as it was.

BLOCK = "up_blocks.1.resnets.0"
SCALE = 2.0**14


@pytest.fixture(scope="module")
def overflowing(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("overflow") / "bundle"
    shutil.copytree(shapes_bundle, root, ignore=shutil.ignore_patterns("engines"))
    edit_weights(root, "decoder", lambda name, x: x * SCALE if f"{BLOCK}.conv1." in name else x)
    return Bundle.open(root)


def edit_weights(root: Path, component: str, change: Callable[[str, Any], Any]) -> None:
    path = root / f"{component}.onnx"
    model = load_graph(path)
    for name, value in model.graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT:
            array = np.ascontiguousarray(change(name, value.const_value.numpy()), np.float32)
            value.const_value = ir.tensor(array, name=name)
    save_graph(model, path)
    manifest = json.loads((root / "bundle.json").read_text())
    for name in (f"{component}.onnx", f"{component}.weights"):
        manifest["files"][name] = {"bytes": (root / name).stat().st_size, "sha256": sha256_file(root / name)}
    (root / "bundle.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def latent(shapes_bundle: Path) -> np.ndarray:
    """One that the model makes: the range check has seen its like."""
    with latentrt.load(shapes_bundle, backend="onnxruntime") as pipe:
        request = latentrt.Request("a red circle on a white background", seed=3, steps=4, size=(64, 64))
        *_, last = (step.latent() for step in pipe.steps(request))
    return last


def decode(bundle: Bundle, latent: np.ndarray) -> np.ndarray:
    with open_engine(bundle.component("decoder").graph, backend="onnxruntime") as engine:
        return np.asarray(engine.run({"latent": latent})["image"])


@pytest.mark.parametrize("name", ["text_encoder", "step", "decoder"])
def test_onnxruntime_lacks_kernels_of_every_bf16_graph_and_loading_says_so(name: str, shapes_bf16: Path):
    """Asked past the check, it fails by itself: once it does not, the table of backends is out of date."""
    graph = Bundle.open(shapes_bf16).component(name).graph
    with pytest.raises(RequestError, match=f"onnxruntime cannot run {name} in bf16 on the CPU"):
        open_engine(graph, backend="onnxruntime")
    shapes = {tensor: tuple(n if n is not None else 8 for n in spec.dims) for tensor, spec in graph.inputs.items()}
    with (
        open_engine(replace(graph, precision=None), backend="onnxruntime") as engine,
        pytest.raises(BackendError, match="Could not find an implementation"),
    ):
        engine.prepare(shapes)


@pytest.mark.parametrize(("device", "place"), [(None, "the CPU"), ("cuda", "CUDA")])
@pytest.mark.compatibility(kind="bundle", what="bf16, with onnxruntime on the CPU or CUDA",
                           recognised="its precision", outcome="refused")  # fmt: skip
def test_a_bundle_with_one_graph_in_bf16_is_refused_when_it_is_loaded(
    shapes_bf16: Path, device: DeviceName | None, place: str, capsys: pytest.CaptureFixture[str]
):
    said = f"onnxruntime cannot run text_encoder, step, decoder in bf16 on {place}"
    with pytest.raises(RequestError, match=said):
        latentrt.load(shapes_bf16, backend="onnxruntime", device=device)
    assert main(["inspect", str(shapes_bf16)]) == 0
    assert f"limits      {said}" in capsys.readouterr().out


def test_what_overflows_is_named_and_stays_float32(overflowing: Bundle, latent, shapes_bundle: Path, tmp_path: Path):
    expected = decode(Bundle.open(shapes_bundle), latent)
    assert signal_to_noise_db(decode(overflowing, latent), expected) > 60

    bundle = convert_bundle(overflowing, tmp_path / "cured", precision={"decoder": "fp16"})
    conversion = bundle.manifest["components"]["decoder"]["conversion"]
    named = {f"decoder.{BLOCK}.conv1/Conv", f"decoder.{BLOCK}.norm2/GroupNormalization"}
    assert conversion["range"]["beyond"].keys() == named
    assert min(conversion["range"]["beyond"].values()) > 65504
    assert next(g["nodes"] for g in conversion["float32"] if g["reason"] == RANGE) == sorted(named)
    assert conversion["range"]["largest"] < conversion["range"]["limit"]

    model = load(bundle, "decoder")  # a CPU run would hide the overflow: what counts is the types
    types = stated_types(model)
    assert type_errors(model) == []
    (conv,) = (node for node in model.graph.node if node.name == f"decoder.{BLOCK}.conv1/Conv")
    (norm,) = (node for node in model.graph.node if node.name == f"decoder.{BLOCK}.norm2/GroupNormalization")
    assert norm.input[0] == conv.output[0]
    assert {types[name] for node in (conv, norm) for name in (*node.input, *node.output)} == {onnx.TensorProto.FLOAT}
    assert signal_to_noise_db(decode(bundle, latent), expected) > 45


def test_without_the_cure_it_does_overflow(overflowing: Bundle, latent, shapes_checkpoint: Path, tmp_path: Path):
    """torch in half precision rounds and overflows at every operator, as a GPU does: its picture is lost. And
    without the check the graph has the same fault."""
    decoder = Decoder(Checkpoint.open(shapes_checkpoint).vae()).half()
    fine = decoder(torch.from_numpy(latent).half())
    assert signal_to_noise_db(fine.numpy(), decode(overflowing, latent)) > 40
    for name, parameter in decoder.named_parameters():
        if f"{BLOCK}.conv1." in name:
            parameter.data *= SCALE
            assert parameter.isfinite().all()
    with torch.no_grad():
        lost = decoder.decoder(decoder.post_quant_conv(decoder.affine.to_vae(torch.from_numpy(latent).half())))
    assert not lost.isfinite().any()

    bundle = convert_bundle(overflowing, tmp_path / "none", precision={"decoder": "fp16"}, range_check="none")
    types = stated_types(model := load(bundle, "decoder"))
    (conv,) = (node for node in model.graph.node if node.name == f"decoder.{BLOCK}.conv1/Conv")
    assert types[conv.output[0]] == onnx.TensorProto.FLOAT16


def test_bf16_holds_what_fp16_does_not(overflowing: Bundle, tmp_path: Path):
    bundle = convert_bundle(overflowing, tmp_path / "bf16", precision={"decoder": "bf16"})
    conversion = bundle.manifest["components"]["decoder"]["conversion"]
    assert [group["reason"] for group in conversion["float32"]] == [ALGEBRA]


# And where the whole residual stream of the decoder is scaled so, the norms before each branch and behind the stream
# take the scale out.

STREAM = (
    "conv_in.weight",
    "conv2.weight",
    "conv_in.bias",
    "conv2.bias",
    "conv_shortcut.bias",
    "upsamplers.0.conv.bias",
)


def test_a_component_that_is_mostly_too_large_for_fp16_becomes_bf16(shapes_bundle: Path, latent, tmp_path: Path):
    source = shutil.copytree(shapes_bundle, tmp_path / "source", ignore=shutil.ignore_patterns("engines"))
    edit_weights(source, "decoder", lambda name, x: x * 2.0**18 if name.endswith(STREAM) else x)
    expected = decode(Bundle.open(shapes_bundle), latent)
    assert signal_to_noise_db(decode(Bundle.open(source), latent), expected) > 60

    code, text = convert(source, "-o", tmp_path / "out", "--precision", "fp16")
    assert code == 0
    assert re.search("decoder: .*too large for fp16.*bf16", text)
    bundle = Bundle.open(tmp_path / "out")
    assert {name: part.precision for name, part in bundle.components.items()} == {
        "text_encoder": "fp16",
        "step": "fp16",
        "decoder": "bf16",
        "encoder": "fp16",
    }
    conversion = bundle.manifest["components"]["decoder"]["conversion"]
    assert conversion["asked"] == "fp16"
    assert len(conversion["range"]["beyond"]) > conversion["nodes"] / 4
    assert [group["reason"] for group in conversion["float32"]] == [ALGEBRA]
    assert type_errors(load(bundle, "decoder")) == []
    with open_engine(bundle.component("decoder").graph, backend="openvino") as engine:
        assert signal_to_noise_db(np.asarray(engine.run({"latent": latent})["image"]), expected) > 33

    few = convert_bundle(Bundle.open(source), tmp_path / "unchecked", precision={"decoder": "fp16"}, range_check="none")
    assert few.component("decoder").precision == "fp16"  # without the check nobody knows


def test_the_command_names_the_nodes(overflowing: Bundle, tmp_path: Path):
    code, text = convert(overflowing.root, "-o", tmp_path / "out", "--precision", "decoder=fp16")
    assert code == 0
    assert "decoder: 2 nodes reach beyond 32752" in text
    assert f"  decoder.{BLOCK}.conv1/Conv  " in text
    assert "--precision decoder=bf16" in text
