"""What each command prints and writes, as text and as JSON."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from picture_text import read_parameters
from PIL import Image

import latentrt
from latentrt.bundle import Bundle
from latentrt.cli.arguments import Parser
from latentrt.cli.command import discover
from latentrt.errors import BundleError

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


def test_help_shows_what_most_need_and_help_all_the_rest(cli):
    short, long = (cli("generate", option).out for option in ("--help", "--help-all"))
    assert all(option in short for option in ("PROMPT", "--seed", "--output", "--json", "--help-all", "more options"))
    assert "--skip-range" not in short
    assert "execution:" in short
    assert all(option in long for option in ("PROMPT", "--seed", "--skip-range", "--debug"))
    assert long.count("--skip-range") == 2  # in the usage, too
    assert "--quick" in cli("check", "--help").out
    assert cli("check", "--help-all").code == 2
    with_fault = cli("generate", "BUNDLE", "a", "--no-such")
    assert (with_fault.code, "--no-such" in with_fault.err) == (2, True)


PLACES = {
    "before": ("--seed", "7", "BUNDLE", "a red circle", "a blue star"),
    "between": ("BUNDLE", "--seed", "7", "a red circle", "--json", "a blue star"),
    "among": ("BUNDLE", "a red circle", "--seed", "7", "a blue star"),
    "behind": ("BUNDLE", "a red circle", "a blue star", "--seed", "7"),
    "dashes": ("--seed", "7", "BUNDLE", "--", "a red circle", "a blue star"),
}


@pytest.mark.parametrize("arguments", PLACES.values(), ids=PLACES)
def test_options_stand_anywhere(arguments):
    parser = Parser(prog="latentrt generate", allow_abbrev=False)
    discover()["generate"].configure(parser)
    parser.add_argument("--json", action="store_true")
    options = parser.parse(arguments)
    assert (options.bundle, options.prompt, options.seed) == ("BUNDLE", ["a red circle", "a blue star"], 7)


def test_options_of_every_command_stand_anywhere(cli, tmp_path):
    """Each fails for the bundle that is not there, which shows that its arguments were understood."""
    lost = tmp_path / "lost"
    for arguments in (
        ("control", "--no-check", lost, "-o", tmp_path / "new", "edges=somewhere"),
        ("inspect", "--verify", lost),
        ("convert", "--precision", "fp16", "-o", tmp_path / "new", lost),
        ("bench", "--repeat", 1, lost, "--steps", 1),
    ):
        outcome = cli(*arguments)
        assert (outcome.code, f"no bundle at {lost}" in outcome.err) == (2, True), outcome.err


def test_a_dash_may_begin_a_prompt():
    parser = Parser(prog="latentrt generate", allow_abbrev=False)
    discover()["generate"].configure(parser)
    options = parser.parse(["BUNDLE", "--seed", "7", "--", "--a red circle"])
    assert (options.prompt, options.seed) == (["--a red circle"], 7)


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
    rows = [{"path": str(path), "seed": 5 + i, "replaced": False} for i, path in enumerate(paths)]
    assert document["images"] == rows
    assert document["backend"] == "onnxruntime"
    assert document["request"]["prompt"] == ["a red circle", "a blue star"]
    assert (document["request"]["steps"], document["request"]["guidance"]) == (2, 3.0)
    assert document["request"]["sampler"] == Bundle.open(tiny_bundle).family.defaults.sampler
    timings = document["timings_ms"]
    assert len(timings["steps_ms"]) == 4 * 2
    assert timings["text_ms"] + sum(timings["steps_ms"]) + timings["decode_ms"] <= timings["total_ms"]
    lines = read_parameters(paths[2]).splitlines()
    assert lines[:2] == ["a blue star", "Negative prompt: blurry, dark"]
    assert lines[2].startswith("Steps: 2, Sampler: ")
    assert "CFG scale: 3, Seed: 7, Size: 64x72" in lines[2]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_batches_change_no_byte_and_take_prompts_of_any_length(backend, cli, tiny_bundle, tmp_path):
    """The long prompt has two chunks: padded to as many, the short one would be another."""
    prompts = ("a red circle", " ".join(["a blue star"] * 40), "a pink heart")
    options = ("--steps", 2, "--size", "64x64", "--backend", backend, "--threads", 1, "--seed", 5)
    for batch in (1, 2, 3):
        (tmp_path / str(batch)).mkdir()
        outcome = cli("generate", tiny_bundle, *prompts, *options, "--batch", batch, "-o", tmp_path / f"{batch}/a.png")
        assert outcome.code == 0, outcome.err
        assert "images 3/3" in outcome.err
    for name in ("a-0.png", "a-1.png", "a-2.png"):
        assert len({(tmp_path / str(batch) / name).read_bytes() for batch in (1, 2, 3)}) == 1
    alone = cli("generate", tiny_bundle, prompts[2], *options[:-1], 7, "-o", tmp_path / "alone.png")
    assert alone.code == 0, alone.err
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "1" / "a-2.png").read_bytes()


def test_a_stopped_run_leaves_the_pictures_that_are_done(cli, tiny_bundle, tmp_path, monkeypatch):
    run, made = latentrt.Pipeline.run, []

    def stopped(self, *requests, **options):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(requests)
        return run(self, *requests, **options)

    monkeypatch.setattr(latentrt.Pipeline, "run", stopped)
    outcome = cli("generate", tiny_bundle, "a", "--images", 6, "--seed", 5, "-o", tmp_path / "{seed}.png", *SHORT)
    assert outcome.code == 130
    assert [len(requests) for requests in made] == [1] * 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{seed}.png" for seed in range(5, 10)]
    assert "5 of 6 images are written" in outcome.err


def test_latents_of_all_batches_make_one_file(cli, tiny_bundle, tmp_path):
    options = ("a", "--images", 3, "--seed", 5, *SHORT)
    assert cli("generate", tiny_bundle, *options, "--output-latent", tmp_path / "a.npy", "--batch", 2).code == 0
    with latentrt.load(tiny_bundle, backend="onnxruntime", threads=1) as pipe:
        whole = pipe.generate("a", images=3, seed=5, steps=2, size=(64, 72), output="latent").latents
        pipe_images = pipe.decode(whole)
    assert np.allclose(np.load(tmp_path / "a.npy"), whole, atol=1e-4)
    outcome = cli("generate", tiny_bundle, *options, "--latent", tmp_path / "a.npy", "--denoising-start", 0.5, "--json",
                  "-o", tmp_path / "{index}.png")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert len({path.read_bytes() for path in tmp_path.glob("*.png")}) == len(pipe_images) == 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_that_is_there_is_not_replaced_in_silence(suffix, cli, tiny_bundle, tmp_path):
    path = tmp_path / f"a.{suffix}"
    assert cli("generate", tiny_bundle, "a", "-o", path, "--seed", 1, *SHORT).code == 0
    before = path.read_bytes()
    with Image.open(path) as image:
        assert (image.format, image.size) == ({"jpg": "JPEG"}.get(suffix, suffix.upper()), (64, 72))
    refused = cli("generate", tiny_bundle, "a", "-o", path, "--seed", 2, *SHORT)
    assert (refused.code, "there already" in refused.err, "--overwrite" in refused.err) == (2, True, True)
    assert path.read_bytes() == before
    done = cli("generate", tiny_bundle, "a", "-o", path, "--seed", 2, "--overwrite", "--json", *SHORT)
    assert done.document["images"] == [{"path": str(path), "seed": 2, "replaced": True}]
    assert path.read_bytes() != before


def test_generate_without_metadata(cli, tiny_bundle, tmp_path):
    assert cli("generate", tiny_bundle, "a", "-o", tmp_path / "a.png", "--no-metadata", *SHORT).code == 0
    assert read_parameters(tmp_path / "a.png") is None


def test_explicit_levels_say_how_many_steps_there_are(cli, tiny_bundle, tmp_path):
    options = ("-o", tmp_path / "a.png", "--overwrite", "--json", "--sampler", "euler", *SHORT[2:])
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
    for part in (
        "step",
        "multiples of 8",
        "guidance 7.5, ddim",
        "DDIMScheduler; ddim equals it",
        "in  state: float32 [B, 4, 4, h, w]",
        "opset 23",
        "parity",
    ):
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


@pytest.mark.skipif(shutil.which("bash") is None, reason="completes in bash")
@pytest.mark.parametrize(
    ("typed", "offered"), [(["latentrt", "gen"], "generate"), (["latentrt", "generate", "--sam"], "--sampler")]
)
def test_a_shell_completes_commands_and_options(typed, offered, cli):
    script = cli("completion", "bash").out
    words = " ".join(f"'{word}'" for word in typed)
    script += f"\nCOMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _shtab_latentrt; echo ${{COMPREPLY[@]}}\n"
    found = subprocess.run(["bash", "--norc"], input=script, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [offered]


def test_completion_in_another_shell_names_those_there_are(cli):
    outcome = cli("completion", "fish")
    assert outcome.code == 2
    assert "bash" in outcome.err
