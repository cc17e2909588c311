"""What a manifest may say: every field checked where it is read, names that stay inside, old formats as before."""

import json
import math
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from fuzz.mutate import REMOVED, WRONG, places, replaced, wrong_json
from jsonschema import Draft202012Validator
from small_bundles import resigned, small_bundle, with_fakes

from latentrt import Request
from latentrt.backends.tensorrt.records import RECORD, EngineRecord, built_engines
from latentrt.bundle import FORMAT_VERSION, MANIFEST, Bundle
from latentrt.cli import main
from latentrt.cli.inspect import describe
from latentrt.errors import BundleError, IntegrityError, LatentRTError, VersionError
from latentrt.family import Family, TextEncoderSpec
from latentrt.files.names import FOLLOW_LINKS
from latentrt.lora.targets import bundle_parts
from latentrt.manifest.json_rules import schema
from latentrt.pipeline import Pipeline

Manifest = dict[str, Any]
works = pytest.mark.compatibility(
    kind="bundle", what="a bundle of format 1", recognised="format_version", outcome="works"
)
SECTIONS = ("provenance", "parity", "calibration", "controlnets")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("manifest") / "small")


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundles" / "small")


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return json.loads((bundle / MANIFEST).read_text())


@pytest.fixture(scope="module")
def pipe(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return with_fakes(Bundle.open(bundle), tmp_path_factory.mktemp("fakes"))


_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)


@contextmanager
def noting_opened_files() -> Iterator[list[str]]:
    global _opened
    _opened = found = []
    try:
        yield found
    finally:
        _opened = None


def edited(root: Path, edit: Callable[[Manifest], object]) -> Path:
    manifest = json.loads((root / MANIFEST).read_text())
    edit(manifest)
    (root / MANIFEST).write_text(json.dumps(manifest))
    return root


def renamed(row: Manifest, old: str, new: str) -> None:
    row[new] = row.pop(old)


BAD_NAMES = {
    "empty": "",
    "dot": ".",
    "up": "..",
    "backslash": "..\\x",
    "drive": "C:x",
    "NUL": "x\0",
    "newline": "x\n",
    "device": "NUL.json",
    "hidden": ".ssh",
    "a dot that Windows cuts off": "x.",
    "too long": "x" * 300,
    "half a surrogate pair": "x\ud800",
}
BAD_PATHS = BAD_NAMES | {
    "up and away": "../x",
    "up later": "tokenizer/../../x",
    "up and back": "tokenizer/../step.onnx",
    "absolute": "/etc/passwd",
    "double slash": "tokenizer//tokenizer.json",
    "trailing slash": "tokenizer/",
    "drive and path": "C:\\x",
    "the manifest": "Bundle.json",
    "compiled forms": "engines/x",
    "a record of the making": "step.done.json",
}
FILES: Mapping[str, Callable[[Manifest, str], object]] = {
    "files": lambda m, name: m["files"].update({name: m["files"]["step.onnx"]}),
    "graph": lambda m, name: m["components"]["step"].update(graph=name),
    "weights": lambda m, name: m["components"]["step"].update(weights=[name]),
    "keys": lambda m, name: m["components"]["step"].update(keys=name),
    "tokenizer": lambda m, name: m["family"]["towers"][0].update(tokenizer=name),
}
PARTS: Mapping[str, Callable[[Manifest, str], object]] = {
    "component": lambda m, name: renamed(m["components"], "encoder", name),
    "tower": lambda m, name: m["family"]["towers"][0].update(component=name),
}
NAMED = [
    pytest.param(edit, name, id=f"{field} {kind}")
    for fields, names in ((FILES, BAD_PATHS), (PARTS, BAD_NAMES | {"slash": "a/b"}))
    for field, edit in fields.items()
    for kind, name in names.items()
]


@pytest.mark.parametrize(("edit", "name"), NAMED)
def test_a_name_that_leads_out_is_refused_before_anything_is_opened(
    copied: Path, edit: Callable[[Manifest, str], object], name: str
):
    edited(copied, lambda manifest: edit(manifest, name))
    with noting_opened_files() as opened, pytest.raises(BundleError, match=MANIFEST):
        Bundle.open(copied)
    assert {path for path in opened if not path.endswith((".py", ".pyc", "schema.json"))} == {str(copied / MANIFEST)}


