"""Prompts to the rows of ids that a text tower takes, and the tower's rows back to one context per prompt.

A CLIP tower reads 77 ids at once: an opening id, up to 75 of text, a closing id, padding; T5 has no opening id. A
longer prompt is cut into chunks that the tower reads one by one; their outputs, joined, are its context. Prompts that
run together, negative ones among them, get the same number of chunks; those added hold no text.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentrt.errors import RequestError
from latentrt.tokenizer import Tokenizer

log = logging.getLogger(__name__)

COMMA_REACH = 20
"""A full chunk ends after a comma if one is among its last so many tokens: phrases stay whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """Tokenized prompts.

    Attributes:
        ids: int64 [n_prompts, n_chunks, max_length].
        n_tokens: tokens of each prompt's text; fit for logs, which prompts are not.
    """

    ids: NDArray[np.int64]
    n_tokens: tuple[int, ...]

    @property
    def rows(self) -> NDArray[np.int64]:
        """What the tower takes: int64 [n_prompts * n_chunks, max_length]."""
        return self.ids.reshape(-1, self.ids.shape[-1])

    def join(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """The tower's output for `rows`, joined to contexts.

        [n_prompts * n_chunks, max_length, width] -> [n_prompts, n_chunks * max_length, width]
        """
        n_prompts, n_chunks, length = self.ids.shape
        return hidden.reshape(n_prompts, n_chunks * length, hidden.shape[-1])

    def first(self) -> "Chunks":
        """The prompts cut after their first chunk, with a warning where that loses text."""
        if self.ids.shape[1] == 1:
            return self
        log.warning("prompts of %s tokens are cut after %d", max(self.n_tokens), self.ids.shape[-1])
        return Chunks(self.ids[:, :1], self.n_tokens)

    def __str__(self) -> str:
        counts = ", ".join(map(str, self.n_tokens))
        return f"tokens per prompt: {counts}; chunks of {self.ids.shape[-1]} per prompt: {self.ids.shape[1]}"


def tokenize(tokenizer: Tokenizer, prompts: Sequence[str]) -> Chunks:
    """Ids of prompts that run together, the negative ones included, padded to the same number of chunks.

    If every prompt has at most `capacity` tokens, there is one chunk per prompt, equal to what
    `transformers.CLIPTokenizer(prompts, padding="max_length")` or its sibling for T5 gives.

    Raises:
        RequestError: no prompt, a prompt that is no text, or text that is not valid Unicode.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        found = "one string" if isinstance(prompts, str) else f"{[type(p).__name__ for p in prompts]}"
        raise RequestError(f"prompts given as {found}", expected="a sequence of one or more strings")
    texts = [tokenizer.encode(prompt) for prompt in prompts]
    comma_id = _comma_id(tokenizer)
    parts = [split(text, size=tokenizer.capacity, comma_id=comma_id) for text in texts]
    return Chunks(frame(parts, tokenizer=tokenizer), tuple(map(len, texts)))


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
