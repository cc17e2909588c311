"""Real engines of real graphs, compiled by TensorRT for RTX on whatever machine runs the tests; no GPU is needed.

Sizes are the smallest that the model has: compiling takes as long for any, and the step's graph takes most of it.
"""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from lora_files import TEXT_ENCODER, random_layers, write_lora

from latentrt import BackendError, Bundle, BundleError, EnvironmentLacks, Lora, RequestError
from latentrt.backends.tensorrt.records import PLAN, RECORD, EngineRecord, built_engines
from latentrt.bundle import Component
from latentrt.cli import main
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.cli.build import sizes, span
from latentrt.export.engines import build, compiler
from latentrt.export.engines.build import BuildProgress, FinishedEngine, build_engines
from latentrt.export.engines.cards import CARDS, architecture
from latentrt.export.engines.compiler import parse
from latentrt.export.engines.prune import prune_engines
from latentrt.export.engines.ranges import Ranges, profile
from latentrt.export.engines.targets import asked_targets
from latentrt.export.engines.variants import (
    VARIANTS,
    Variant,
    open_toolkit,
    variant,
)
from latentrt.graph import GraphFile, TensorSpec
from latentrt.lora import merge

RTX = variant("tensorrt-rtx")
pytestmark = pytest.mark.skipif(not RTX.installed(), reason="TensorRT for RTX has wheels for x86-64 Linux and Windows")

SIZE = "64x64..64x96"


