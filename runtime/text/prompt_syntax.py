r"""What a prompt says, as its author wrote it, to texts with weights (docs/prompts.md).

    (a word)  [a word]  (a word:1.3)     weights 1.1, 1/1.1 and 1.3, which multiply where brackets nest
    BREAK                                the rest begins a new chunk
    a prompt AND another :0.5            two prompts, each with a branch of its own, and their weights
    <name>                               an embedding that was loaded under this name, or a token of the tokenizer
    \( \) \[ \] \< \> \\                 the signs themselves

Source: the syntax of stable-diffusion-webui (`modules/prompt_parser.py`), which takes brackets without their other half
for text; here they are an error.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from latentrt.errors import RequestError

EMPHASIS = 1.1
"""What round brackets multiply a weight by, and square ones divide it by."""

MOST = 1000
"""Weights beyond are refused: brackets make them, not authors."""

SYNTAXES = ("weighted", "plain")
"""How prompts are read: as above, or every sign for itself."""

NETWORKS = ("lora", "locon", "loha", "lokr", "dora", "lyco", "lycoris", "hypernet", "hypernetwork")
"""What stable-diffusion-webui applies where a prompt says `<lora:name:0.8>`; here a prompt applies none."""

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_MARK = re.compile(
    r"\\(?P<sign>[\\()\[\]<>])"
    r"|(?P<opening>[(\[])"
    rf"|(?::\s*(?P<weight>{_NUMBER})\s*)?(?P<closing>[)\]])"
    rf"|<\s*(?P<network>(?i:{'|'.join(NETWORKS)}))\s*:"
    r"|<(?P<embedding>\w[\w.:-]*)>"
    r"|<(?P<directive>[^\W\d]\w*):[^<>]*>"
    r"|\b(?P<rupture>BREAK)\b"
    r"|(?P<bar>\|)",
)
_JOINT = re.compile(r"\bAND\b")
_TAIL = re.compile(rf":\s*({_NUMBER})\s*$")
_PARTNER = {")": "(", "]": "["}


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a prompt and its weight. Of an embedding, `text` is its name."""

    text: str
    weight: float = 1.0
    embedding: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt that has been read: sections, each beginning a new chunk, of spans. One at least; it may be empty."""

    sections: tuple[tuple[Span, ...], ...]

    @classmethod
    def plain(cls, text: str) -> Self:
        """A text in which every sign stands for itself."""
        return cls(((Span(text),) if text else (),))

    @property
    def empty(self) -> bool:
        """Whether it says nothing at all."""
        return self.sections == ((),)

    @property
    def weighted(self) -> bool:
        """Whether any weight is not 1."""
        return any(span.weight != 1 for section in self.sections for span in section)

    @property
    def embeddings(self) -> set[str]:
        """Names of the embeddings in it."""
        return {span.text for section in self.sections for span in section if span.embedding}

    def says(self, word: str) -> bool:
        """Whether the word stands in it as text, in any case."""
        said = " ".join(span.text for section in self.sections for span in section if not span.embedding)
        return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said, re.IGNORECASE) is not None

    def spelling(self, spelled: Callable[[str], str | None]) -> "Text":
        """The text with what `spelled` gives for an embedding's name in its place; None: it stays an embedding."""

        def plain(span: Span) -> Span:
            text = spelled(span.text) if span.embedding else None
            return span if text is None else Span(text, span.weight)

        return Text(tuple(tuple(map(plain, section)) for section in self.sections))


@dataclass(frozen=True, slots=True)
class PromptPart:
    """One of the prompts that are joined by AND."""

    text: Text
    weight: float = 1.0


def read_parts(prompt: str, *, syntax: str = "weighted") -> tuple[PromptPart, ...]:
    """The prompts that are joined by AND, one or more. A single one has weight 1 and no `:0.5`."""
    pieces = _JOINT.split(prompt) if isinstance(prompt, str) and syntax == "weighted" else [prompt]
    if len(pieces) == 1:
        return (PromptPart(read(prompt, syntax=syntax)),)
    return tuple(_part(piece) for piece in pieces)


def read_negative(prompt: str, *, syntax: str = "weighted") -> Text:
    """A negative prompt, which is a single one: AND is refused."""
    part, *others = read_parts(prompt, syntax=syntax)
    if others:
        raise RequestError("AND in a negative prompt", expected="one text", hint="write `and`, or syntax='plain'")
    return part.text


def _part(piece: str) -> PromptPart:
    tail = _TAIL.search(piece)
    said = piece[: tail.start()] if tail else piece
    weight = float(tail[1]) if tail else 1.0
    if not said.strip():
        raise RequestError("AND in a prompt with nothing on one side", expected="a text on both", hint="or write `and`")
    return PromptPart(read(said.strip()), _bounded(weight))


