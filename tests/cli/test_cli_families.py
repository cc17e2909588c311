"""Every command, as a user calls it, on models of other kinds than most tests have."""

from pathlib import Path

import pytest

from latentrt.bundle import Bundle
from latentrt.export.synthetic.checkpoints import make_checkpoint

pytestmark = pytest.mark.families
KINDS = {
    "Stable Diffusion 3 without T5": ("tiny-sd3", "--without", "text_encoder_3"),
    "a U-Net that follows a flow": ("tiny-sdxl-flow",),
    "a latent consistency model": ("tiny-lcm",),
    "a refiner": ("tiny-sdxl-refiner",),
    "inpainting": ("tiny-sd15-inpaint",),
}
RUN = ("--size", "64x64", "--steps", "4")
BRIEF = ("--size", "64x64", "--steps", "2", "--repeat", "1", "--warmup", "0")


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_works(kind: str, cli, tmp_path: Path):
    architecture, *options = KINDS[kind]
    checkpoint = make_checkpoint(architecture, tmp_path / "checkpoint")
    bundle, half, quantised = (tmp_path / name for name in ("bundle", "half", "int8"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("an owl\na ship\n")
    for command in (
        ("export", checkpoint, "-o", bundle, "--step-cache", *options),
        ("inspect", bundle),
        ("check", bundle, "--against", checkpoint, "--quick", "--backend", "onnxruntime", "--prompts", prompts),
        ("convert", bundle, "-o", half, "--precision", "fp16"),
        ("calibrate", bundle, "-o", quantised, *RUN, "--count", 1, "--alpha", "none", "--images", 1, "--min-sqnr", 0),
        *(
            ("generate", each, "an owl", *RUN, "--step-cache", 2, "-o", tmp_path / f"{each.name}.png")
            for each in (bundle, half, quantised)
        ),
        ("bench", quantised, "--backend", "onnxruntime,openvino", "--against", bundle, *BRIEF),
        ("bench", bundle, "--backend", "openvino", "--against", checkpoint, *BRIEF),
    ):
        outcome = cli(*command)
        assert outcome.code == 0, f"latentrt {command[0]}: {outcome.err}\n{outcome.out}"
        assert "not compared" not in outcome.out
    assert Bundle.open(quantised).component("step-shallow").precision == "int8"