@pytest.fixture(scope="module")
def bundle(shapes_bundle: Path) -> Bundle:
    return Bundle.open(shapes_bundle)


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All engines of the float32 bundle, for the default GPUs."""
    output = tmp_path_factory.mktemp("engines")
    build_engines(bundle, backend="tensorrt-rtx", folder=output, ranges=ranges(bundle))
    return output


def ranges(bundle: Bundle, **changes) -> Ranges:
    return Ranges.of(bundle.family, **{"size": sizes(SIZE), "batch": span("1..2"), **changes})


def built(folder: Path) -> dict[str, EngineRecord]:
    return {engine.record.component: engine.record for engine in built_engines(folder, "tensorrt-rtx")}


def some(bundle: Bundle, folder: Path, *components: str, **changes) -> list[FinishedEngine]:
    asked = {"backend": "tensorrt-rtx", "ranges": ranges(bundle), "gpus": ["sm80+"], **changes}
    return build_engines(bundle, folder=folder, components=components, **asked)


@pytest.mark.parametrize("name", ["text_encoder", "step", "decoder", "encoder"])
def test_a_plan_and_its_record_tell_the_same(name: str, bundle: Bundle, folder: Path):
    (engine,) = [e for e in built_engines(folder, "tensorrt-rtx") if e.record.component == name]
    record, component = engine.record, bundle.component(name)
    data = engine.plan.read_bytes()
    assert (record.plan_bytes, record.plan_sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (record.variant, record.version) == ("tensorrt-rtx", open_toolkit(RTX).version)
    assert record.gpus == ("sm80+",)
    assert (record.graph, record.precision) == (component.graph.digest, "fp32")
    specs = {**component.graph.inputs, **component.graph.outputs}
    assert record.io == {tensor: spec.dtype for tensor, spec in specs.items()}
    assert record.profile == profile(component, ranges(bundle).lengths(bundle.family))
    assert set(record.types) <= {"float32", "int32", "int64", "uint8", "bool", "float16"}  # the last: stored weights
    assert record.products in ((), ("float32",))
    assert record.layers > 100
    assert record.plan_bytes > record.weights_bytes
    assert record.weights_bytes == pytest.approx(4 * component.parameters, rel=0.02)  # constants and alignment
    largest = max(np.prod(shape) for shape in record.profile.max.values())
    assert record.activation_bytes > 4 * largest


def test_activations_grow_with_the_largest_size(bundle: Bundle, folder: Path, tmp_path: Path):
    (large,) = some(bundle, tmp_path, "decoder", ranges=ranges(bundle, size=sizes("64x64..128x192")))
    small = built(folder)["decoder"]
    assert large.record.weights_bytes == small.weights_bytes
    more = 2 * (128 * 192 - 64 * 96)  # pixels of a batch of two; the last block has 16 channels for each
    assert large.record.activation_bytes > small.activation_bytes + 4 * 16 * more


def test_a_second_build_does_nothing(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(build, "parse", None)  # not even reading the graphs
    events: list[BuildProgress] = []
    engines = build_engines(
        bundle, backend="tensorrt-rtx", folder=folder, ranges=ranges(bundle), progress=events.append
    )
    assert [engine.reused for engine in engines] == [True] * 4
    assert [(event.component, event.reused) for event in events] == [(name, True) for name in bundle.components]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_changed_size_builds_only_what_depends_on_it(bundle: Bundle, folder: Path):
    wider = ranges(bundle, size=sizes("64x64..96x96"))
    engines = some(bundle, folder, "text_encoder", "encoder", gpus=None, ranges=wider)
    assert {engine.record.component: engine.reused for engine in engines} == {"text_encoder": True, "encoder": False}
    assert engines[1].record.options == {"size": "64x64..96x96", "batch": "1..2"}
    again = some(bundle, folder, "encoder")  # the other one is still there
    assert again[0].reused


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda c: replace(c, graph=replace(c.graph, digest="0" * 64)), id="graph"),
        pytest.param(None, id="weight streaming"),
    ],
)
def test_a_changed_graph_or_option_is_another_engine(change, bundle: Bundle, folder: Path):
    if change is None:
        (engine,) = some(bundle, folder, "text_encoder", weight_streaming=True)
        assert engine.record.options["weight_streaming"] == "on"
    else:
        changed = {**bundle.components, "text_encoder": change(bundle.component("text_encoder"))}
        (engine,) = some(replace(bundle, components=changed), folder, "text_encoder")
    assert not engine.reused
    assert some(bundle, folder, "text_encoder")[0].reused


def test_gpus_that_are_named_have_an_engine_of_their_own(bundle: Bundle, tmp_path: Path):
    """Float32 without matrix products exists on Turing: the small decoder has no attention."""
    named, turing = some(bundle, tmp_path, "decoder", gpus=["sm75", "sm120", "sm89"])
    assert (named.record.gpus, turing.record.gpus) == (("sm89", "sm120"), ("sm75",))
    assert named.folder != turing.folder
    assert turing.record.runs_on((7, 5))
    assert not named.record.runs_on((8, 6))
    with pytest.raises(Exception, match="sm75 has no float32 matrix products"):
        some(bundle, tmp_path, "text_encoder", "decoder", gpus=["sm75"])
    assert set(built(tmp_path)) == {"decoder"}


@pytest.fixture
def copied(bundle: Bundle, folder: Path, tmp_path: Path) -> FinishedEngine:
    """An engine of the text encoder alone, to be damaged."""
    (engine,) = some(bundle, folder, "text_encoder")
    return replace(engine, folder=shutil.copytree(engine.folder, tmp_path / engine.folder.relative_to(folder)))


@pytest.mark.parametrize("damage", ["no record", "half a record", "short plan", "no plan"])
def test_half_an_engine_is_built_again(damage: str, copied: FinishedEngine, bundle: Bundle, tmp_path: Path):
    engine = copied
    plan, record = engine.folder / PLAN, engine.folder / RECORD
    if damage == "no record":
        record.unlink()
    elif damage == "half a record":
        record.write_text(record.read_text()[:100])
    elif damage == "short plan":
        plan.write_bytes(plan.read_bytes()[:-1])
    else:
        plan.unlink()
    (engine.folder / ".latentrt-0.tmp").write_bytes(b"of a process that is gone")
    (again,) = some(bundle, tmp_path, "text_encoder")
    assert not again.reused
    assert sorted(path.name for path in engine.folder.iterdir()) == [RECORD, PLAN]
    assert some(bundle, tmp_path, "text_encoder")[0].reused


def command(bundle: Bundle, folder: Path, *components: str) -> list[str]:
    arguments = [
        "build",
        bundle.root,
        "--backend",
        "tensorrt-rtx",
        "--gpus",
        "sm80+",
        "--size",
        SIZE,
        "--batch",
        "1..2",
    ]
    return [*map(str, arguments), "--cache-dir", str(folder), "--components", ",".join(components)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_build_that_was_stopped_goes_on(number: signal.Signals, code: int, bundle: Bundle, tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "latentrt.cli", *command(bundle, tmp_path, "text_encoder", "step"), "--debug"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs
    )
    assert process.stderr is not None
    try:
        lines = until(process.stderr, "Compiler backend is used during engine build", count=2)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == code, rest
    finally:
        process.kill()
    assert any(line.startswith("text_encoder") for line in lines)
    if number == signal.SIGINT:
        assert rest.splitlines()[-1] == "latentrt: interrupted"
        assert not list(tmp_path.rglob(".latentrt-*"))
    assert set(built(tmp_path)) == {"text_encoder"}
    assert some(bundle, tmp_path, "text_encoder")[0].reused


def until(stream: Iterator[str], text: str, *, count: int) -> list[str]:
    """Lines up to the one that contains `text` for the `count`th time."""
    lines = []
    for line in stream:
        lines.append(line)
        count -= text in line
        if count == 0:
            break
    return lines


def test_the_command_needs_none_of_the_exporters_packages(bundle: Bundle, tmp_path: Path):
    code = (
        "import sys\nfrom latentrt.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'onnx', 'onnxruntime', 'openvino', 'scipy'}\n"
        "assert not heavy & set(sys.modules)\nsys.exit(code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *command(bundle, tmp_path, "text_encoder"), "--json"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)  # TensorRT says nothing on stdout
    (row,) = document["engines"]
    assert row["component"] == "text_encoder"
    assert row["gpus"] == ["sm80+"]
    assert row["kept"] is False
    assert row["bytes"] == (Path(row["folder"]) / PLAN).stat().st_size
    assert run.stderr.splitlines()[-1].startswith("text_encoder")


def test_what_a_lora_needs_besides_is_named(bundle: Bundle, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("latentrt.environment.requirement.importlib.util.find_spec", lambda name: None)
    assert main([*command(bundle, tmp_path, "text_encoder"), "--lora", "style.safetensors"]) == 3
    said = capsys.readouterr().err
    assert "onnx_ir" in said and "convert" in said


def test_engines_lie_in_the_bundle_and_are_no_part_of_it(bundle: Bundle, folder: Path, tmp_path: Path, capsys):
    root = shutil.copytree(bundle.root, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    arguments = ["build", str(root), "--backend", "tensorrt-rtx", "--components", "text_encoder", "--batch", "1..2"]
    assert main(arguments) == 0
    assert f"{root / 'engines'}: 1 engine built in" in capsys.readouterr().out
    assert main(arguments) == 0
    assert f"{root / 'engines'}: nothing to build, 1 engine there" in capsys.readouterr().out
    assert built(root / "engines")["text_encoder"].profile == built(folder)["text_encoder"].profile
    Bundle.open(root).verify()
    assert Bundle.open(root).manifest == bundle.manifest


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--gpus", "sm90"], 2, "expected some of sm75 sm80 sm86 sm89 sm120 sm121, or sm80+"),
        (["--gpus", "sm75"], 2, "sm75 has no float32 matrix products (sm80 and later): see text_encoder, step;"),
        (["--components", "unet"], 2, "component 'unet'; expected some of text_encoder, step, decoder, encoder"),
        (["--size", "100x100"], 2, "width is 100 px"),
        (["--batch", "two"], 2, "'two'; expected a whole number, or a range such as 1..4"),
        (["--cache-dir", "/proc/nothing"], 3, "choose another folder with --cache-dir"),
        (["--backend", "openvino"], 2, "expected tensorrt-rtx or tensorrt"),
    ],
)
def test_bad_input_has_one_line_and_an_exit_code(arguments, code: int, message: str, bundle: Bundle, tmp_path, capsys):
    default = ["build", str(bundle.root), "--backend", "tensorrt-rtx", "--cache-dir", str(tmp_path)]
    assert main([*default, *arguments]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.plan"))


def graph(path: Path, nodes: list[onnx.NodeProto], *, inputs: dict[str, int]) -> Component:
    """A component of one graph over vectors of four values; the manifest says that all is float32."""
    values = [onnx.helper.make_tensor_value_info(name, kind, ["B", 4]) for name, kind in inputs.items()]
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B", 4])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", values, [out]),
        opset_imports=[onnx.helper.make_opsetid("", 23)],
        ir_version=10,
    )
    path.write_bytes(model.SerializeToString())
    spec = TensorSpec("float32", (None, 4))
    file = GraphFile("step", path=path, inputs=dict.fromkeys(inputs, spec), outputs={"y": spec}, digest="0")
    return Component(name="step", precision="fp32", parameters=0, graph=file, dims=dict.fromkeys(inputs, ("B", 4)))


FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("node", "inputs", "parts"),
    [
        (
            onnx.helper.make_node("Add", ["a", "b"], ["y"], name="time_embed/Add"),
            {"a": FLOAT, "b": HALF},
            ["'time_embed/Add' (Add)", "types Float and Half", "[a -> (-1, 4)[FLOAT]], [b -> (-1, 4)[HALF]]"],
        ),
        (
            onnx.helper.make_node("Sort", ["a"], ["y"], name="mid/Sort"),
            {"a": FLOAT},
            ["'mid/Sort' (Sort)", "Plugin not found"],
        ),
    ],
)
def test_a_graph_that_does_not_parse_names_node_and_types(node, inputs, parts, tmp_path: Path):
    with pytest.raises(BackendError) as raised:
        parse(open_toolkit(RTX), graph(tmp_path / "step.onnx", [node], inputs=inputs))
    for part in ("does not take the graph of step at node", *parts, "export or convert the bundle again"):
        assert part in str(raised.value)
    for noise in ("driver", "/_src/", ".cpp", "\n"):
        assert noise not in str(raised.value)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path):
    path = tmp_path / "step.onnx"
    component = graph(path, [onnx.helper.make_node("Abs", ["a"], ["y"])], inputs={"a": FLOAT})
    path.write_bytes(b"not a graph" * 20)
    with pytest.raises(BackendError, match=r"graph of step: .*Failed to parse"):
        parse(open_toolkit(RTX), component)


def test_a_graph_with_other_types_than_promised_is_refused(tmp_path: Path):
    node = onnx.helper.make_node("Cast", ["a"], ["y"], to=FLOAT)
    with pytest.raises(BundleError, match=r"a float16.*a float32"):
        parse(open_toolkit(RTX), graph(tmp_path / "step.onnx", [node], inputs={"a": HALF}))


def test_a_graph_that_does_not_compile_says_why(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Attention in float32 has no fused kernel: without leave to take it apart the compiler gives up."""
    monkeypatch.setattr(compiler, "_allow_any_attention", lambda trt, layer: None)
    with pytest.raises(BackendError, match=r"cannot compile text_encoder: .*Attention"):
        some(bundle, tmp_path, "text_encoder")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_says_so_and_leaves_nothing_that_looks_finished(
    copied: FinishedEngine, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = copied
    for path in engine.folder.iterdir():
        path.unlink()
    monkeypatch.setattr("latentrt.files.atomic.secrets.token_hex", lambda _: "full")
    full = lambda folder: (folder / ".latentrt-full.tmp").symlink_to("/dev/full")  # noqa: E731
    monkeypatch.setattr("latentrt.export.engines.build.remove_parts", full)
    with pytest.raises(EnvironmentLacks, match=r"disk of .* is full .*same command again"):
        some(bundle, tmp_path, "text_encoder")
    assert list(engine.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *[("rtx4090", "sm89"), ("RTX 4070 Ti SUPER", "sm89"), ("NVIDIA GeForce RTX 3090", "sm86"), ("T4", "sm75")],
        *[("Tesla-T4", "sm75"), ("NVIDIA A100-SXM4-80GB", "sm80"), ("l40s", "sm89"), ("L4", "sm89"), ("A10G", "sm86")],
        *[("NVIDIA RTX 6000 Ada Generation", "sm89"), ("Quadro RTX 6000", "sm75"), ("RTX A6000", "sm86")],
        *[("rtx5090", "sm120"), ("H100-PCIe", "sm90"), ("rtx2080ti", "sm75"), ("rtx3060-12gb", "sm86")],
        *[("sm89", "sm89"), ("sm80+", "sm80+"), ("rtx9999", "rtx9999"), ("", "")],
    ],
)
def test_a_card_stands_for_its_architecture(name, found):
    assert architecture(name) == found


