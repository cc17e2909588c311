"""`latentrt build --backend onnxruntime --device cuda`, and which of its graphs the runtime takes. No GPU is needed:
where one has to run, the CPU provider takes the place of CUDA's; it has kernels for the text encoder's operators."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from latentrt.backends.onnxruntime.cuda import FOLDER, GRAPH, RECORD, RewrittenGraph, choose_rewritten
from latentrt.bundle import Bundle
from latentrt.cli import main
from latentrt.errors import RequestError
from latentrt.export.engines.rewrite import prune_rewritten, rewrite_graphs
from latentrt.graph import Override

VERSION = "1.31.1"


@pytest.fixture
def bundle(shapes_bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(shapes_bundle, tmp_path / "shapes"))


@pytest.fixture
def engines(bundle: Bundle) -> Path:
    """Where the graphs of `bundle` were made."""
    folder = bundle.root / "engines"
    rewrite_graphs(bundle, folder=folder)
    return folder


def folder_of(engines: Path, component: str) -> Path:
    return next(path.parent for path in engines.rglob(RECORD) if json.loads(path.read_text())["component"] == component)


def change(engines: Path, component: str, **fields: Any) -> None:
    path = folder_of(engines, component) / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_every_graph_is_made_once_and_its_record_says_what_it_is(bundle: Bundle):
    folder = bundle.root / "engines"
    made = rewrite_graphs(bundle, folder=folder)
    assert {graph.found.record.component for graph in made} == bundle.components.keys()
    assert not any(graph.reused for graph in made)
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert all(graph.reused for graph in rewrite_graphs(bundle, folder=folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == files
    for graph in made:
        record = RewrittenGraph.read(graph.found.path.with_name(RECORD))
        part = bundle.component(record.component)
        assert record == graph.found.record
        assert (record.source, record.precision) == (part.graph.digest, "fp32")
        assert record.channels_last is (record.component != "text_encoder")
        assert record.dims == {name: part.dims[name] for name in part.graph.inputs}


def test_weights_stay_in_the_files_of_the_bundle(bundle: Bundle, engines: Path):
    made = (engines / FOLDER).rglob("*")
    assert {path.name for path in made if path.is_file() and path.suffix != ".lock"} == {GRAPH, RECORD}
    for name, part in bundle.components.items():
        model = ir.load(folder_of(engines, name) / GRAPH)
        tensors = [value.const_value for value in model.graph.initializers.values()]
        external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
        assert {tensor.location for tensor in external} == {path.name for path in part.graph.weights}
    assert Bundle.open(bundle.root).verify() is None


@pytest.mark.parametrize("damage", ["record", "graph", "part"])
def test_what_a_killed_build_left_is_made_anew(bundle: Bundle, engines: Path, damage: str):
    home = folder_of(engines, "step")
    whole = (home / GRAPH).read_bytes()
    if damage == "record":
        (home / RECORD).unlink()
    elif damage == "graph":
        (home / GRAPH).write_bytes(whole[:-7])
    else:
        (home / RECORD).rename(home / ".latentrt-0123.tmp")
    made = rewrite_graphs(bundle, folder=engines)
    assert [graph.found.record.component for graph in made if not graph.reused] == ["step"]
    assert (home / GRAPH).read_bytes() == whole
    assert {path.name for path in home.iterdir()} == {GRAPH, RECORD}


def test_the_graph_of_a_component_is_taken(bundle: Bundle, engines: Path, caplog: pytest.LogCaptureFixture):
    for name, part in bundle.components.items():
        found = choose_rewritten(part.graph, None, VERSION)
        assert found is not None
        assert found.path.parent == folder_of(engines, name)
    assert caplog.text == ""


def test_without_one_the_log_says_how_to_build_it(bundle: Bundle, caplog: pytest.LogCaptureFixture):
    assert choose_rewritten(bundle.component("step").graph, None, VERSION) is None
    assert "step" in caplog.text
    assert f"latentrt build {bundle.root} --backend onnxruntime --device cuda" in caplog.text


@pytest.mark.parametrize(
    ("fields", "version", "words"),
    [
        ({}, "1.32.0", "for onnxruntime 1.31, and 1.32.0 is installed"),
        ({"source": "0"}, VERSION, "made of another graph"),
        ({"sha256": "0"}, VERSION, "damaged"),
        ({"dims": {}}, VERSION, "damaged"),
        ({"recipe": "none"}, VERSION, "is not the record of a graph"),
        ({"record_version": 2}, VERSION, "is not the record of a graph"),
    ],
)
def test_one_that_does_not_fit_is_not_taken_and_the_log_says_why(
    bundle: Bundle, engines: Path, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], version: str, words: str
):
    change(engines, "step", **fields)
    assert choose_rewritten(bundle.component("step").graph, None, version) is None
    assert words in caplog.text
    assert "can be built" in caplog.text


def test_with_a_lora_the_plain_graph_runs(bundle: Bundle, engines: Path, caplog: pytest.LogCaptureFixture):
    graph = replace(bundle.component("step").graph, overrides=(Override({}, fill=lambda _: None),))
    assert choose_rewritten(graph, None, VERSION) is None
    assert "LoRA" in caplog.text


def test_one_in_another_folder_is_found(bundle: Bundle, tmp_path: Path):
    rewrite_graphs(bundle, folder=tmp_path / "kept", components=["step"])
    assert choose_rewritten(bundle.component("step").graph, tmp_path / "kept", VERSION) is not None


def test_outdated_ones_are_removed(bundle: Bundle, engines: Path, tmp_path: Path):
    change(engines, "step", onnxruntime="1.30")
    change(engines, "decoder", source="0")
    removed = prune_rewritten(bundle, folder=engines)
    assert {found.record.component: reason for found, reason in removed} == {
        "step": "the one that is there is for onnxruntime 1.30, and 1.31 is installed",
        "decoder": "its graph is not in the bundle",
    }
    assert len(list(engines.rglob(RECORD))) == len(bundle.components) - 2


def test_another_bundles_graphs_in_a_shared_folder_stay(bundle: Bundle, tmp_path: Path):
    rewrite_graphs(bundle, folder=tmp_path / "kept")
    change(tmp_path / "kept", "decoder", source="0")
    assert prune_rewritten(bundle, folder=tmp_path / "kept") == []


def test_bf16_is_refused(shapes_bf16: Path, tmp_path: Path):
    with pytest.raises(RequestError, match=r"bf16.*onnxruntime on CUDA cannot"):
        rewrite_graphs(Bundle.open(shapes_bf16), folder=tmp_path)


def test_fp16_keeps_scale_and_shift_of_norms_in_float32(shapes_fp16: Path, tmp_path: Path):
    (made,) = rewrite_graphs(Bundle.open(shapes_fp16), folder=tmp_path, components=["step"])
    norms = [node for node in ir.load(made.found.path).graph if node.op_type == "GroupNorm"]
    assert len(norms) == made.found.record.changes["GroupNorm"] == 30
    affine = {value.dtype for node in norms for value in node.inputs[1:] if value is not None}
    assert affine == {ir.DataType.FLOAT}
    assert ir.DataType.FLOAT16 in {node.inputs[0].dtype for node in norms if node.inputs[0] is not None}


def test_the_command_builds_lists_and_removes(bundle: Bundle, capsys: pytest.CaptureFixture[str]):
    command = ["build", str(bundle.root), "--backend", "onnxruntime", "--device", "cuda"]
    assert main([*command, "--size", "128x128", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["component"] for row in document["graphs"]} == bundle.components.keys()
    assert main(["inspect", str(bundle.root)]) == 0
    assert "for onnxruntime 1.31 on CUDA" in capsys.readouterr().out
    change(bundle.root / "engines", "step", source="0")
    assert main(["inspect", str(bundle.root)]) == 0
    assert "step: its graph is not in the bundle" in capsys.readouterr().out
    assert main([*command, "--prune", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["component"] for row in document["graphs"] if not row["kept"]] == ["step"], "it is made anew"
    home = folder_of(bundle.root / "engines", "step")
    shutil.copytree(home, home.with_name("0" * 32))
    path = home.with_name("0" * 32) / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"onnxruntime": "1.30"}))
    assert main([*command, "--prune", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["component"], row["onnxruntime"]) for row in document["removed"]] == [("step", "1.30")]
    assert not path.exists()
    assert (home / RECORD).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cuda", "--gpus", "sm89"], "--gpus"),
        (["--device", "cuda", "--weight-streaming"], "--weight-streaming"),
        (["--device", "cuda", "--size", "13x13"], "13"),
        (["--device", "cuda", "--components", "none"], "none"),
        (["--device", "tpu"], "tpu"),
        ([], "--device cuda"),
    ],
)
def test_what_the_command_refuses(bundle: Bundle, capsys: pytest.CaptureFixture[str], options: list[str], words: str):
    assert main(["build", str(bundle.root), "--backend", "onnxruntime", *options]) != 0
    assert words in capsys.readouterr().err


def test_int8_is_said_to_be_no_faster(bundle: Bundle, capsys: pytest.CaptureFixture[str]):
    manifest = json.loads((bundle.root / "bundle.json").read_text())
    manifest["components"]["step"]["precision"] = "int8"
    (bundle.root / "bundle.json").write_text(json.dumps(manifest))
    assert main(["build", str(bundle.root), "--backend", "onnxruntime", "--device", "cuda"]) == 0
    assert "int8 is no faster" in capsys.readouterr().err
