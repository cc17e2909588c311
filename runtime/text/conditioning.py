"""Texts to what the step takes from them: tokens, text encoders, one context for each branch and image."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from os import PathLike
from types import MappingProxyType

import numpy as np

from latentrt.arrays import FloatArray, Value, to_host
from latentrt.bundle import Bundle
from latentrt.engine import Engine
from latentrt.errors import RequestError
from latentrt.family import TextEncoderSpec
from latentrt.manifest.axes import tensor_shape
from latentrt.text.chunking import Chunks, tokenize
from latentrt.text.prompt_syntax import Text
from latentrt.text.textual_inversion import Embedding, read_embedding
from latentrt.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


EMPTY = Text.plain("")

BRANCHED = ("context", "pooled", "time_ids", "block_gate")
"""Inputs of the step whose first axis is that of the guidance branches, besides their weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What the texts of a batch say to the network, by branch and image.

    Args:
        context: [K, B, L, D].
        pooled: [K, B, P], or None where no text encoder's is used.
    """

    context: FloatArray
    pooled: FloatArray | None = None

    def inputs(self) -> dict[str, FloatArray]:
        """The step's inputs that come from texts."""
        return {"context": self.context} | ({} if self.pooled is None else {"pooled": self.pooled})


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What one text encoder makes of N texts: context [N, L, D] and pooled [N, P]."""

    context: FloatArray
    pooled: FloatArray


class Conditioner:
    """The text encoders of a bundle and their tokenizers, which are read when they are first needed."""

    def __init__(self, bundle: Bundle, engines: Mapping[str, Engine]) -> None:
        self._bundle = bundle
        self._engines = engines
        self._tokenizers: dict[str, Tokenizer] = {}
        self._embeddings: dict[str, Embedding] = {}
        self._noticed: set[str] = set()  # embeddings that a prompt has named, or a warning

    @property
    def embeddings(self) -> Mapping[str, Embedding]:
        """Those that a prompt may hold, by name."""
        return MappingProxyType(self._embeddings)

    def add_embedding(self, name: str, path: str | PathLike[str]) -> None:
        """Reads a file of textual inversion; one of the same name is replaced."""
        taking = [spec for spec in self._present if "extra_embeddings" in self._engines[spec.component].inputs]
        embedding = read_embedding(name, path, taking)
        self._embeddings = {**self._embeddings, embedding.name: embedding}  # a plan in another thread may read the old
        self._noticed.discard(embedding.name)

    def check(self, texts: Iterable[Iterable[Text]]) -> None:
        """Raises RequestError if a text names an embedding that is not there."""
        named = {name for branch in texts for text in branch for name in text.embeddings}
        unknown = {name for name in named - self._embeddings.keys() if not self._is_token(name)}
        if unknown:
            known = ", ".join(f"<{name}>" for name in sorted(self._embeddings))
            raise RequestError(
                f"embedding <{min(unknown)}> in a prompt",
                expected=f"one that was loaded: {known if known else 'there is none'}",
                hint="load it (`embeddings=`, `--embedding NAME=FILE`), or write \\< for the sign itself",
            )

    def notice(self, texts: Iterable[Iterable[Text]]) -> None:
        """Warns of embeddings that none of these texts names: once of each, and never of one that a text has named."""
        said = {text for branch in texts for text in branch}
        named = {name for text in said for name in text.embeddings}
        for name in sorted(self._embeddings.keys() - named - self._noticed):
            bare = any(text.says(name) for text in said)
            how = "without angle brackets, which is text" if bare else "in no prompt"
            log.warning("embedding %s is %s: it has no effect; write <%s>", name, how, name)
        self._noticed |= self._embeddings.keys()

    def encode(self, texts: Sequence[Sequence[Text]], *, clip_skip: int = 0) -> Conditioning:
        """Prompts by branch and image, [K][B], that of the prompt last. Each text is encoded once, however often it
        stands there.

        Args:
            clip_skip: layers to leave out at the top of text encoders that take `skip`, besides the model's own.
        """
        family = self._bundle.family
        order = distinct(texts)
        rows = np.array([[order.index(text) for text in branch] for branch in texts])
        encoded = {spec.component: self._encode(spec, order, clip_skip) for spec in family.text_encoders}
        bands = [
            _padded(np.concatenate([encoded[spec.component].context for spec in band], axis=-1), family.width)
            for band in family.bands()
        ]
        pooled = [encoded[spec.component].pooled for spec in family.text_encoders if spec.pooled_width]
        found = Conditioning(
            np.concatenate(bands, axis=1)[rows], np.concatenate(pooled, axis=-1)[rows] if pooled else None
        )
        if family.empty_is_zero:
            silent = [[text.empty for text in branch] for branch in texts]
            silent[-1] = [False] * len(silent[-1])
            for values in found.inputs().values():
                values[np.array(silent)] = 0
        return found

    def prepare(self, texts: Sequence[Sequence[Text]], *, chunks: int) -> None:
        """Makes the text encoders ready for so many different texts of so many chunks, the largest first, and runs
        none."""
        n, parts = len(distinct(texts)), self._bundle.components
        for spec in sorted(self._present, key=lambda each: -parts[each.component].parameters):
            engine, dims = self._engines[spec.component], parts[spec.component].dims
            lengths = {"N": n if spec.band else n * chunks, "E": 1}
            engine.prepare({name: tensor_shape(dims[name], lengths) for name in engine.inputs})

    def chunks(self, texts: Sequence[Text]) -> int:
        """How many chunks each of these texts takes when they are encoded together."""
        counts = (int(self._tokenized(spec, texts)[0].ids.shape[1]) for spec in self._present if not spec.band)
        return max(counts, default=1)

    def _encode(self, spec: TextEncoderSpec, texts: Sequence[Text], clip_skip: int) -> Encoded:
        """Long prompts in chunks, or behind the first band cut after one; what is pooled is the first chunk's."""
        if self._is_absent(spec):
            n = len(texts)
            return Encoded(
                np.zeros((n, spec.length, spec.width), np.float32), np.zeros((n, spec.pooled_width), np.float32)
            )
        engine = self._engines[spec.component]
        chunks, extra = self._tokenized(spec, texts)
        if spec.band:
            chunks = chunks.first()
        feed: dict[str, Value] = {
            "ids": chunks.rows,
            "skip": np.array([spec.clip_skip + clip_skip], np.int64),
            "extra_embeddings": extra,
        }
        out = engine.run({name: value for name, value in feed.items() if name in engine.inputs})
        context = chunks.join(np.asarray(to_host(out["hidden"])))
        if chunks.weights is not None:
            context = chunks.weigh(context, context[texts.index(EMPTY), : spec.length])
        pooled = np.asarray(to_host(out["pooled"])) if "pooled" in out else np.zeros((len(chunks.rows), 0), np.float32)
        return Encoded(context, pooled[:: len(pooled) // len(texts)])

    @property
    def _present(self) -> list[TextEncoderSpec]:
        """The family's text encoders that the bundle has."""
        return [each for each in self._bundle.family.text_encoders if each.component in self._engines]

    def _is_absent(self, spec: TextEncoderSpec) -> bool:
        return spec.optional and spec.component not in self._engines

    def _tokenized(self, spec: TextEncoderSpec, texts: Sequence[Text]) -> tuple[Chunks, FloatArray]:
        """The chunks of these texts, and the embeddings that their ids mean, `extra_embeddings` [E, D]; zeros stand for
        none. In a text encoder that takes no embeddings, they have no ids."""
        tokenizer = self._tokenizer(spec)
        texts = [text.spelling(lambda name: self._token_text(name, tokenizer)) for text in texts]
        ids: dict[str, range] = {}
        rows: list[FloatArray] = []
        end = spec.vocabulary
        for name in sorted({name for text in texts for name in text.embeddings}):
            found = self._embeddings[name].rows.get(spec.component, np.zeros((0, spec.width), np.float32))
            ids[name] = range(end, end := end + len(found))
            rows.append(found)
        extra = np.concatenate(rows) if end > spec.vocabulary else np.zeros((1, spec.width), np.float32)
        return tokenize(tokenizer, texts, embeddings=ids), extra

    def _is_token(self, name: str) -> bool:
        return any(self._tokenizer(spec).holds(f"<{name}>") for spec in self._present)

    def _token_text(self, name: str, tokenizer: Tokenizer) -> str | None:
        """What `<name>` is where no embedding has this name: a token of the tokenizer's own, followed by those that
        diffusers numbers after it (`TextualInversionLoaderMixin.maybe_convert_prompt`)."""
        if name in self._embeddings:
            return None
        numbered = takewhile(tokenizer.holds, (f"<{name}>_{i}" for i in count(1)))
        return " ".join([f"<{name}>", *(numbered if tokenizer.holds(f"<{name}>") else ())])

    def _tokenizer(self, spec: TextEncoderSpec) -> Tokenizer:
        if spec.component not in self._tokenizers:
            self._tokenizers[spec.component] = Tokenizer.of(spec, self._bundle.root)
        return self._tokenizers[spec.component]


def distinct(texts: Iterable[Iterable[Text]]) -> list[Text]:
    """The texts that are encoded, each once; among weighted ones also that of no words, which weights refer to."""
    found = list(dict.fromkeys(text for branch in texts for text in branch))
    return found if EMPTY in found or not any(text.weighted for text in found) else [*found, EMPTY]


def _padded(context: FloatArray, width: int) -> FloatArray:
    """[N, L, D] with zeros behind the features up to `width`."""
    return np.pad(context, ((0, 0), (0, 0), (0, width - context.shape[-1])))
