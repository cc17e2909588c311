"""Token ids of T5 against `transformers`: no opening id, padding 0."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5TokenizerFast

from latentrt.errors import BundleError
from latentrt.export.synthetic.sd3 import t5_tokenizer
from latentrt.text.chunking import tokenize
from latentrt.text.tokenizer import Tokenizer

Pair = tuple[Tokenizer, T5TokenizerFast]

PIECES = [
    "a red circle",
    "the",
    "ing",
    ",",
    " ",
    "\t\n",
    "</s>",
    "<pad>",
    "<extra_id_3>",
    "é",
    "夕",
    "👩‍🚀",
    "\x00",
    "▁",
]
texts = st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    reference = t5_tokenizer(200)
    path = tmp_path_factory.mktemp("bundle") / "tokenizer.json"
    reference.backend_tokenizer.save(str(path))
    return Tokenizer.load(path, pad_id=reference.pad_token_id, max_length=256), reference


@settings(deadline=None, max_examples=200)
@given(text=texts)
def test_ids_equal_transformers(pair: Pair, text: str) -> None:
    ours, reference = pair
    assert ours.encode(text) == reference(text, add_special_tokens=False)["input_ids"]


def test_markers_are_those_of_t5(pair: Pair) -> None:
    ours, reference = pair
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (None, 1, 0)
    assert ours.vocab_size == len(reference) == 200
    assert ours.capacity == 255


@settings(deadline=None, max_examples=50)
@given(prompts=st.lists(st.text(max_size=60), min_size=1, max_size=3))
def test_prompts_of_one_chunk_equal_what_diffusers_feeds(pair: Pair, prompts: list[str]) -> None:
    ours, reference = pair
    expected = reference(prompts, padding="max_length", max_length=256, truncation=True, return_tensors="np")
    np.testing.assert_array_equal(tokenize(ours, prompts).rows, expected["input_ids"])


def test_every_chunk_of_a_long_prompt_is_closed(pair: Pair) -> None:
    ours, _ = pair
    chunks = tokenize(ours, ["x" * 600, "x"]).ids
    assert chunks.shape == (2, 3, 256)
    assert (chunks[0, :2, 255] == 1).all()
    assert chunks[1, 2].tolist() == [1] + [0] * 255


def test_a_length_without_room_for_text_is_refused(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    pair[1].backend_tokenizer.save(str(path))
    assert Tokenizer.load(path, pad_id=0, max_length=2).capacity == 1
    with pytest.raises(BundleError, match="at least 2"):
        Tokenizer.load(path, pad_id=0, max_length=1)