def test_cards_are_asked_for_as_architectures_are():
    rtx = variant("tensorrt-rtx")
    assert asked_targets(["rtx4090", "sm120", "l40s", "t4"], rtx) == asked_targets(["sm75", "sm89", "sm120"], rtx)
    assert len(set(CARDS.values())) > 5
    with pytest.raises(RequestError, match=r"'h100'.*sm90.*sm75.*rtx4090"):
        asked_targets(["h100"], rtx)


def test_a_package_that_is_missing_names_its_extra():
    absent = replace(variant("tensorrt"), module="a_tensorrt_that_nobody_has")
    with pytest.raises(EnvironmentLacks, match=r"expected the extra .tensorrt.; .*pip install .*tensorrt"):
        open_toolkit(absent)


# The variant that builds on a GPU, exercised with the other one's module: what differs is no capability and a cache of
# timings. What its own module has under these names was compared by hand (docs/gpus.md).


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Variant:
    """`tensorrt` on a machine with an sm90."""
    row = replace(variant("tensorrt"), module="tensorrt_rtx")
    monkeypatch.setattr(build, "variant", lambda name: {"tensorrt": row}[name])
    gpu = SimpleNamespace(gpu=lambda: SimpleNamespace(architecture="sm90"))
    monkeypatch.setattr("latentrt.backends.cuda.api.open_cuda", lambda: gpu)
    return row


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_the_variant_that_builds_on_a_gpu_builds_for_that_one(local: Variant, bundle: Bundle, tmp_path: Path):
    (engine,) = some(bundle, tmp_path, "text_encoder", backend="tensorrt", gpus=None)
    assert (engine.record.gpus, engine.record.variant) == (("sm90",), "tensorrt")
    assert engine.folder.parent == tmp_path / "tensorrt"
    timings = tmp_path / "tensorrt" / "timing.cache"
    assert timings.stat().st_size > 0
    timings.write_bytes(b"of another version")  # not taken, and no reason to stop
    (other,) = some(bundle, tmp_path, "text_encoder", backend="tensorrt", gpus=["sm90"], weight_streaming=True)
    assert not other.reused
    with pytest.raises(Exception, match=r"sm89 .*sm90"):
        some(bundle, tmp_path, "text_encoder", backend="tensorrt", gpus=["sm89"])


