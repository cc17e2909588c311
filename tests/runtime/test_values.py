"""What public arguments may be: values of wrong types, thrown at every one of them, end in errors of the tree."""

import datetime
import decimal
import fractions
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import PIL.Image
import pytest

import latentrt
from latentrt import (
    Control,
    Image,
    Inpaint,
    Latent,
    LatentRTError,
    Lora,
    Outpaint,
    Pipeline,
    Request,
    RequestError,
    SkipLayers,
    StepCache,
    Upscale,
)
from latentrt.backends import BACKENDS
from latentrt.denoise.batch import make_plan
from latentrt.names import BackendName, ComputeName, DeviceName, OutputName, SamplerName, ScheduleName, SyntaxName
from latentrt.request import OUTPUTS, REQUEST, RequestOptions
from latentrt.testing import fake_family, fake_pipeline
from latentrt.text.prompt_syntax import SYNTAXES

GREY = np.full((64, 64, 3), 128, np.uint8)
X = np.zeros((4, 8, 8), np.float32)

MADE: dict[type, dict[str, Any]] = {
    Request: {"prompt": "a fox"},
    Image: {"photo": GREY},
    Inpaint: {"photo": GREY},
    Outpaint: {"photo": GREY, "left": 8},
    Latent: {"x": X, "denoising_start": 0.5},
    Control: {"name": "edges", "image": GREY},
    Upscale: {},
    Lora: {"path": "a.safetensors"},
    StepCache: {"interval": 3},
}
"""Every public class that a caller makes, and arguments that are right."""


class Odd:
    """Says that it is a path, and is none."""

    def __fspath__(self) -> bytes:
        return b"a"

    def __repr__(self) -> str:
        raise RuntimeError("no words")


STRANGE: tuple[Callable[[], Any], ...] = tuple(
    (lambda value=value: value)
    for value in (
        *(None, True, False, np.True_, 0, -1, 1, 3, 2**31, -(2**63), 2**64, 10**9, 10**400, 10**5000),
        *(0.0, -0.0, 0.5, -2.5, 1e-320, 1e300, math.nan, math.inf, -math.inf, 1j),
        *(
            np.float32("nan"),
            np.float16(7),
            np.int8(-3),
            np.uint64(2**64 - 1),
            np.longdouble("1e4000"),
            np.complex64(1),
        ),
        *(np.timedelta64(3, "s"), np.datetime64("2020-01-01"), np.str_("a"), np.bytes_(b"a")),
        *("", "a", "7", "nan", "128x128", "\0", "\ud800", "x" * 5000, b"a", bytearray(b"a"), memoryview(b"a")),
        *([], (), [1], [1, 2], [0.2, 0.8], [0.8, 0.2], [math.nan, 1], ["a"], [None], [[]], (1, 2, 3, 4), [True, False]),
        *({}, {"a": 1}, set(), frozenset([1]), range(3), range(999, 0, -100), range(10**30), iter([1]), object()),
        *(
            np.array(7.5),
            np.array([1, 2]),
            np.array([0.1, np.nan]),
            np.array(["a"]),
            np.array([None]),
            np.zeros((2, 2)),
        ),
        *(np.zeros((0,)), np.zeros(3, "i4,f4"), GREY, GREY[..., 0], GREY.astype(np.float32), GREY[:0], X, X[None]),
        *(Path("a.png"), Path(), Odd(), decimal.Decimal(1), fractions.Fraction(1, 2), datetime.date(2020, 1, 1)),
        *(print, int, len, Request, Request("a"), Image(GREY), Upscale(), Control("a", GREY), Lora("a"), latentrt),
        *(PIL.Image.fromarray(GREY), PIL.Image.new("F", (8, 8)), PIL.Image.new("RGB", (0, 4))),
    )
)


def mutations(seed: int, each: int) -> Iterator[tuple[type, dict[str, Any]]]:
    """Every field of every class with every strange value, then several fields at a time."""
    for made, right in MADE.items():
        for field in fields(made):
            yield from ((made, {**right, field.name: strange()}) for strange in STRANGE)
    chosen = random.Random(seed)
    for made, right in MADE.items():
        names = [field.name for field in fields(made)]
        for _ in range(each):
            wrong = {name: chosen.choice(STRANGE)() for name in chosen.sample(names, min(3, len(names)))}
            yield made, {**right, **wrong}
            nested = {name: [chosen.choice(STRANGE)() for _ in range(2)] for name in chosen.sample(names, 1)}
            yield made, {**right, **nested}


def test_whatever_is_given_is_taken_or_refused_by_an_error_of_the_tree():
    taken = refused = 0
    faults = []
    for made, arguments in mutations(seed=1, each=60):
        try:
            made(**arguments)
            taken += 1
        except LatentRTError:
            refused += 1
        except Exception as error:  # what the test looks for
            faults.append(f"{made.__name__} {sorted(arguments)}: {type(error).__name__} {error}")
    assert faults == []
    assert taken > 300
    assert refused > 3000


