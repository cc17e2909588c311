"""The manifest's JSON schema: real manifests pass, broken ones do not, and the documentation names every field."""

import copy
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from latentrt.bundle import FORMAT, FORMAT_VERSION, MANIFEST

Manifest = dict[str, Any]
DOCUMENTATION = (Path(__file__).parents[1] / "docs" / "bundle.md").read_text()


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads((files("latentrt.manifest") / "bundle.schema.json").read_text())


@pytest.fixture(scope="module")
def manifest(shapes_bundle: Path) -> Manifest:
    return json.loads((shapes_bundle / MANIFEST).read_text())


def problems(schema: dict[str, Any], manifest: Manifest) -> list[str]:
    """Where the manifest breaks the schema, as paths."""
    return [error.json_path for error in Draft202012Validator(schema).iter_errors(manifest)]


def test_the_schema_is_one_and_of_this_format(schema: dict[str, Any]):
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["format"] == {"const": FORMAT}
    assert schema["properties"]["format_version"] == {"const": FORMAT_VERSION}


def test_a_real_manifest_passes(schema: dict[str, Any], manifest: Manifest):
    assert problems(schema, manifest) == []


def test_a_converted_manifest_passes(schema: dict[str, Any], shapes_fp16: Path):
    converted = json.loads((shapes_fp16 / MANIFEST).read_text())
    assert problems(schema, converted) == []
    for component in converted["components"].values():
        assert component["conversion"].keys() == schema["$defs"]["conversion"]["properties"].keys()
    converted["components"]["step"]["conversion"]["range"].pop("limit")
    assert problems(schema, converted) == ["$.components.step.conversion"]


@pytest.mark.families
def test_the_manifest_of_an_approximation_passes(schema: dict[str, Any], pooled_bundle: Path):
    pooled = json.loads((pooled_bundle / MANIFEST).read_text())
    assert problems(schema, pooled) == []
    assert pooled.keys() == schema["properties"].keys()
    assert pooled["pooling"].keys() == schema["$defs"]["pooling"]["properties"].keys()
    pooled["components"]["step"]["pooled_attention"] = "all"
    assert problems(schema, pooled) == ["$.components.step.pooled_attention"]


def test_every_field_of_a_real_manifest_is_described(schema: dict[str, Any], manifest: Manifest):
    """The schema lets unknown fields pass, so that one that is new and forgotten would go unnoticed."""
    definitions = schema["$defs"]
    assert manifest.keys() == schema["properties"].keys() - {"pooling"}
    assert manifest["family"].keys() == definitions["family"]["properties"].keys()
    for component in manifest["components"].values():
        of_some = {"residuals_made", "shallow_layers", "pooled_attention"}
        assert component.keys() == definitions["component"]["properties"].keys() - of_some
    for row in manifest["parity"]:
        assert row.keys() == definitions["comparison"]["properties"].keys()


BROKEN: list[tuple[str, Callable[[Manifest], object], str]] = [
    ("another format", lambda m: m.update(format="zip"), "$.format"),
    ("a newer version", lambda m: m.update(format_version=4), "$.format_version"),
    ("no family", lambda m: m.pop("family"), "$"),
    ("no step graph", lambda m: m["components"].pop("step"), "$.components"),
    ("a graph without weights", lambda m: m["components"]["step"].pop("weights"), "$.components.step"),
    (
        "an unknown dtype",
        lambda m: m["components"]["step"]["inputs"]["state"].update(dtype="float"),
        "$.components.step.inputs.state.dtype",
    ),
    (
        "a negative length",
        lambda m: m["components"]["step"]["inputs"]["state"].update(dims=["B", -1]),
        "$.components.step.inputs.state.dims[1]",
    ),
    ("no text encoders", lambda m: m["family"].update(towers=[]), "$.family.towers"),
    ("an unknown field of a text encoder", lambda m: m["family"]["towers"][0].update(clip=1), "$.family.towers[0]"),
    ("an unknown field of the noise", lambda m: m["family"]["noise"].update(rho=7), "$.family.noise"),
    (
        "an unknown prediction",
        lambda m: m["family"]["noise"].update(prediction_type="x0"),
        "$.family.noise.prediction_type",
    ),
    ("a size of one number", lambda m: m["family"]["defaults"].update(size=[128]), "$.family.defaults.size"),
    ("a preview of two colours", lambda m: m.update(preview=[[0, 0], [0, 0]]), "$.preview[0]"),
    ("a short hash", lambda m: m["files"]["step.onnx"].update(sha256="ab"), "$.files['step.onnx'].sha256"),
    ("a path that climbs", lambda m: m["components"]["step"].update(graph="../step.onnx"), "$.components.step.graph"),
    ("an absolute path", lambda m: m["files"].update({"/etc/passwd": m["files"]["step.onnx"]}), "$.files"),
]


@pytest.mark.parametrize(("break_it", "where"), [pytest.param(b, w, id=name) for name, b, w in BROKEN])
def test_a_broken_manifest_is_refused(
    break_it: Callable[[Manifest], object], where: str, schema: dict[str, Any], manifest: Manifest
):
    broken = copy.deepcopy(manifest)
    break_it(broken)
    found = problems(schema, broken)
    assert where in found


def test_the_documentation_names_every_field_and_tensor(schema: dict[str, Any], manifest: Manifest):
    names = {*schema["properties"], *schema["$defs"]["family"]["properties"]}
    for text_encoder in manifest["family"]["towers"]:
        names |= text_encoder.keys()
    names |= manifest["family"]["defaults"].keys()
    for component in manifest["components"].values():
        names |= component["inputs"].keys() | component["outputs"].keys()
    assert not [name for name in sorted(names) if f"`{name}`" not in DOCUMENTATION]
