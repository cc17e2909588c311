"""Bad input: one line that says what was found, what was expected and what to do; the right exit code; no traceback."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentrt.environment.install import install_command


def replace(path: Path, data: bytes) -> None:
    """Writes a new file instead of the one that copies share."""
    path.unlink()
    path.write_bytes(data)


def edit_json(path: Path, **values: object) -> None:
    replace(path, json.dumps(json.loads(path.read_text()) | values).encode())


def truncate(path: Path) -> None:
    replace(path, path.read_bytes()[:-1000])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    replace(path, bytes(data))


def put_nan(path: Path) -> None:
    weights = load_file(path)
    name = next(name for name, weight in weights.items() if weight.dtype.kind == "f")
    weights[name] = np.full_like(weights[name], np.nan)
    path.unlink()
    save_file(weights, path)


def only_weights(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


@dataclass(frozen=True, slots=True)
class Bad:
    """A damage or wrong options, the exit code, and parts of the message: found, expected, what to do."""

    id: str
    code: int
    parts: tuple[str, ...]
    damage: Callable[[Path], object] = lambda root: None
    options: tuple[str, ...] = ()


CHECKPOINTS = (
    Bad(
        "weights missing",
        2,
        ("no weights in", "unet", "expected *.safetensors", "save_pretrained"),
        damage=lambda root: only_weights(root / "unet").unlink(),
    ),
    Bad(
        "weights truncated",
        2,
        ("vae", "bytes", "as its header says", "copy or download it again"),
        damage=lambda root: truncate(only_weights(root / "vae")),
    ),
    Bad(
        "weights are no safetensors",
        2,
        ("unet", "header", "copy or download it again"),
        damage=lambda root: replace(only_weights(root / "unet"), b"<!DOCTYPE html>" * 100),
    ),
    Bad(
        "weights with NaN",
        2,
        ("text_encoder", "NaN", "expected finite weights", "training diverged"),
        damage=lambda root: put_nan(only_weights(root / "text_encoder")),
    ),
    Bad(
        "no Stable Diffusion",
        2,
        ("FluxPipeline", "expected a Stable Diffusion pipeline"),
        damage=lambda root: edit_json(root / "model_index.json", _class_name="FluxPipeline"),
    ),
    Bad(
        "no index",
        2,
        ("no file", "model_index.json", "expected a folder in diffusers' layout", "check the path"),
        damage=lambda root: (root / "model_index.json").unlink(),
    ),
    Bad(
        "no JSON",
        2,
        ("model_index.json is not JSON", "expected"),
        damage=lambda root: replace(root / "model_index.json", b"{"),
    ),
    Bad(
        "an unknown precision",
        2,
        ("'fp64'", "expected fp32, fp16, bf16"),
        options=("--precision", "fp64"),
    ),
    Bad(
        "the precision of an unknown component",
        2,
        ("component 'unet'", "expected one of text_encoder, step"),
        options=("--precision", "unet=fp16"),
    ),
    Bad(
        "an unknown range check",
        2,
        ("range check 'thorough'", "expected quick, full, none"),
        options=("--precision", "fp16", "--range-check", "thorough"),
    ),
)


@pytest.mark.parametrize("bad", CHECKPOINTS, ids=lambda bad: bad.id)
def test_export_refuses(bad, cli, checkpoint_copy, tmp_path):
    bad.damage(checkpoint_copy)
    output = tmp_path / "out"
    outcome = cli("export", checkpoint_copy, "-o", output, *bad.options, "--json")
    assert_refused(outcome, bad)
    assert not output.exists()


BUNDLES = (
    Bad(
        "a changed byte",
        2,
        ("step.weights has sha256", "as the manifest says", "copy or export the bundle again"),
        damage=lambda root: flip_a_byte(root / "step.weights"),
    ),
    Bad(
        "a truncated file",
        2,
        ("step.weights has", "bytes", "as the manifest says", "copy or export the bundle again"),
        damage=lambda root: truncate(root / "step.weights"),
    ),
    Bad(
        "a missing file",
        2,
        ("decoder.onnx is missing", "expected", "bytes", "copy or export the bundle again"),
        damage=lambda root: (root / "decoder.onnx").unlink(),
    ),
    Bad(
        "a newer format",
        2,
        ("bundle format 99", "or older", "update LatentRT"),
        damage=lambda root: edit_json(root / "bundle.json", format_version=99),
    ),
    Bad(
        "an unfinished export",
        2,
        ("has no bundle.json", "expected a finished bundle", "continues when it is run again"),
        damage=lambda root: (root / "bundle.json").unlink(),
    ),
    Bad(
        "a manifest that is no JSON",
        2,
        ("bundle.json cannot be read", "expected JSON", "export the bundle again"),
        damage=lambda root: replace(root / "bundle.json", b"{"),
    ),
    Bad(
        "a malformed manifest",
        2,
        ("bundle.json: family.", "is missing", "copy or export the bundle again"),
        damage=lambda root: edit_json(root / "bundle.json", family={"name": "x"}),
    ),
    Bad(
        "a width of 100 px",
        2,
        ("width is 100 px", "multiple of 8", "the nearest is"),
        options=("--size", "100x128"),
    ),
    Bad("a height too large", 2, ("height is 8192 px", "expected 64 to"), options=("--size", "64x8192")),
    Bad("a size of another form", 2, ("size '512'", "expected WIDTHxHEIGHT"), options=("--size", "512")),
    Bad("an unknown sampler", 2, ("'eular'", "expected", "euler-a", "did you mean"), options=("--sampler", "eular")),
    Bad("an unknown schedule", 2, ("'karas'", "expected", "karras", "did you mean"), options=("--schedule", "karas")),
    Bad("guidance that is no number", 2, ("guidance", "nan", "a number, 0 to 1000"), options=("--guidance", "nan")),
    Bad("no steps", 2, ("steps", "0"), options=("--steps", "0")),
    Bad("sigmas that are none", 2, ("'a,b'", "expected numbers separated by commas"), options=("--sigmas", "a,b")),
    Bad(
        "an unknown backend",
        2,
        ("'openvina'", "expected", "did you mean"),
        options=("--backend", "openvina"),
    ),
    Bad("arithmetic nobody has", 2, ("compute 'int3'", "expected"), options=("--compute", "int3")),
    Bad("no threads", 2, ("threads is 0", "expected at least 1"), options=("--threads", "0")),
    Bad("an unknown option", 2, ("unrecognized arguments: --stesp", "--help"), options=("--stesp", "3")),
    Bad("an option without a value", 2, ("--steps", "expected one argument", "--help"), options=("--steps",)),
    Bad("two negatives for one prompt", 2, ("2 negative prompts",), options=("--negative", "a", "--negative", "b")),
    Bad("a folder that is not there", 2, ("no folder", "expected", "mkdir -p"), options=("-o", "nowhere/a.png")),
    Bad("another image format", 2, ("'a.gif'", "expected a file that ends in .png"), options=("-o", "a.gif")),
    Bad("an unknown field", 2, ("{sead}", "expected the fields {index} and {seed}"), options=("-o", "{sead}.png")),
)


@pytest.mark.parametrize("bad", BUNDLES, ids=lambda bad: bad.id)
def test_generate_refuses(bad, cli, bundle_copy, tmp_path, monkeypatch):
    bad.damage(bundle_copy)
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.chdir(folder)
    outcome = cli("generate", bundle_copy, "a red circle", "--json", *bad.options)
    assert_refused(outcome, bad)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("lacking", "arguments", "parts"),
    [
        ("openvino", ("generate", "x", "p", "--backend", "openvino"), ("openvino", "pip install", "openvino")),
        ("onnxruntime", ("bench", "BUNDLE", "--backend", "onnxruntime"), ("pip install", "onnxruntime")),
        ("torch", ("export", "x", "-o", "y"), ("latentrt export needs torch", "'export'", "pip install")),
        (
            "diffusers",
            ("check", "x", "--against", "y"),
            ("latentrt check needs diffusers", "'export'", "pip install"),
        ),
        ("torch", ("bench", "BUNDLE", "--against", "y"), ("latentrt bench needs torch", "'export'", "pip install")),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(lacking, arguments, parts, cli, tiny_bundle, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == lacking else find_spec(name, *a))
    outcome = cli(*(tiny_bundle if word == "BUNDLE" else word for word in arguments), "--json")
    assert_refused(outcome, Bad("", 3, parts))


def test_existing_things_are_not_overwritten(cli, tiny_checkpoint, bundle_copy, tmp_path):
    there = cli("export", tiny_checkpoint, "-o", bundle_copy, "--json")
    assert_refused(there, Bad("", 2, ("a bundle is at", "expected a new path", "--overwrite")))
    other = tmp_path / "letters"
    other.mkdir()
    foreign = cli("export", tiny_checkpoint, "-o", other, "--overwrite", "--json")
    assert_refused(foreign, Bad("", 2, ("exists and is no bundle", "expected a new path")))
    assert other.is_dir()


def assert_refused(outcome, bad):
    """The same facts as one line on stderr and as one JSON document on stdout."""
    assert outcome.code == bad.code, outcome.err
    (line,) = outcome.err.splitlines()
    assert line.startswith("latentrt: error: ")
    assert [part for part in bad.parts if part not in line] == []
    document = outcome.document
    assert document.keys() == {"error", "exit_code"}
    assert document["exit_code"] == bad.code
    error = document["error"]
    assert error.keys() == {"type", "found", "expected", "hint"}
    assert line == "latentrt: error: " + "; ".join(
        part
        for part in (error["found"], error["expected"] and f"expected {error['expected']}", error["hint"])
        if part is not None
    )


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        (("export", "x", "-o", "y"), ("export", "onnxruntime")),
        (("control", "x", "a=b", "-o", "y"), ("export", "onnxruntime")),
        (("convert", "x", "-o", "y", "--precision", "fp16"), ("convert", "onnxruntime")),
        (("calibrate", "x", "-o", "y"), ("calibrate", "onnxruntime")),
        (("calibrate", "x", "-o", "y", "--backend", "onnxruntime"), ("calibrate", "onnxruntime")),
        (("check", "x", "--against", "y", "--backend", "tensorrt-rtx"), ("export", "onnxruntime", "tensorrt-rtx")),
        (("bench", "x", "--against", "y"), ("openvino", "export", "onnxruntime")),
        (("bench", "x", "--backend", "onnxruntime,openvino"), ("openvino", "onnxruntime")),
        (("build", "x", "--backend", "tensorrt-rtx", "--lora", "y"), ("convert", "tensorrt-rtx")),
        (("serve", "x"), ("serve", "openvino")),
        (("serve", "x", "--device", "cuda"), ("serve", "onnxruntime-gpu")),
        (("completion", "bash"), ("completion",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_everything_that_is_missing_is_named_at_once(arguments, extras, cli, monkeypatch):
    """In an environment that has the runtime's own dependencies alone."""
    runtime = {"latentrt", "filelock", "numpy", "PIL", "safetensors", "tokenizers"}
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: find_spec(name, *a) if name.split(".")[0] in runtime else None
    )
    outcome = cli(*arguments, "--json")
    named = [f"'{extra}'" for extra in extras]
    assert_refused(outcome, Bad("", 3, (f"latentrt {arguments[0]} needs", "the extra", *named)))
    assert install_command(*extras) in outcome.err


@pytest.mark.parametrize(("against", "extra"), [("a-checkpoint", "export"), ("BUNDLE", "convert")])
def test_check_names_the_right_extra_at_once(against, extra, cli, tiny_bundle, monkeypatch):
    """In an environment that has neither torch nor onnx."""
    lacking = {"torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript"}
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in lacking else find_spec(name, *a))
    outcome = cli("check", tiny_bundle, "--against", tiny_bundle if against == "BUNDLE" else against, "--json")
    assert_refused(outcome, Bad("", 3, (f"the extra '{extra}'", "pip install")))