def read(prompt: str, *, syntax: str = "weighted") -> Text:
    """A prompt's text. Without any mark of the syntax it is one span of weight 1.

    Raises:
        RequestError: an unknown syntax, brackets without their other half, weights beyond `MOST`, or marks of
            stable-diffusion-webui that are not offered.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"a prompt given as {type(prompt).__name__}", expected="a text")
    if syntax not in SYNTAXES:
        raise RequestError(f"syntax '{syntax}'", expected=" or ".join(SYNTAXES))
    if syntax == "plain":
        return Text.plain(prompt)
    sections = tuple(_sections(prompt))
    if len(sections) > 1:
        said = tuple(section for section in sections if any(span.embedding or span.text.strip() for span in section))
        sections = said if said else ((),)
    return Text(sections)


def _sections(prompt: str) -> Iterator[tuple[Span, ...]]:
    """The spans between one BREAK and the next. Neighbours of one weight are joined."""
    section: list[Span] = []
    for span in _spans(prompt):
        if span is None:
            yield tuple(section)
            section = []
        elif section and section[-1].weight == span.weight and not (section[-1].embedding or span.embedding):
            section[-1] = replace(span, text=section[-1].text + span.text)
        else:
            section.append(span)
    yield tuple(section)


def _spans(prompt: str) -> list[Span | None]:
    """Pieces in order, with None for BREAK."""
    spans: list[Span | None] = []
    opened: list[tuple[str, int, int]] = []  # bracket, its first span, its place in the prompt
    at = 0
    for mark in _MARK.finditer(prompt):
        spans += [Span(prompt[at : mark.start()])] if at < mark.start() else []
        at = mark.end()
        if mark["sign"] is not None:
            spans.append(Span(mark["sign"]))
        elif mark["embedding"] is not None:
            spans.append(Span(mark["embedding"], embedding=True))
        elif mark["network"] is not None or mark["directive"] is not None:
            raise _undone(mark)
        elif mark["rupture"] is not None:
            spans.append(None)
        elif mark["opening"] is not None:
            opened.append((mark["opening"], len(spans), mark.start()))
        elif mark["bar"] is not None:
            if any(bracket == "[" for bracket, _, _ in opened):
                raise _refused("taking turns, [a|b],", mark.start())
            spans.append(Span("|"))
        else:
            bracket, first, _ = opened.pop() if opened else ("", 0, 0)
            if bracket != _PARTNER[mark["closing"]]:
                raise _unbalanced(mark["closing"], mark.end() - 1)
            _weigh(spans, first, _factor(mark))
    if opened:
        raise _unbalanced(opened[-1][0], opened[-1][2])
    if at < len(prompt):
        spans.append(Span(prompt[at:]))
    return spans


def _factor(mark: re.Match[str]) -> float:
    """What the brackets that this mark closes multiply weights by."""
    if mark["closing"] == "]":
        if mark["weight"] is not None:
            raise _refused("prompt editing, [a:b:0.5],", mark.start())
        return 1 / EMPHASIS
    return EMPHASIS if mark["weight"] is None else float(mark["weight"])


def _weigh(spans: list[Span | None], first: int, factor: float) -> None:
    for index, span in enumerate(spans[first:], first):
        if span is not None:
            spans[index] = replace(span, weight=_bounded(span.weight * factor))


def _bounded(weight: float) -> float:
    if abs(weight) > MOST:
        raise RequestError(f"a weight of {weight:g} in a prompt", expected=f"{-MOST} to {MOST}, such as 1.3")
    return weight


def _unbalanced(bracket: str, place: int) -> RequestError:
    return RequestError(
        f"'{bracket}' at character {place + 1} of a prompt without its other half",
        expected="brackets in pairs: (word), [word] or (word:1.3)",
        hint=f"write \\{bracket} for the sign itself, or give syntax='plain' to read every sign so",
    )


def _undone(mark: re.Match[str]) -> RequestError:
    """What a prompt of stable-diffusion-webui asks for between angle brackets."""
    network = mark["network"]
    how = "give a LoRA apart from the prompt (`--lora FILE:SCALE`, `lora=[(path, scale)]`)"
    if network is not None and network.lower().startswith("hypernet"):
        how = "hypernetworks are not supported, LoRAs are (`--lora FILE:SCALE`)"
    return RequestError(
        f"<{network if network is not None else mark['directive']}:...> at character {mark.start() + 1} of a prompt",
        expected="a text, weights, BREAK or embeddings",
        hint=f"{f'{how}; ' if network is not None else ''}write \\< for the sign itself, or give syntax='plain'",
    )


def _refused(what: str, place: int) -> RequestError:
    return RequestError(
        f"{what} at character {place + 1} of a prompt",
        expected="weights, BREAK or embeddings",
        hint="write \\[ and \\] for the signs themselves",
    )