@pytest.mark.parametrize("start", [0, 1])
def test_what_is_taken_can_be_planned_or_is_refused(start: int):
    family, faults = fake_family(), []
    for made, arguments in list(mutations(seed=2, each=40))[start::2]:
        if made in (Lora, Control):
            continue
        try:
            value = made(**arguments)
            extra = {"start": value} if made in (Image, Inpaint, Outpaint, Latent) else {"upscale": value}
            request = value if made is Request else Request("a", **extra)
            if request.images * len(request.prompts) <= 16:
                make_plan([request], family)
        except LatentRTError:
            pass
        except Exception as error:
            faults.append(f"{made.__name__} {sorted(arguments)}: {type(error).__name__} {error}")
    assert faults == []


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.__name__)
def test_every_field_is_in_the_table(made: type):
    """A field that no table knows would take an object."""
    wrong = object()
    for field in fields(made):
        with pytest.raises(RequestError):
            made(**{**MADE[made], field.name: wrong})
    if made is Request:
        assert list(REQUEST) == [field.name for field in fields(Request)]


def compatible(what: str, outcome: str, *values: Any, recognised: str) -> Any:
    mark = pytest.mark.compatibility(kind="request", what=what, recognised=recognised, outcome=outcome)
    return pytest.param(*values, marks=mark, id=what)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        compatible(
            "numbers of NumPy",
            "works",
            {"guidance": np.float32(7.5), "steps": np.int64(3), "seed": np.uint8(7)},
            {"guidance": 7.5, "steps": 3, "seed": 7},
            recognised="scalars of its number types",
        ),
        compatible(
            "lists and arrays for sequences",
            "works",
            {"sigmas": np.array([5.0, 1, 0]), "size": [96, 64], "skip_layers": range(2)},
            {"sigmas": (5.0, 1.0, 0.0), "size": (96, 64), "skip_layers": SkipLayers((0, 1))},
            recognised="a sequence, or an array [n]",
        ),
        compatible("size as a text", "works", {"size": "128X96"}, {"size": (128, 96)}, recognised="WIDTHxHEIGHT"),
    ],
)
def test_what_has_a_plain_meaning_is_taken(given: dict, expected: dict):
    request = Request("a", **given)
    for name, value in expected.items():
        found = getattr(request, name)
        assert found == value
        assert type(found) is type(value)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a number as a text": ({"guidance": "7"}, "guidance is '7'; expected a number", "its type"),
    "a path as a start": ({"start": "a.png"}, r"start is 'a.png'.*latentrt\.Image\(", "its type"),
    "no prompt": ({"prompt": None}, "prompt is None; expected a text", "None"),
    "true as a number": ({"steps": True}, "steps is True; expected a whole number", "its type"),
    "NaN": ({"guidance": math.nan}, "guidance is nan; expected a number", "not finite"),
    "infinity in a list": ({"sigmas": [math.inf, 0]}, r"sigmas\[0\] is inf", "not finite"),
    "negative guidance": ({"guidance": -1}, "guidance is -1.0; expected a number, 0 to", "below 0"),
    "a thousand million images": ({"images": 10**9}, "images is 1000000000; .*--prompts", "more than 4096"),
    "a thousand million steps": ({"steps": 10**9}, "steps is 1000000000; .*denoising_end=", "more than 1000"),
}


@pytest.mark.parametrize(
    ("given", "says"),
    [compatible(what, "refused", *row[:2], recognised=row[2]) for what, row in REFUSED.items()],
)
def test_what_has_none_is_refused_by_name(given: dict, says: str):
    with pytest.raises(RequestError, match=says):
        Request(**{"prompt": "a", **given})


def test_images_are_counted_over_prompts():
    with pytest.raises(RequestError, match="8000 images; expected at most 4096"):
        Request(["a"] * 80, images=100)


@pytest.mark.parametrize(
    ("alias", "names"),
    [
        (SamplerName, latentrt.sampler_names()),
        (ScheduleName, latentrt.schedule_names()),
        (BackendName, ("auto", *(row.name for row in BACKENDS))),
        (DeviceName, tuple({name: None for row in BACKENDS for name in row.devices})),
        (ComputeName, tuple({name: None for row in BACKENDS for name in row.computes})),
        (SyntaxName, SYNTAXES),
        (OutputName, OUTPUTS),
    ],
)
def test_the_types_of_names_are_those_of_the_registries(alias: Any, names: tuple[str, ...]):
    assert sorted(get_args(alias)) == sorted(names)


