"""What a file says of its picture makes that picture again; and results that are shown and saved."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from picture_text import read_parameters

from latentrt import Guidance, Image, Inpaint, Pipeline, Request, RequestError, Result, SkipLayers, StepCache, Upscale
from latentrt.testing import fake_pipeline

PHOTO = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
FIELD = re.compile(r'([A-Z][\w ]*): ("(?:\\.|[^"])*"|[^,]*)(?:, |$)')


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


def parsed(text: str) -> dict[str, str]:
    """The fields of a `parameters` text, as other programs read them, and the two prompts."""
    *prompts, settings = text.split("\n")
    prompt, _, negative = "\n".join(prompts).partition("\nNegative prompt: ")
    found = {name: json.loads(value) if value.startswith('"') else value for name, value in FIELD.findall(settings)}
    return {"prompt": prompt, "negative": negative, **found}


def again(text: str) -> Request:
    """The request that a text without start values says."""
    found = parsed(text)
    width, height = map(int, found["Size"].split("x"))

    def numbers(name: str, kind: type = float) -> Any:
        return tuple(kind(part) for part in found[name].split()) if name in found else None

    values: dict[str, Any] = {
        "negative": found["negative"],
        "seed": int(found["Seed"]),
        "size": (width, height),
        "steps": int(found["Steps"]),
        "guidance": Guidance(
            float(found["CFG scale"]),
            interval=numbers("Guidance interval") or (0.0, 1.0),
            rescale=float(found.get("RescaleCFG", 0)),
        ),
        "sampler": found["Sampler"],
        "schedule": found["Schedule type"],
        "syntax": found.get("Syntax"),
        "clip_skip": int(found["Clip skip"]) - 1 if "Clip skip" in found else None,
        "sigmas": numbers("Sigmas"),
        "timesteps": numbers("Timesteps", int),
        "eta": float(found["Eta"]) if "Eta" in found else None,
        "denoising_end": float(found["Denoising end"]) if "Denoising end" in found else None,
    }
    if "Skip layers" in found:
        scale, span = float(found["Skip guidance"]), numbers("Skip range")
        values["skip_layers"] = SkipLayers(numbers("Skip layers", int), scale=scale, range=span)
    if "Hires upscale" in found:
        factor, strength = float(found["Hires upscale"]), float(found["Denoising strength"])
        values["upscale"] = Upscale(factor, strength=strength, space=found["Hires upscaler"])
    return Request(found["prompt"], **{name: value for name, value in values.items() if value is not None})


ROWS: list[dict[str, Any]] = [
    {},
    {"negative": 'blurry, dark: "very"', "guidance": Guidance(7.123456789, rescale=1 / 3)},
    {"sigmas": [14.6146, 3.3, 1 / 7, 0.0], "sampler": "euler"},
    {"timesteps": [999, 500, 1], "sampler": "euler"},
    {"guidance": 0, "steps": 3, "schedule": "karras", "seed": 2**64 - 1},
    {"eta": 0.123456789, "sampler": "ddim", "denoising_end": 0.5},
    {"guidance": Guidance(interval=(0.2, 0.7123456)), "syntax": "plain", "size": (96, 64)},
    {"upscale": Upscale(2, strength=0.51234567, space="pixel")},
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row) or "defaults")
def test_a_text_makes_the_picture_again(pipe: Pipeline, row: dict[str, Any]):
    made = pipe.generate("a fox,\nat (night:1.1)", **{"seed": 7, "steps": None if "sigmas" in row else 3} | row)
    (text,) = made.parameters()
    request = again(text)
    assert request == made.requests[0]
    np.testing.assert_array_equal(pipe.run(request).images, made.images)


def test_every_setting_that_is_not_the_default_is_in_the_text(pipe: Pipeline):
    """Also of fields that are yet to come: those that a text cannot hold are named here."""
    other = {"clip_skip": 1, "skip_layers": SkipLayers((1,)), "denoising_end": 0.5, "eta": 0.2}
    other |= {"syntax": "plain", "guidance": Guidance(5.0, interval=(0.1, 0.9))}
    other |= {"cache": StepCache(3), "sigmas": (5.0, 1.0, 0.0), "timesteps": (9, 1)}
    of_files = {"start", "control", "upscale", "output", "images"}
    has_place = {"prompt", "negative", "seed", "size", "steps", "sampler", "schedule"}
    assert {*other, *of_files, *has_place} == {field.name for field in fields(Request)}
    plain = pipe.generate("a", seed=7)
    parts = [
        ("cache", StepCache(deep=(0, 2))),
        ("guidance", Guidance(5.0, rescale=0.3)),
        ("skip_layers", SkipLayers((1,), scale=3.1)),
    ]
    for name, value in [*other.items(), *parts]:
        changed = replace(plain, requests=(replace(plain.requests[0], **{name: value}),))
        assert changed.parameters() != plain.parameters(), name


def test_starts_say_what_the_text_can_hold(pipe: Pipeline):
    (text,) = pipe.generate("a", seed=7, start=Image(PHOTO, 0.6123456)).parameters()
    assert {**parsed(text), "Denoising strength": "0.6123456", "Start": "Image", "Start size": "own"} == parsed(text)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 16:40] = 255
    part = Inpaint(PHOTO, mask, margin=8, feather=2)
    (text,) = pipe.generate("a", seed=7, start=part, size=(96, 64)).parameters()
    found = parsed(text)
    assert found["Start"] == "Inpaint margin=8 feather=2"
    assert (found["Size"], found["Start size"]) == ("64x64", "96x64")


def test_a_batch_says_of_each_image_its_own(pipe: Pipeline):
    made = pipe.run(Request(["a", "b"], seed=7, images=2), Request("c", seed=1, guidance=2.5))
    assert [(parsed(text)["prompt"], parsed(text)["Seed"]) for text in made.parameters()] == [
        ("a", "7"),
        ("a", "8"),
        ("b", "9"),
        ("b", "10"),
        ("c", "1"),
    ]


def test_a_result_is_saved_with_its_texts(pipe: Pipeline, tmp_path: Path):
    made = pipe.generate("a fox", seed=7, images=2)
    paths = made.save(tmp_path / "{seed}.png")
    assert paths == (tmp_path / "7.png", tmp_path / "8.png")
    assert [read_parameters(path) for path in paths] == made.parameters()
    for path, image in zip(paths, made.images, strict=True):
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(path)), image)
    with pytest.raises(RequestError, match=r"7\.png is there already.*overwrite"):
        made.save(tmp_path / "{seed}.png")
    made.save(tmp_path / "{seed}.png", overwrite=True)
    assert [path.name for path in made.save(str(tmp_path / "a.jpg"))] == ["a-0.jpg", "a-1.jpg"]


def test_what_cannot_be_saved_writes_nothing(pipe: Pipeline, tmp_path: Path):
    made = pipe.generate("a fox", seed=7, images=2)
    (tmp_path / "b-1.png").write_bytes(b"mine")
    for pattern, says in (("b.png", "is there already"), ("{sead}.png", "sead"), ("a.bmp", r"\.webp")):
        with pytest.raises(RequestError, match=says):
            made.save(tmp_path / pattern)
    with pytest.raises(RequestError, match="pattern is 7"):
        made.save(7)
    same = pipe.run(Request("a", seed=7), Request("b", seed=7))
    with pytest.raises(RequestError, match="2 images under 1 names"):
        same.save(tmp_path / "{seed}.png")
    with pytest.raises(RequestError, match="without images"):
        pipe.generate("a", output="latent").save(tmp_path / "c.png")
    assert [path.name for path in tmp_path.glob("*.*") if path.suffix in (".png", ".jpg")] == ["b-1.png"]


def test_what_is_shown_is_short(pipe: Pipeline):
    made = pipe.generate("a fox", seed=7, images=2, steps=3)
    latents = pipe.generate("a fox", seed=7, output="latent")
    step = next(iter(pipe.steps(Request("a fox", steps=3))))
    assert re.fullmatch(r"<Result: 2 images of \d+x\d+ px, seeds 7, 8; \d+\.\d\d s>", repr(made))
    assert repr(latents).startswith("<Result: 1 latents of ")
    assert re.fullmatch(r"<Timings: [\d.]+ s; text \d+ ms, 3 calls of \d+ ms, decoding \d+ ms>", repr(made.timings))
    assert repr(step).startswith("<Step 1 of 3: ")
    assert repr(pipe) == f"<Pipeline {pipe.bundle.name}: {pipe.bundle.family.name} on {pipe.backend}>"
    pipe.close()
    assert repr(pipe).endswith(", closed>")
    assert isinstance(made, Result)