@pytest.mark.compatibility(
    kind="bundle", what="names that lead out of it", recognised="`../x`, `/x` in bundle.json", outcome="refused"
)
@pytest.mark.parametrize("field", ["files", "keys", "component"])
def test_convert_replaces_nothing_beside_its_output(copied: Path, field: str, capsys: pytest.CaptureFixture[str]):
    name = "../victim.json"
    victim = copied.parent / "victim.json"
    victim.write_text("untouched")
    edited(copied, lambda manifest: (FILES | PARTS)[field](manifest, name))
    assert main(["convert", str(copied), "-o", str(copied.parent / "out"), "--precision", "fp16"]) == 2
    assert victim.read_text() == "untouched"
    assert "victim.json" in capsys.readouterr().err and not (copied.parent / "out").exists()


@pytest.mark.parametrize("field", ["graph", "weights", "keys", "tokenizer"])
def test_a_file_that_is_not_listed_is_refused(copied: Path, field: str):
    (copied / "other.bin").write_bytes(b"x")
    edited(copied, lambda manifest: FILES[field](manifest, "other.bin"))
    with pytest.raises(BundleError, match=r"other\.bin.*`files`"):
        Bundle.open(copied)


def linked(root: Path, name: str) -> Path:
    """Moves a file out of the bundle, a link in its place."""
    outside = root.parent / "elsewhere" / Path(name).name
    outside.parent.mkdir(exist_ok=True)
    shutil.move(root / name, outside)
    (root / name).symlink_to(outside)
    return root


@pytest.mark.parametrize("name", [MANIFEST, "step.onnx", "step.weights", "tokenizer/tokenizer.json", "step.keys.json"])
def test_a_link_that_leads_out_is_followed_only_if_allowed(
    copied: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    linked(copied, name)
    with pytest.raises(BundleError, match=r"link .* outside"):
        Bundle.open(copied)
    assert main(["inspect", str(copied)]) == 2 and "--follow-links" in capsys.readouterr().err
    assert main(["inspect", str(copied), "--follow-links"]) == 0 and FOLLOW_LINKS not in os.environ
    assert Bundle.open(copied, follow_links=True).components
    monkeypatch.setenv(FOLLOW_LINKS, "1")
    assert Bundle.open(copied).components


def test_a_folder_of_files_that_leads_out_is_a_link_too(copied: Path):
    shutil.move(copied / "tokenizer", copied.parent / "elsewhere")
    (copied / "tokenizer").symlink_to(copied.parent / "elsewhere", target_is_directory=True)
    with pytest.raises(BundleError, match="link"):
        Bundle.open(copied)


@pytest.mark.parametrize("folder", ["engines", "engines/openvino", "engines/tensorrt-rtx/1"])
def test_compiled_forms_are_not_written_through_a_link(copied: Path, folder: str):
    (copied.parent / "elsewhere").mkdir()
    shutil.rmtree(copied / folder, ignore_errors=True)
    (copied / folder).symlink_to(copied.parent / "elsewhere", target_is_directory=True)
    with pytest.raises(BundleError, match="link"):
        Bundle.open(copied)


@pytest.mark.compatibility(
    kind="bundle", what="a link to the folder; links within it", recognised="symbolic links", outcome="works"
)
def test_links_to_the_folder_and_within_it_are_followed(copied: Path, tmp_path: Path):
    (copied / "decoder.weights").rename(copied / "own.weights")
    (copied / "decoder.weights").symlink_to("own.weights")
    (tmp_path / "link").symlink_to(copied, target_is_directory=True)
    assert Bundle.open(tmp_path / "link").components


@pytest.mark.compatibility(
    kind="bundle", what="downloaded from the hub", recognised="snapshots/ of links to blobs/", outcome="works"
)
def test_a_download_of_the_hub_is_links_that_are_trusted(copied: Path, tmp_path: Path):
    blobs, snapshot = tmp_path / "models--a" / "blobs", tmp_path / "models--a" / "snapshots" / "0"
    blobs.mkdir(parents=True)
    shutil.copytree(copied, snapshot)
    for index, path in enumerate([path for path in snapshot.rglob("*") if path.is_file()]):
        shutil.move(path, blobs / str(index))
        path.symlink_to(os.path.relpath(blobs / str(index), path.parent))
    assert Bundle.open(snapshot).components


def external(root: Path, **entries: str) -> Path:
    """Changes what the step's graph says of its external weight, and makes the manifest true of it."""
    model = onnx.load(root / "step.onnx", load_external_data=False)
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.external_data]
    found = {entry.key: entry.value for entry in weight.external_data} | entries
    del weight.external_data[:]
    for key, value in found.items():
        weight.external_data.add(key=key, value=value)
    onnx.save_model(model, root / "step.onnx")
    resigned(root, "step.onnx")
    return root