def test_without_a_gpu_it_says_what_builds_without_one(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def none() -> None:
        raise EnvironmentLacks("no NVIDIA driver is installed")

    monkeypatch.setattr(build, "variant", lambda name: replace(VARIANTS[1], module="tensorrt_rtx"))
    monkeypatch.setattr("latentrt.backends.cuda.api.open_cuda", none)
    with pytest.raises(EnvironmentLacks, match=r"no NVIDIA driver.*tensorrt-rtx"):
        some(bundle, tmp_path, "text_encoder", backend="tensorrt", gpus=None)


def test_engines_with_a_lora_hold_its_weights_and_are_kept_apart(
    bundle: Bundle, folder: Path, shapes_checkpoint: Path, tmp_path: Path
):
    models = SimpleNamespace(text_encoder=Checkpoint.open(shapes_checkpoint).text_encoder())
    style = write_lora(tmp_path / "style.safetensors", random_layers(models, unet=(), text_encoder=TEXT_ENCODER))
    output = shutil.copytree(folder, tmp_path / "engines")
    (pristine,) = some(bundle, output, "text_encoder")
    (made,) = some(bundle, output, "text_encoder", lora=[Lora(style, 0.5)])
    assert made.record.graph == merge(bundle, [(style, 0.5)]).graphs["text_encoder"].digest != pristine.record.graph
    assert made.record.options.items() >= {
        ("lora", "style.safetensors:0.5"),
        ("without_lora", pristine.record.graph),
    }
    assert made.record.plan_sha256 != pristine.record.plan_sha256
    assert pristine.reused and not made.reused
    assert [path.name for path in made.folder.iterdir() if path.is_dir()] == []
    renamed = shutil.copy(style, tmp_path / "renamed.safetensors")
    (again,) = some(bundle, output, "text_encoder", lora=[Lora(renamed, 0.5)])
    assert again.reused
    assert prune_engines(bundle, backend="tensorrt-rtx", folder=output) == []
    (unchanged,) = some(bundle, output, "decoder", lora=[Lora(style, 0.5)])
    assert unchanged.reused
