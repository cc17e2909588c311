"""Prompts as they are written, to texts with weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrt.errors import RequestError
from latentrt.text.prompt_syntax import Span, Text, read, read_negative, read_parts

MARKS = [
    "(",
    ")",
    "[",
    "]",
    ":1.3)",
    ":-.5)",
    ":2]",
    "\\",
    "\\(",
    "<cat>",
    "BREAK",
    " ",
    ",",
    "fox",
    "|",
    ":",
    "é",
    "\n",
]
anything = st.text(max_size=30) | st.lists(st.sampled_from(MARKS), max_size=30).map("".join)
words = st.text(st.characters(exclude_characters="()[]<>\\|:", exclude_categories=["Cs"]), min_size=1, max_size=12)
words = words.filter(lambda text: "BREAK" not in text)
signs = st.text(st.sampled_from("()[]<>\\ab :1"), max_size=20)


def spans(prompt: str) -> list[tuple[str, float]]:
    """Of a prompt without BREAK, weights rounded to 6 digits."""
    (section,) = read(prompt).sections
    return [(span.text, round(span.weight, 6)) for span in section]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (red) fox", [("a ", 1), ("red", 1.1), (" fox", 1)]),
        ("a [red] fox", [("a ", 1), ("red", 0.909091), (" fox", 1)]),
        ("((a))", [("a", 1.21)]),
        ("([a])", [("a", 1)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a : 2 )", [("a ", 2)]),
        ("(a:-.5)(b:0)", [("a", -0.5), ("b", 0)]),
        ("(a (b:1.5) c)", [("a ", 1.1), ("b", 1.65), (" c", 1.1)]),
        ("(at 10:30)", [("at 10", 30)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("a: b | c", [("a: b | c", 1)]),
        ("(a)(b)", [("ab", 1.1)]),
        (r"a \(b\) \[c\] \\", [(r"a (b) [c] " + "\\", 1)]),
        (r"(a \(b\):1.3)", [("a (b)", 1.3)]),
        (r"back\slash\\", [("back\\slash\\", 1)]),
        (r"\<a> <b", [("<a> <b", 1)]),
        ("()", []),
    ],
)
def test_marks_become_weights(prompt: str, expected: list):
    assert spans(prompt) == expected


def test_a_break_begins_a_section_and_keeps_the_weight_around_it():
    assert read("(a BREAK b) c").sections == (
        (Span("a ", 1.1),),
        (Span(" b", 1.1), Span(" c")),
    )
    assert len(read("BREAKER breaks, a break").sections) == 1


@pytest.mark.parametrize("prompt", ["a BREAK", "BREAK a", "BREAK BREAK a"])
def test_a_break_with_nothing_on_one_side_changes_nothing(prompt: str):
    ((span,),) = read(prompt).sections
    assert span.text.strip() == "a"


def test_names_in_angle_brackets_are_embeddings():
    text = read("a (<cat-toy>:1.5) on <b2>")
    assert text.embeddings == {"cat-toy", "b2"}
    assert text.sections[0][1] == Span("cat-toy", 1.5, embedding=True)
    assert not read("1 < 2 > 0 <|endoftext|> < a >").embeddings


@settings(deadline=None)
@given(prompt=words)
def test_text_without_marks_comes_back_unchanged(prompt: str):
    assert read(prompt) == Text.plain(prompt) == read(prompt, syntax="plain")


@settings(deadline=None)
@given(text=signs)
def test_escaped_signs_are_text(text: str):
    escaped = "".join("\\" + sign if sign in "()[]<>\\" else sign for sign in text)
    assert read(escaped) == Text.plain(text)


@settings(deadline=None, max_examples=300)
@given(prompt=anything)
def test_nothing_but_a_request_error_is_raised(prompt: str):
    try:
        text = read(prompt)
    except RequestError:
        return
    assert text.sections
    assert all(np.isfinite(span.weight) and span.text for section in text.sections for span in section)


@settings(deadline=None)
@given(text=words, depth=st.integers(0, 6))
def test_weights_balance(text: str, depth: int):
    assert spans("(" * depth + text + ")" * depth) == [(text, round(1.1**depth, 6))]
    assert spans("([" * depth + text + "])" * depth) == [(text, 1)]


@pytest.mark.parametrize("prompt", ["[a:b:0.5]", "[a:2]", "[a|b]", "[(a|b)]"])
def test_marks_of_the_other_program_that_are_not_offered_are_refused(prompt: str):
    with pytest.raises(RequestError, match="expected weights, BREAK or embeddings"):
        read(prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (red fox", r"'\(' at character 3 of a prompt without its other half"),
        ("a red) fox", r"'\)' at character 6"),
        ("a [red) fox", r"'\)' at character 7"),
        ("(a:1.2] b)", r"'\]' at character 7"),
        (":)", r"'\)' at character 2 .*write \\\) for the sign itself"),
        (f"(a:{'9' * 400})", "a weight of inf in a prompt; expected -1000 to 1000"),
        ("(((a:11):10):-10)", "a weight of -1100 in a prompt"),
        (7, "a prompt given as int; expected a text"),
    ],
)
def test_bad_prompts_say_where_and_what_to_do(prompt, message: str):
    with pytest.raises(RequestError, match=message):
        read(prompt)


def test_an_unknown_syntax_is_refused():
    with pytest.raises(RequestError, match="syntax 'compel'; expected weighted or plain"):
        read("a", syntax="compel")


NETWORKS = {
    "<lora:my style v2:0.7>": "<lora:...>",
    "<lora:a(v1):1>": "<lora:...>",
    "<lora:x:1:lbw=1,0,0.5>": "<lora:...>",
    "<LoRA:x>": "<LoRA:...>",
    "< lora : x : 1 >": "<lora:...>",
    "<lora:x": "<lora:...>",
    "<lora:x AND y:1>": "<lora:...>",
    "(<lyco:x:1>:0.5)": "<lyco:...>",
    "<hypernet:x:1>": "<hypernet:...>",
}


@pytest.mark.compatibility(
    kind="prompt",
    what="LoRAs, LyCORIS and hypernetworks that a prompt names",
    recognised="<lora:, <lyco:, <hypernet:, in any case",
    outcome="refused",
)
@pytest.mark.parametrize("prompt", NETWORKS)
def test_networks_in_a_prompt_are_refused_with_the_option(prompt: str):
    for text in (prompt, f"a red fox {prompt}, masterpiece", f"{prompt}{prompt}"):
        for reading in (read_parts, read_negative):
            with pytest.raises(RequestError, match="--lora") as caught:
                reading(text)
            assert NETWORKS[prompt] in str(caught.value)
    assert read(prompt, syntax="plain") == Text.plain(prompt)


@pytest.mark.compatibility(
    kind="prompt",
    what="what other extensions of stable-diffusion-webui write, such as <segment:face>",
    recognised="<word:...>",
    outcome="refused",
)
@pytest.mark.parametrize("prompt", ["a <segment: a face>", "<random:red,blue> fox", "<choice:a(b)>"])
def test_what_extensions_write_is_refused(prompt: str):
    with pytest.raises(RequestError, match=r"<\w+:\.\.\.> at character"):
        read(prompt)


@pytest.mark.parametrize("prompt", ["a < b", "a <b c>", "<|endoftext|>", "1 < 2: 3 > 2", r"\<lora:x:1\>", "a:b <3"])
def test_other_angle_brackets_are_text(prompt: str):
    assert spans(prompt) == [(prompt.replace("\\", ""), 1)]
