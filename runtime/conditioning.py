"""Texts to what the step takes from them: tokens, text towers, one context for each branch and image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentrt.bundle import Bundle
from latentrt.engine import Engine, to_host
from latentrt.family import TextTower
from latentrt.prompt import tokenize
from latentrt.tokenizer import Tokenizer

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What the texts of a batch say to the network, by branch and image.

    Args:
        context: [K, B, L, D].
    """

    context: FloatArray

    def inputs(self) -> dict[str, FloatArray]:
        """The step's inputs that come from texts."""
        return {"context": self.context}


class Conditioner:
    """The text towers of a bundle and their tokenizers, which are read when they are first needed."""

    def __init__(self, bundle: Bundle, engines: Mapping[str, Engine]) -> None:
        self._bundle = bundle
        self._engines = engines
        self._tokenizers: dict[str, Tokenizer] = {}

    def encode(self, texts: Sequence[Sequence[str]]) -> Conditioning:
        """Prompts by branch and image, [K][B]. Each text is encoded once, however often it stands there.

        Raises:
            RequestError: a prompt that is no valid text.
            BackendError: an engine failed.
        """
        order = list(dict.fromkeys(text for branch in texts for text in branch))
        rows = np.array([[order.index(text) for text in branch] for branch in texts])
        towers = [self._hidden(tower, order) for tower in self._bundle.family.towers]
        return Conditioning(np.concatenate(towers, axis=-1)[rows])

    def _hidden(self, tower: TextTower, texts: Sequence[str]) -> FloatArray:
        """[N, L, D] of one tower, long prompts in chunks."""
        chunks = tokenize(self._tokenizer(tower), texts)
        out = self._engines[tower.component].run(
            {
                "ids": chunks.rows,
                "skip": np.zeros(1, np.int64),
                "extra_embeddings": np.zeros((1, tower.width), np.float32),
            }
        )
        return chunks.join(np.asarray(to_host(out["hidden"])))

    def _tokenizer(self, tower: TextTower) -> Tokenizer:
        if tower.component not in self._tokenizers:
            path = self._bundle.root / tower.tokenizer
            self._tokenizers[tower.component] = Tokenizer.load(path, pad_id=tower.pad_id, max_length=tower.length)
        return self._tokenizers[tower.component]
