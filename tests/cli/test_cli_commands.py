"""What each command prints and writes, as text and as JSON."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import latentrt
from latentrt.bundle import Bundle
from latentrt.cli.command import discover
from latentrt.errors import BundleError
from latentrt.png import read_parameters

SHORT = ("--steps", 2, "--size", "64x72", "--backend", "onnxruntime", "--threads", 1)

COMMANDS = ("bench", "build", "check", "export", "generate", "inspect")


def test_the_commands_are_found():
    assert set(COMMANDS) <= set(discover())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name, cli):
    outcome = cli(name, "--help")
    assert outcome.code == 0
    assert f"usage: latentrt {name}" in outcome.out
    assert "--json" in outcome.out


def test_help_of_everything_imports_no_heavy_package():
    """It must work, and be quick, where only the runtime is installed."""
    script = f"""
import contextlib, io, sys
from latentrt.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    codes = [main([]), main(["--help"]), *(main([name, "--help"]) for name in {COMMANDS})]
assert codes == [2] + [0] * {len(COMMANDS) + 1}, codes
assert all(name in out.getvalue() for name in {COMMANDS})
heavy = {{"torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino", "PIL"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version(cli):
    assert cli("--version").out == f"latentrt {latentrt.__version__}\n"


def test_generate_writes_the_images_that_the_library_makes(cli, tiny_bundle, tmp_path):
    outcome = cli("generate", tiny_bundle, "a red circle", "-o", tmp_path / "a.png", "--seed", 7, *SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{tmp_path / 'a.png'}  seed 7\n")
    with latentrt.load(tiny_bundle, backend="onnxruntime", threads=1) as pipe:
        expected = pipe.generate("a red circle", seed=7, steps=2, size=(64, 72)).images[0]
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), expected)
        assert image.size == (64, 72)


def test_generate_json(cli, tiny_bundle, tmp_path):
    outcome = cli(
        *("generate", tiny_bundle, "a red circle", "a blue star", "--images", 2, "--negative", "blurry, dark"),
        *("-o", tmp_path / "{index:02d}-{seed}.png", "--seed", 5, "--json", "--guidance", 3, *SHORT),
    )
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert document.keys() == {"bundle", "backend", "lora", "images", "timings_ms", "request"}
    paths = [tmp_path / name for name in ("00-5.png", "01-6.png", "02-7.png", "03-8.png")]
    assert document["images"] == [{"path": str(path), "seed": 5 + i} for i, path in enumerate(paths)]
    assert document["backend"] == "onnxruntime"
    assert document["request"]["prompt"] == ["a red circle", "a blue star"]
    assert (document["request"]["steps"], document["request"]["guidance"]) == (2, 3.0)
    assert document["request"]["sampler"] == Bundle.open(tiny_bundle).family.defaults.sampler
    timings = document["timings_ms"]
    assert len(timings["steps_ms"]) == 2
    assert timings["text_ms"] + sum(timings["steps_ms"]) + timings["decode_ms"] <= timings["total_ms"]
    lines = read_parameters(paths[2]).splitlines()
    assert lines[:2] == ["a blue star", "Negative prompt: blurry, dark"]
    assert lines[2].startswith("Steps: 2, Sampler: ")
    assert "CFG scale: 3, Seed: 7, Size: 64x72" in lines[2]


def test_generate_without_metadata(cli, tiny_bundle, tmp_path):
    assert cli("generate", tiny_bundle, "a", "-o", tmp_path / "a.png", "--no-metadata", *SHORT).code == 0
    assert read_parameters(tmp_path / "a.png") is None


def test_explicit_levels_say_how_many_steps_there_are(cli, tiny_bundle, tmp_path):
    options = ("-o", tmp_path / "a.png", "--json", "--sampler", "euler", *SHORT[2:])
    sigmas = cli("generate", tiny_bundle, "a", *options, "--sigmas", "14.6,5,1,0").document
    assert (sigmas["request"]["steps"], len(sigmas["timings_ms"]["steps_ms"])) == (3, 3)
    timesteps = cli("generate", tiny_bundle, "a", *options, "--timesteps", "999,500").document
    assert (timesteps["request"]["steps"], len(timesteps["timings_ms"]["steps_ms"])) == (2, 2)


def test_prompts_are_not_logged(cli, tiny_bundle, tmp_path, caplog):
    outcome = cli("generate", tiny_bundle, "confidential", "-o", tmp_path / "a.png", "-v", "--debug", *SHORT)
    assert outcome.code == 0, outcome.err
    assert caplog.records
    assert "confidential" not in caplog.text + outcome.err + outcome.out


def test_inspect(cli, tiny_bundle):
    text = cli("inspect", tiny_bundle)
    assert text.code == 0, text.err
    for part in ("step", "multiples of 8", "dpmpp-2m", "in  state: float32 [B, 4, 4, h, w]", "opset 23", "parity"):
        assert part in text.out
    document = cli("inspect", tiny_bundle, "--verify", "--json").document
    bundle = Bundle.open(tiny_bundle)
    assert document["verified"] is True
    assert document["components"].keys() == bundle.components.keys()
    assert document["components"]["decoder"]["outputs"] == {"image": {"dtype": "uint8", "dims": ["B", "8*h", "8*w", 3]}}
    assert document["bytes"] == sum((tiny_bundle / name).stat().st_size for name in bundle.manifest["files"])
    assert document["size_range_px"] == list(bundle.family.size_range_px)
    assert "euler" in document["samplers"]
    assert "flow-euler" not in document["samplers"]
    assert sum(group["cases"] for group in document["parity"]) == len(bundle.manifest["parity"])


def test_inspect_verify_finds_a_changed_byte(cli, bundle_copy):
    path = bundle_copy / "decoder.weights"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert cli("inspect", bundle_copy).code == 0
    outcome = cli("inspect", bundle_copy, "--verify")
    assert outcome.code == BundleError.exit_code
    assert "decoder.weights has sha256" in outcome.err


def test_a_command_that_cannot_be_loaded_is_listed_and_says_so(cli, monkeypatch):
    from importlib.metadata import EntryPoint

    from latentrt.cli import command

    broken = EntryPoint("broken", "no_such_module:COMMAND", command.GROUP)
    monkeypatch.setattr(command, "entry_points", lambda group: [broken])
    assert "broken" in cli("--help").out
    outcome = cli("broken")
    assert outcome.code == 3
    assert "the command broken cannot be loaded (ModuleNotFoundError" in outcome.err
