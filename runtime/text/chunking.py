"""Prompts to the rows of ids that a text encoder takes, and the text encoder's rows back to one context per prompt.

A CLIP text encoder reads 77 ids at once: an opening id, up to 75 of text, a closing id, padding; T5 has no opening id.
A longer prompt is cut into chunks that the text encoder reads one by one; their outputs, joined, are its context.
Prompts that run together, negative ones among them, get the same number of chunks; those added hold no text.

Weights act on the context: that of a token is moved away from, or towards, the context that no text has in its place,
`empty + weight * (hidden - empty)`. It is the formula of compel (for weights from 1 on) and of ComfyUI, which holds for
any text encoder; that of stable-diffusion-webui divides by the mean of the context, which is near 0 in some of them.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from latentrt.errors import RequestError
from latentrt.text.prompt_syntax import Span, Text
from latentrt.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

COMMA_REACH = 20
"""A full chunk ends after a comma if one is among its last so many tokens: phrases stay whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """Tokenized prompts.

    Attributes:
        ids: int64 [n_prompts, n_chunks, max_length].
        n_tokens: tokens of each prompt's text; fit for logs, which prompts are not.
        weights: of each token, float32 as `ids`; None: all are 1.
    """

    ids: NDArray[np.int64]
    n_tokens: tuple[int, ...]
    weights: NDArray[np.float32] | None = None

    @property
    def rows(self) -> NDArray[np.int64]:
        """What the text encoder takes: int64 [n_prompts * n_chunks, max_length]."""
        return self.ids.reshape(-1, self.ids.shape[-1])

    def join(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """The text encoder's output for `rows`, joined to contexts.

        [n_prompts * n_chunks, max_length, width] -> [n_prompts, n_chunks * max_length, width]
        """
        n_prompts, n_chunks, length = self.ids.shape
        return hidden.reshape(n_prompts, n_chunks * length, hidden.shape[-1])

    def weigh(self, context: NDArray[np.float32], empty: NDArray[np.float32]) -> NDArray[np.float32]:
        """Contexts as `join` makes them with their tokens' weights; tokens of weight 1 stay as they are to the bit.

        Args:
            empty: the context of a chunk without text, [max_length, width].
        """
        if self.weights is None:
            return context
        n_prompts, n_chunks, length = self.ids.shape
        weights = self.weights.reshape(n_prompts, n_chunks * length, 1)
        base = np.tile(empty, (n_chunks, 1))
        return np.where(weights == 1, context, base + weights * (context - base))

    def first(self) -> "Chunks":
        """The prompts cut after their first chunk, with a warning where that loses text."""
        if self.ids.shape[1] == 1:
            return self
        log.warning("prompts of %s tokens are cut after %d", max(self.n_tokens), self.ids.shape[-1])
        return Chunks(self.ids[:, :1], self.n_tokens, None if self.weights is None else self.weights[:, :1])

    def __str__(self) -> str:
        counts = ", ".join(map(str, self.n_tokens))
        return f"tokens per prompt: {counts}; chunks of {self.ids.shape[-1]} per prompt: {self.ids.shape[1]}"


def tokenize(
    tokenizer: Tokenizer, prompts: Sequence[str | Text], *, embeddings: Mapping[str, Sequence[int]] | None = None
) -> Chunks:
    """Ids of prompts that run together, the negative ones included, padded to the same number of chunks.

    If every prompt has at most `capacity` tokens and one section, there is one chunk per prompt, equal to what
    `transformers.CLIPTokenizer(prompts, padding="max_length")` or its sibling for T5 gives. Weights do not change ids.

    Args:
        prompts: as `latentrt.text.prompt_syntax.read` gives them. In a string every sign stands for itself.
        embeddings: ids that stand for an embedding, by its name; all names in the prompts.

    Raises:
        RequestError: no prompt, a prompt that is no text, or text that is not valid Unicode.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str | Text) for prompt in prompts):
        found = "one string" if isinstance(prompts, str) else f"{[type(p).__name__ for p in prompts]}"
        raise RequestError(f"prompts given as {found}", expected="a sequence of one or more strings")
    texts = [Text.plain(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    comma_id = _comma_id(tokenizer)
    named = embeddings if embeddings is not None else {}
    cut = [list(_parts(tokenizer, text, named, comma_id)) for text in texts]
    ids = frame([[part for part, _ in parts] for parts in cut], tokenizer=tokenizer)
    weights = None
    if any(text.weighted for text in texts):
        weights = np.ones(ids.shape, np.float32)
        first = tokenizer.n_markers - 1  # behind the opening id
        for row, parts in zip(weights, cut, strict=True):
            for chunk, (_, values) in zip(row, parts, strict=False):
                chunk[first : first + len(values)] = values
    return Chunks(ids, tuple(sum(len(part) for part, _ in parts) for parts in cut), weights)


def _parts(
    tokenizer: Tokenizer, text: Text, embeddings: Mapping[str, Sequence[int]], comma_id: int | None
) -> Iterator[tuple[list[int], list[float]]]:
    """What goes into each chunk of a prompt: ids, and the weight of each."""
    for section in text.sections:
        ids: list[int] = []
        weights: list[float] = []
        for embedding, spans in groupby(section, key=lambda span: span.embedding):
            for token, weight in _named(spans, embeddings) if embedding else _read(tokenizer, list(spans)):
                ids.append(token)
                weights.append(weight)
        at = 0
        for part in split(ids, size=tokenizer.capacity, comma_id=comma_id):
            yield part, weights[at : at + len(part)]
            at += len(part)


def _read(tokenizer: Tokenizer, spans: Sequence[Span]) -> Iterator[tuple[int, float]]:
    """Ids of neighbouring spans, which are those of the text without weights; each has its last character's weight."""
    weights = [span.weight for span in spans for _ in span.text]
    for token, place in tokenizer.locate("".join(span.text for span in spans)):
        yield token, weights[place]


def _named(spans: Iterable[Span], embeddings: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, float]]:
    for span in spans:
        for token in embeddings[span.text]:
            yield token, span.weight


def split(ids: Sequence[int], *, size: int, comma_id: int | None = None) -> list[list[int]]:
    """Cut a prompt's ids [n] into one or more parts of at most `size`, after a comma where one is near."""
    parts = []
    start = 0
    while len(ids) - start > size:
        end = start + size
        near = range(end - 1, max(start, end - COMMA_REACH) - 1, -1)
        end = next((i + 1 for i in near if ids[i] == comma_id), end)
        parts.append(list(ids[start:end]))
        start = end
    return [*parts, list(ids[start:])]


def frame(prompts: Sequence[Sequence[Sequence[int]]], *, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Parts of prompts, each of at most `capacity` ids, with opening, closing and padding ids.

    Returns int64 [n_prompts, n_chunks, max_length], n_chunks being the most parts that a prompt has.
    """
    n_chunks = max(map(len, prompts))
    opening = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    ids = np.full((len(prompts), n_chunks, tokenizer.max_length), tokenizer.pad_id, np.int64)
    ids[..., : tokenizer.n_markers] = (*opening, tokenizer.eos_id)
    for row, parts in zip(ids, prompts, strict=True):
        for chunk, part in zip(row, parts, strict=False):
            line = (*opening, *part, tokenizer.eos_id)
            chunk[: len(line)] = line
    return ids


def _comma_id(tokenizer: Tokenizer) -> int | None:
    ids = tokenizer.encode(",")
    return ids[0] if len(ids) == 1 else None
