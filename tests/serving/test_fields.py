"""Tables of fields, without a server."""

import pytest

from latentrt.serving.web.fields import Field, FieldError, read
from latentrt.serving.web.pictures import looks_like_picture
from latentrt.serving.web.sdapi.fields import tags_of
from latentrt.values import Flag, Number, Whole


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a fox", "a fox", ()),
        ("a <lora:ink:0.8> fox", "a fox", (("ink", 0.8),)),
        ("a fox <lora:ink> <LORA:b c:-1>", "a fox", (("ink", 1.0), ("b c", -1.0))),
        ("a <b> fox: <3", "a <b> fox: <3", ()),
    ],
)
def test_tags_of_loras_leave_the_prompt(prompt, text, loras):
    assert tags_of(prompt) == (text, loras)


@pytest.mark.parametrize("prompt", ["<lora:ink:much>", "<hypernet:a:1>"])
def test_tags_that_nothing_follows_are_refused(prompt):
    with pytest.raises(FieldError, match="prompt"):
        tags_of(prompt)


TABLE = (
    Field("n", Whole(1, 10), aliases=("count",)),
    Field("scale", Number(0, 10)),
    Field("on", Flag()),
    Field("tiling", Flag(), neutral=(False,), refused="not here"),
)


@pytest.mark.parametrize(
    ("body", "given"),
    [
        ({"n": "3", "scale": "0", "on": "true"}, {"n": 3, "scale": 0.0, "on": True}),
        ({"n": 3.0, "on": 0, "other": object()}, {"n": 3, "on": False}),
        ({"n": None, "count": 4, "tiling": False}, {"n": 4}),
    ],
)
def test_fields_are_read_as_clients_send_them(body, given):
    assert read(TABLE, body) == given


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2.5}, "n"),
        ({"n": True}, "n"),
        ({"scale": "nan"}, "scale"),
        ({"on": "perhaps"}, "on"),
        ({"tiling": True}, "tiling"),
    ],
)
def test_what_a_field_may_not_be_names_it(body, param):
    with pytest.raises(FieldError) as caught:
        read(TABLE, body)
    assert caught.value.param == param


def test_words_are_no_picture():
    assert not looks_like_picture("a fox, " * 40)
    assert not looks_like_picture("iVBORw0KGgo")
    assert looks_like_picture("iVBORw0KGgo" + "A" * 100)