@pytest.mark.parametrize(
    "location",
    [
        "../x",
        "/etc/passwd",
        "",
        "decoder.weights",
        "bundle.json",
        "STEP.weights",
        "*/_ORT_MEM_ADDR_/*",
        "step.weights/.",
    ],
)
def test_a_graph_names_no_weights_but_its_own(copied: Path, location: str):
    with pytest.raises(BundleError, match="own weights"):
        Bundle.open(external(copied, location=location))


@pytest.mark.parametrize(
    "place", [{"offset": "264"}, {"offset": "-8"}, {"length": "8"}, {"offset": str(2**63)}, {"length": "x"}]
)
def test_a_weight_lies_within_its_file(copied: Path, place: dict[str, str]):
    with pytest.raises(BundleError, match=r"step\.onnx"):
        Bundle.open(external(copied, **place))


@pytest.mark.parametrize("hidden", ["attribute", "subgraph", "sparse", "function"])
def test_weights_are_found_wherever_a_graph_can_hold_them(copied: Path, hidden: str):
    model = onnx.load(copied / "step.onnx", load_external_data=False)
    tensor = onnx.TensorProto(name="hidden", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../x")
    node = onnx.NodeProto(op_type="Constant", output=["hidden"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    if hidden == "attribute":
        model.graph.node.append(node)
    elif hidden == "subgraph":
        inner = model.graph.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        inner.g.initializer.append(tensor)
    elif hidden == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    else:
        model.functions.add(name="f").node.append(node)
    (copied / "step.onnx").write_bytes(model.SerializeToString())
    resigned(copied, "step.onnx")
    with pytest.raises(BundleError, match=r"'hidden' lies in '\.\./x'"):
        Bundle.open(copied)


def test_damage_to_a_graph_is_told_by_its_bytes(copied: Path):
    data = bytearray((copied / "step.onnx").read_bytes())
    data[2:6] = b"\xff\xff\xff\xff"
    (copied / "step.onnx").write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256"):
        Bundle.open(copied)
    resigned(copied, "step.onnx")
    with pytest.raises(BundleError, match="ONNX graph"):
        Bundle.open(copied)


MESSAGES = [
    (("family", "towers", 0, "length"), -3, ["family.towers[0].length is -3", "whole number from 3"]),
    (("family", "towers", 0, "length"), 78, ["components.text_encoder.inputs.ids", "[*, 78]"]),
    (("family", "towers", 0, "pad_id"), 258, ["family.towers[0].pad_id is 258", "258"]),
    (("family", "latent_channels"), True, ["family.latent_channels is true", "whole number"]),
    (("family", "noise", "beta_start"), math.nan, ["family.noise.beta_start is NaN", "number from 0 to 1"]),
    (("family", "noise", "beta_end"), 1.0, ["family.noise", "finite"]),
    (("family", "noise", "scheduler"), "Other", ['family.noise.scheduler is "Other"', "EulerDiscreteScheduler"]),
    (("family", "noise", "trained_betas"), [0.1], ["family.noise.trained_betas", "num_train_timesteps"]),
    (("family", "noise", "prediction_type"), "x0", ['is "x0"', '"epsilon"']),
    (("family", "noise", "rho"), 7, ["family.noise.rho is not known", "beta_start"]),
    (("family", "defaults", "sampler"), "eular", ["family.defaults", "eular", "euler"]),
    (("family", "defaults", "schedule"), "x", ["family.defaults", "karras"]),
    (("family", "defaults", "size"), [64, 20], ["family.defaults.size is [64, 20]", "64 to 512"]),
    (("family", "defaults", "steps"), 0, ["family.defaults.steps is 0", "whole number from 1"]),
    (("family", "size_range_px"), [512, 64], ["family.size_range_px", "smaller"]),
    (("family", "time_ids"), ["x"], ["family.time_ids[0]", "original_height"]),
    (("family",), REMOVED, ["family is missing", "an object"]),
    (("preview",), [[0, 0, 0]] * 4, ["preview has 4 rows", "5"]),
    (("files", "step.onnx", "sha256"), "ab", ['files["step.onnx"].sha256 is "ab"', "text of the form"]),
    (("files", "step.onnx", "bytes"), -1, ['files["step.onnx"].bytes is -1', "whole number from 0"]),
    (("components", "step", "inputs", "state", "dims", 2), 5, ["components.step.inputs.state", "4"]),
    (("components", "step", "inputs", "state", "dtype"), "int64", ["components.step.inputs.state", "float32"]),
    (("components", "step", "inputs", "mask"), REMOVED, ["components.step.inputs.mask is missing"]),
    (("components", "step", "inputs", "pooled"), {"dtype": "float32", "dims": ["B"]}, ["pooled", "no input"]),
    (("components", "step", "lora", 0, "scale"), "1", ["components.step.lora[0].scale", "a number"]),
    (("format_version",), 0, ["format_version is 0"]),
    (("format_version",), True, ["format_version is true"]),
]


@pytest.mark.parametrize(("path", "wrong", "words"), [pytest.param(*row, id=f"{row[0]} {row[1]}") for row in MESSAGES])
def test_a_message_says_where_what_and_what_was_expected(
    copied: Path, manifest: Manifest, path: tuple[str | int, ...], wrong: object, words: list[str]
):
    (copied / MANIFEST).write_text(json.dumps(_put(manifest, path, wrong)))
    with pytest.raises(BundleError) as caught:
        Bundle.open(copied)
    assert str(copied / MANIFEST) in str(caught.value)
    assert not [word for word in words if word not in str(caught.value)]


def _put(manifest: Manifest, path: tuple[str | int, ...], value: object) -> Manifest:
    """As `replaced`, also where there is nothing yet."""
    *parents, last = path
    holder: Any = manifest
    for key in parents:
        holder = holder[key]
    if isinstance(holder, dict) and last not in holder:
        manifest = replaced(manifest, tuple(parents), {**holder, last: value})
    else:
        manifest = replaced(manifest, path, value)
    return manifest


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"format": "latentrt-bundle", "x": "\\ud800"}', "\0"])
def test_what_is_no_json_is_refused(copied: Path, text: str):
    (copied / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(copied)


def test_a_newer_format_is_told_as_such(copied: Path):
    with pytest.raises(VersionError, match=f"format {FORMAT_VERSION + 1}"):
        Bundle.open(edited(copied, lambda manifest: manifest.update(format_version=FORMAT_VERSION + 1)))


def test_fields_that_are_not_known_are_passed_over(copied: Path):
    def more(manifest: Manifest) -> None:
        for row in (manifest, manifest["family"], manifest["components"]["step"], manifest["provenance"]):
            row["later"] = {"x": [None, "y"]}

    assert Bundle.open(edited(copied, more)).components


@works
def test_format_1_is_read_as_before(copied: Path, bundle: Path):
    """It has no fields of the family from `context_width` on, and none of a text encoder from `band` on."""
    later = [name for name in Family.__dataclass_fields__ if name not in (*_FAMILY_OF_1, "text_encoders")]
    later_of_text_encoders = list(TextEncoderSpec.__dataclass_fields__)[len(_TEXT_ENCODER_OF_1) :]

    def older(manifest: Manifest) -> None:
        manifest["format_version"] = 1
        for name in later:
            del manifest["family"][name]
        for name in later_of_text_encoders:
            del manifest["family"]["towers"][0][name]

    edited(copied, older)
    now, then = Bundle.open(bundle), Bundle.open(copied)
    assert then.family.text_encoders[0].layers == 0 and now.family.text_encoders[0].layers == 3
    assert then.family.width == now.family.width and then.components.keys() == now.components.keys()


_FAMILY_OF_1 = ("name", "towers", "latent_channels", "vae_factor", "size_range_px", "noise", "defaults")
_TEXT_ENCODER_OF_1 = ("component", "tokenizer", "length", "width", "vocabulary", "bos_id", "eos_id", "pad_id")


def test_a_calibration_of_before_layers_were_counted_is_read(copied: Path):
    def older(manifest: Manifest) -> None:
        for name in ("layers", "budget"):
            del manifest["calibration"]["components"]["step"][name]

    assert Bundle.open(edited(copied, older)).section("calibration")["tools"]


@pytest.mark.parametrize("section", SECTIONS)
def test_what_only_informs_is_checked_in_full_where_it_is_read(copied: Path, section: str):
    """An older bundle may lack a field there, and runs."""
    wrong = {
        "provenance": {"tools": {"a": "1"}},
        "parity": [{}],
        "controlnets": {"a": {}},
        "calibration": {"tools": {}},
    }
    opened = Bundle.open(edited(copied, lambda manifest: manifest.update({section: wrong[section]})))
    with pytest.raises(BundleError, match=f"{section}.* is missing"):
        opened.section(section)


def test_the_reader_knows_every_word_of_the_schema():
    """A rule that the reader passed over would check nothing."""
    reader = (Path(__file__).parents[3] / "runtime" / "manifest" / "json_rules.py").read_text()
    for_people = {"title", "description", "$schema", "$defs", "not"}

    def words(rule: Any) -> Iterator[str]:
        yield from rule
        for key, value in rule.items():
            if key in ("properties", "$defs"):
                for member in value.values():
                    yield from words(member)
            elif key == "anyOf":
                for member in value:
                    yield from words(member)
            elif isinstance(value, dict) and key not in ("const", "dependentRequired"):
                yield from words(value)

    assert not [word for word in {*words(schema())} - for_people if f'"{word}"' not in reader]


def test_the_small_bundle_is_as_the_schema_says(manifest: Manifest):
    assert not [error.json_path for error in Draft202012Validator(schema()).iter_errors(manifest)]


def use(root: Path, pipe: Pipeline) -> None:
    """Reads everything that commands read of a manifest, and plans a run on fake engines."""
    opened = Bundle.open(root)
    describe(opened)
    for section in SECTIONS:
        opened.section(section)
    for name in opened.components:
        opened.keys(name)
    bundle_parts(opened)
    mutated = Pipeline(opened, pipe.engines)
    plan = mutated.plan([Request("a fox", seed=1)])
    mutated.conditioner.encode(plan.texts, clip_skip=plan.clip_skip)


def field_of(path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The place without the names that tell equal things apart: components, tensors, files and positions."""
    named = ("components", "inputs", "outputs", "files", "sha256", "tools", "controlnets")
    return tuple(
        "*" if isinstance(key, int) or (index and path[index - 1] in named) else key for index, key in enumerate(path)
    )


def test_a_damaged_manifest_ends_in_an_error_that_says_so(copied: Path, manifest: Manifest, pipe: Pipeline):
    """Every field, one at a time, with a seeded choice of what is wrong; then several at once."""
    rng = random.Random(0)
    fields = {field_of(path): path for path in places(manifest)}.values()
    damaged = [replaced(manifest, path, wrong) for path in fields for _, wrong in rng.sample(WRONG, 1)]
    damaged += [wrong_json(manifest, rng) for _ in range(30)]
    refused = 0
    for each in damaged:
        (copied / MANIFEST).write_text(json.dumps(each))
        try:
            use(copied, pipe)
        except LatentRTError:
            refused += 1
    assert refused > 0.7 * len(damaged)


def test_a_damaged_file_of_keys_ends_in_an_error_that_says_so(copied: Path):
    keys = {"weight": {"key": "a.weight", "transposed": False, "axis": 0, "factors": [1.0], "scale": "row"}}
    opened, refused = Bundle.open(copied), 0
    for path in places(keys):
        for _, wrong in WRONG:
            (copied / "step.keys.json").write_text(json.dumps(replaced(keys, path, wrong)))
            try:
                bundle_parts(opened)
            except LatentRTError as error:
                assert "keys.json" in str(error)
                refused += 1
    assert refused > 50


def test_a_damaged_record_of_an_engine_is_left_out(copied: Path, caplog: pytest.LogCaptureFixture):
    (path,) = copied.glob(f"engines/*/*/{RECORD}")
    record = json.loads(path.read_text())
    refused = 0
    rng = random.Random(0)
    for place in places(record):
        for _, wrong in rng.sample(WRONG, 6):
            path.write_text(json.dumps(replaced(record, place, wrong)))
            for built in built_engines(copied / "engines", "tensorrt-rtx"):
                built.record.runs_on((8, 9))
                built.record.profile.covers(dict.fromkeys(built.record.profile.min, (1,)))
                refused -= 1
            refused += 1
    assert refused > 0 and "is not the record of an engine" in caplog.text
    path.write_text(json.dumps(record))
    assert EngineRecord.read(path).to_json() == json.dumps(record, indent=1)


def test_a_manifest_that_names_no_part_of_the_checkpoint_takes_no_lora(tmp_path: Path):
    root = small_bundle(tmp_path / "bundle")
    manifest = json.loads((root / MANIFEST).read_text())
    del manifest["components"]["text_encoder"]["checkpoint_part"]
    (root / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="part of the checkpoint text_encoder"):
        bundle_parts(Bundle.open(root))


def test_a_comparison_that_allows_no_difference_is_described(tmp_path: Path):
    root = small_bundle(tmp_path / "bundle")
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["parity"][0] |= {"limit": 0, "worst": 0}
    (root / MANIFEST).write_text(json.dumps(manifest))
    assert describe(Bundle.open(root), verified=False)["parity"][0]["worst"] == 0