VERBS: dict[str, Callable[[Pipeline, Any], object]] = {
    "generate": lambda pipe, value: pipe.generate(value),
    "generate, progress": lambda pipe, value: pipe.generate("a", progress=value),
    "run": lambda pipe, value: pipe.run(value),
    "run, progress": lambda pipe, value: pipe.run(Request("a"), progress=value),
    "plan": lambda pipe, value: pipe.plan(value),
    "steps": lambda pipe, value: list(pipe.steps(value)),
    "decode": lambda pipe, value: pipe.decode(value),
    "prepare, size": lambda pipe, value: pipe.prepare(size=value),
    "prepare, images": lambda pipe, value: pipe.prepare(images=value),
    "prepare, guided": lambda pipe, value: pipe.prepare(guided=value),
    "prepare, controls": lambda pipe, value: pipe.prepare(controls=value),
    "set_lora": lambda pipe, value: pipe.set_lora(value),
    "add_embedding, name": lambda pipe, value: pipe.add_embedding(value, "a.safetensors"),
    "add_embedding, path": lambda pipe, value: pipe.add_embedding("a", value),
    "load": lambda _, value: latentrt.load(value),
    "load, backend": lambda pipe, value: latentrt.load(pipe.bundle.root, backend=value),
    "load, device": lambda pipe, value: latentrt.load(pipe.bundle.root, device=value),
    "load, compute": lambda pipe, value: latentrt.load(pipe.bundle.root, compute=value),
    "load, threads": lambda pipe, value: latentrt.load(pipe.bundle.root, threads=value),
    "load, cache_dir": lambda pipe, value: latentrt.load(pipe.bundle.root, cache_dir=value),
    "load, notify": lambda pipe, value: latentrt.load(pipe.bundle.root, notify=value),
    "load, lora": lambda pipe, value: latentrt.load(pipe.bundle.root, lora=value),
    "load, embeddings": lambda pipe, value: latentrt.load(pipe.bundle.root, embeddings=value),
    "load, tile": lambda pipe, value: latentrt.load(pipe.bundle.root, tile=value),
    "canny": lambda _, value: latentrt.canny(value),
    "canny, low": lambda _, value: latentrt.canny(GREY, low=value),
    "canny, high": lambda _, value: latentrt.canny(GREY, high=value),
    "lineart": lambda _, value: latentrt.lineart(value),
    "sampler_names": lambda _, value: latentrt.sampler_names(value),
}
"""Every public argument that is no field of the classes above. The fake's folder holds no manifest."""


@pytest.mark.parametrize("verb", VERBS)
def test_whatever_a_public_function_is_given_ends_in_an_error_of_the_tree_or_works(verb: str, tmp_path: Path):
    pipe, faults = fake_pipeline(tmp_path), []
    for value in (strange() for strange in STRANGE):
        if verb == "prepare, images" and type(value) is int and 64 < value <= 4096:
            continue
        try:
            VERBS[verb](pipe, value)
        except LatentRTError:
            pass
        except Exception as error:
            if not (verb.endswith("progress") and callable(value)):  # of the caller's own function
                faults.append(f"{type(value).__name__}: {type(error).__name__} {error}")
    assert faults == []


def test_a_whole_request_is_taken_alone(tmp_path: Path):
    pipe, request = fake_pipeline(tmp_path), Request("a fox", seed=7, steps=3)
    seen: list[int] = []
    found = pipe.generate(request, progress=lambda step: seen.append(step.index))
    np.testing.assert_array_equal(found.images, pipe.run(request).images)
    assert seen == [0, 1, 2]
    with pytest.raises(RequestError, match="a Request, and steps besides"):
        pipe.generate(request, steps=4)


CLOSED: dict[str, Callable[[Pipeline], object]] = {
    "generate": lambda pipe: pipe.generate("a"),
    "run": lambda pipe: pipe.run(Request("a")),
    "plan": lambda pipe: pipe.plan([Request("a")]),
    "steps": lambda pipe: pipe.steps(Request("a")),
    "decode": lambda pipe: pipe.decode(X[None]),
    "prepare": lambda pipe: pipe.prepare(),
    "set_lora": lambda pipe: pipe.set_lora([]),
    "add_embedding": lambda pipe: pipe.add_embedding("a", "a.safetensors"),
    "with": lambda pipe: pipe.__enter__(),
}


@pytest.mark.parametrize("verb", CLOSED)
def test_a_closed_pipeline_says_so(verb: str, tmp_path: Path):
    pipe = fake_pipeline(tmp_path)
    pipe.close()
    pipe.close()
    with pytest.raises(RequestError, match="this pipeline is closed"):
        CLOSED[verb](pipe)


def test_the_options_of_generate_are_the_fields_of_a_request():
    fields, options = get_type_hints(Request), get_type_hints(RequestOptions)
    del fields["prompt"]
    assert options == fields
