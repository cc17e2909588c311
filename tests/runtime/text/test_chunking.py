"""Prompts to chunks of ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from latentrt.errors import RequestError
from latentrt.text.chunking import COMMA_REACH, Chunks, split, tokenize
from latentrt.text.tokenizer import Tokenizer

COMMA = 1
ids_of_text = st.lists(st.sampled_from([COMMA, 2, 3, 4, 5]), max_size=300)
words = st.sampled_from(["a", "fox", ",", "red", "é", "42", "<|endoftext|>", "\n"])
prompts = st.lists(st.lists(words, max_size=120).map(" ".join), min_size=1, max_size=4)

Pair = tuple[Tokenizer, CLIPTokenizer]


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"], ids=["pad=eos", "pad=!"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A CLIP tokenizer without merges, one token a byte; SD 1.x pads with the closing id, SD 2.x with "!"."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    reference = CLIPTokenizer(vocab=vocab, merges=[], pad_token=request.param, model_max_length=77)
    path = tmp_path_factory.mktemp("bundle") / "tokenizer.json"
    reference.backend_tokenizer.save(str(path))
    return Tokenizer.load(path, pad_id=reference.pad_token_id, max_length=77), reference


@settings(deadline=None)
@given(ids=ids_of_text, size=st.integers(1, 90))
def test_split_keeps_every_id_in_order(ids: list[int], size: int) -> None:
    parts = split(ids, size=size, comma_id=COMMA)
    assert [i for part in parts for i in part] == ids
    assert all(len(part) <= size for part in parts)
    assert parts == [[]] if not ids else all(parts)


@settings(deadline=None)
@given(ids=ids_of_text, size=st.integers(COMMA_REACH, 90))
def test_split_breaks_at_the_last_comma_in_reach(ids: list[int], size: int) -> None:
    start = 0
    for part in split(ids, size=size, comma_id=COMMA)[:-1]:
        full = ids[start : start + size]
        if COMMA in full[-COMMA_REACH:]:
            assert part[-1] == COMMA
            assert COMMA not in full[len(part) :]
        else:
            assert part == full
        start += len(part)


@settings(deadline=None)
@given(ids=ids_of_text, size=st.integers(1, 90))
def test_split_without_comma_is_plain(ids: list[int], size: int) -> None:
    expected = [ids[start : start + size] for start in range(0, len(ids), size)]
    assert split(ids, size=size) == (expected if ids else [[]])


def test_comma_out_of_reach_is_ignored() -> None:
    ids = [2] * 54 + [COMMA] + [2] * 30
    assert [len(part) for part in split(ids, size=75, comma_id=COMMA)] == [75, 10]
    ids = [2] * 55 + [COMMA] + [2] * 30
    assert [len(part) for part in split(ids, size=75, comma_id=COMMA)] == [56, 30]


@settings(deadline=None)
@given(prompts=st.lists(st.text(max_size=15), min_size=1, max_size=4))
def test_prompts_of_one_chunk_equal_what_diffusers_feeds(pair: Pair, prompts: list[str]) -> None:
    ours, reference = pair
    expected = reference(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np")
    found = tokenize(ours, prompts)
    assert found.ids.dtype == np.int64
    assert found.ids.shape == (len(prompts), 1, 77)
    np.testing.assert_array_equal(found.rows, expected["input_ids"])


@pytest.mark.parametrize("n_tokens, n_chunks", [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_number_of_chunks(pair: Pair, n_tokens: int, n_chunks: int) -> None:
    ours, reference = pair
    chunks = tokenize(ours, ["x " * n_tokens])
    assert chunks.ids.shape == (1, n_chunks, 77)
    assert chunks.n_tokens == (n_tokens,)
    if n_tokens == 76:  # without a comma in reach the first chunk is the one that diffusers keeps
        kept = reference("x " * n_tokens, max_length=77, truncation=True)["input_ids"]
        assert chunks.ids[0, 0].tolist() == kept


@settings(deadline=None)
@given(prompts=prompts)
def test_every_chunk_is_framed_and_no_token_is_lost(pair: Pair, prompts: list[str]) -> None:
    ours, _ = pair
    chunks = tokenize(ours, prompts)
    comma_id = ours.encode(",")[0]
    empty = [ours.bos_id, ours.eos_id, *[ours.pad_id] * 75]
    assert chunks.n_tokens == tuple(len(ours.encode(prompt)) for prompt in prompts)
    n_used = []
    for prompt, rows in zip(prompts, chunks.ids.tolist(), strict=True):
        parts = split(ours.encode(prompt), size=75, comma_id=comma_id)
        n_used.append(len(parts))
        framed = [[ours.bos_id, *part, ours.eos_id, *[ours.pad_id] * (75 - len(part))] for part in parts]
        assert rows == framed + [empty] * (len(rows) - len(parts))
    assert chunks.ids.shape == (len(prompts), max(n_used), 77)


def test_short_negative_prompt_gets_empty_chunks(pair: Pair) -> None:
    ours, _ = pair
    chunks = tokenize(ours, ["x " * 100, ""])
    empty = tokenize(ours, [""]).ids[0, 0]
    np.testing.assert_array_equal(chunks.ids[1], [empty, empty])
    assert str(chunks) == "tokens per prompt: 100, 0; chunks of 77 per prompt: 2"


@settings(deadline=None)
@given(n_prompts=st.integers(1, 4), n_chunks=st.integers(1, 3))
def test_join_puts_chunks_of_a_prompt_side_by_side(n_prompts: int, n_chunks: int) -> None:
    ids = np.arange(n_prompts * n_chunks * 5).reshape(n_prompts, n_chunks, 5)
    chunks = Chunks(ids, (0,) * n_prompts)
    hidden = np.stack([chunks.rows, -chunks.rows], axis=-1).astype(np.float32)
    context = chunks.join(hidden)
    assert context.shape == (n_prompts, n_chunks * 5, 2)
    for prompt in range(n_prompts):
        np.testing.assert_array_equal(context[prompt, :, 0], np.concatenate(list(ids[prompt])))


@pytest.mark.parametrize("prompts", [[], "a fox", ["a fox", None], [b"a fox"]])
def test_other_prompts_are_refused(pair: Pair, prompts: object) -> None:
    with pytest.raises(RequestError, match="sequence of one or more strings"):
        tokenize(pair[0], prompts)  # type: ignore[arg-type]
