"""Everything in one run of an int8 bundle: a photo to start from, two ControlNets, a LoRA, joined prompts with weights
and guidance in a part of the run."""

from dataclasses import replace
from pathlib import Path

import numpy as np

import latentrt
from latentrt import Control, Guidance, Image, Pipeline, Request
from latentrt.export.parity.pictures import control_picture
from latentrt.images.start import TEXT

LORA = Path(__file__).parents[2] / "examples" / "shapes" / "lora" / "outlined.safetensors"
SIZE = (64, 64)


def photo() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    return np.stack([x * 4, y * 4, 0 * x], axis=-1).astype(np.uint8)


LINES = control_picture(SIZE)
FIRST, SECOND = Control("random", LINES, 0.5), Control("other", LINES[::-1], 0.5, start=0.3)
WHOLE = Request(
    "a (red:1.5) circle AND a blue star :0.6",
    negative="a purple circle",
    seed=7,
    size=SIZE,
    steps=6,
    guidance=Guidance(4.0, interval=(0.2, 0.8)),
    sampler="dpmpp-2m",
    start=Image(photo(), 0.8),
    control=[FIRST, SECOND],
)
# By what is left out, and with which LoRAs.
WITHOUT = {
    "the photo": replace(WHOLE, start=TEXT),
    "the first control": replace(WHOLE, control=[SECOND]),
    "the second control": replace(WHOLE, control=[FIRST]),
    "the part of the run in which the second acts": replace(WHOLE, control=[FIRST, replace(SECOND, start=0.0)]),
    "the second prompt": replace(WHOLE, prompt="a (red:1.5) circle"),
    "its weight": replace(WHOLE, prompt="a (red:1.5) circle AND a blue star"),
    "the weight of a word": replace(WHOLE, prompt="a red circle AND a blue star :0.6"),
    "the negative prompt": replace(WHOLE, negative=""),
    "the interval": replace(WHOLE, guidance=4.0),
}


def made(pipe: Pipeline, request: Request) -> np.ndarray:
    return pipe.run(request).images.astype(int)


def test_every_part_moves_the_image_and_the_same_run_gives_the_same_one(controlled_int8: Path):
    with latentrt.load(controlled_int8, backend="onnxruntime", threads=1, lora=[LORA]) as pipe:
        whole = made(pipe, WHOLE)
        assert (made(pipe, WHOLE) == whole).all()
        moved = {what: np.abs(made(pipe, request) - whole).mean() for what, request in WITHOUT.items()}
        pipe.set_lora([])
        moved["the LoRA"] = np.abs(made(pipe, WHOLE) - whole).mean()
        pipe.set_lora([LORA])
        assert (made(pipe, WHOLE) == whole).all()
    assert {what: mean for what, mean in moved.items() if mean < 1} == {}
    assert whole.shape == (1, 64, 64, 3) and whole.std() > 10
