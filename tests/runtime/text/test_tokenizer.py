"""Token ids against `transformers.CLIPTokenizer`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from diffusers.loaders import TextualInversionLoaderMixin
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from latentrt.errors import BundleError, RequestError
from latentrt.testing import FakeEngine, fake_pipeline
from latentrt.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[3]
SHAPES = ROOT / "examples" / "shapes" / "checkpoint" / "tokenizer"

CORPUS = [
    "a lighthouse at dusk, it's raining, oil on canvas, highly detailed",
    "a red circle on a white background and a blue star left of a yellow ring",
    "Ein Leuchtturm in der Dämmerung; une maison près de la mer; маяк в сумерках; 夕暮れの灯台",
    "portrait of a fox, 35mm, f/1.8, 4k, trending!!! (masterpiece:1.2) <|endoftext|> we've they'll I'm",
]

PIECES = [
    *("<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|endof", "</w>", "it's", "WE'VE", "'LL"),
    *(" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff"),
    *("\x00", "\x1f", "\x7f", "\U0010ffff"),
    *("👩‍🚀", "🏳️‍🌈", "é", "e\u0301", "A\u030a\u0323", "ﬁ", "ǅ", "İ", "ß", "ΑΣ", "한글", "각"),
    *("م\u064eر", "½", "١٢", "夕暮れ"),
    *("lighthouse", "a red circle", ",", "!!!", "(a:1.2)"),
]
texts = st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40).map("".join)

Pair = tuple[Tokenizer, CLIPTokenizer]


def write_clip_tokenizer(folder: Path) -> None:
    """A vocab.json and a merges.txt laid out as CLIP's: bytes, bytes that end a word, merges, specials."""
    trained = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator((word for line in CORPUS for word in line.split()), trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *map("".join, merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_clip_tokenizer(folder)
    return folder


@pytest.fixture(scope="session", params=["trained here", "shapes"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Pair:
    if request.param == "shapes" and not SHAPES.is_dir():
        pytest.skip("examples/shapes/checkpoint is not there")
    reference = CLIPTokenizer.from_pretrained(clip_folder if request.param == "trained here" else SHAPES)
    path = tmp_path_factory.mktemp("bundle") / "tokenizer.json"
    reference.backend_tokenizer.save(str(path))
    return Tokenizer.load(path, pad_id=reference.pad_token_id), reference


def reference_ids(reference: CLIPTokenizer, text: str) -> list[int]:
    return reference(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]


@settings(deadline=None, max_examples=500)
@given(text=texts)
def test_ids_equal_transformers(pair: Pair, text: str) -> None:
    ours, reference = pair
    assert ours.encode(text) == reference_ids(reference, text)


@pytest.mark.parametrize("piece", PIECES)
def test_ids_of_each_piece_alone_and_inside_words(pair: Pair, piece: str) -> None:
    ours, reference = pair
    for text in (piece, f"a{piece}b", f"a {piece} b", f"{piece}{piece}"):
        assert ours.encode(text) == reference_ids(reference, text)


@pytest.mark.parametrize("text", ["a fox, " * 20_000, "x" * 50_000, " " * 50_000, "👩‍🚀" * 10_000])
def test_ids_of_very_long_text(pair: Pair, text: str) -> None:
    ours, reference = pair
    assert ours.encode(text) == reference_ids(reference, text)


def test_special_ids_and_size(pair: Pair) -> None:
    ours, reference = pair
    assert (ours.bos_id, ours.eos_id) == (reference.bos_token_id, reference.eos_token_id)
    assert ours.pad_id == reference.pad_token_id
    assert ours.vocab_size == len(reference)
    assert ours.max_length == 77


def test_merges_are_used(pair: Pair) -> None:
    ours, _ = pair
    assert len(ours.encode("a red circle")) == 3


def test_cut_and_padding_that_were_saved_are_dropped(clip_folder: Path, tmp_path: Path) -> None:
    reference = CLIPTokenizer.from_pretrained(clip_folder)
    path = tmp_path / "tokenizer.json"
    reference("a fox", padding="max_length", max_length=8, truncation=True)
    reference.backend_tokenizer.save(str(path))
    assert json.loads(path.read_text(encoding="utf-8"))["padding"] is not None
    text = "a fox, " * 10
    assert Tokenizer.load(path).encode(text) == reference_ids(reference, text)
    assert Tokenizer.load(path).pad_id == reference.eos_token_id


def test_half_a_surrogate_pair_is_refused(pair: Pair) -> None:
    with pytest.raises(RequestError, match="character 2"):
        pair[0].encode("a \ud83d fox")


MALFORMED: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "no JSON": lambda _: "BPE",
    "truncated": lambda text: text[: len(text) // 2],
    "no model": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "model"}),
    "merge of unknown tokens": lambda text: text.replace('"merges":', '"merges": [["\u00e9x", "y"]], "_":'),
    "list": lambda text: f"[{text}]",
    "no closing id": lambda text: json.dumps({**json.loads(text), "post_processor": None}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_refused(name: str, clip_folder: Path, tmp_path: Path) -> None:
    text = CLIPTokenizer.from_pretrained(clip_folder).backend_tokenizer.to_str()
    path = tmp_path / "tokenizer.json"
    path.write_text(MALFORMED[name](text), encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer.load(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no file"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(BundleError, match="no file"):
        Tokenizer.load(tmp_path)


def test_bad_padding_id_and_length_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    CLIPTokenizer.from_pretrained(clip_folder).backend_tokenizer.save(str(path))
    with pytest.raises(BundleError, match="padding id 100000"):
        Tokenizer.load(path, pad_id=100_000)
    with pytest.raises(BundleError, match="at least 3"):
        Tokenizer.load(path, max_length=2)


@pytest.fixture(scope="module")
def grown(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Tokens of its own, as a checkpoint has them that was trained with textual inversion: in added_tokens.json."""
    reference = CLIPTokenizer.from_pretrained(clip_folder)
    reference.add_tokens(["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2", "sks"])
    reference.add_special_tokens({"additional_special_tokens": ["<special>"]})
    folder = tmp_path_factory.mktemp("grown")
    reference.save_pretrained(folder)
    reference = CLIPTokenizer.from_pretrained(folder)
    reference.backend_tokenizer.save(str(folder / "runtime.json"))
    return Tokenizer.load(folder / "runtime.json"), reference


ADDED = [
    "a <cat-toy> on grass",
    "a<cat-toy>b",
    "<Cat-Toy>",
    "<cat-toy>_1",
    "sks dog",
    "<special>,<special>",
    "< cat-toy>",
]


@pytest.mark.parametrize("text", ADDED)
def test_added_tokens_are_those_of_transformers(text: str, grown: Pair) -> None:
    ours, reference = grown
    assert ours.encode(text) == reference_ids(reference, text)


def test_what_is_an_added_token(grown: Pair) -> None:
    ours, _ = grown
    assert all(map(ours.holds, ("<cat-toy>", "<cat-toy>_2", "<special>", "sks")))
    assert not any(map(ours.holds, ("<dog-toy>", "a", "", "cat-toy", "<cat-toy><cat-toy>")))


@pytest.mark.compatibility(
    kind="prompt",
    what="a token that the checkpoint's tokenizer has of its own, such as <cat-toy>",
    recognised="added_tokens.json, or tokenizer.json",
    outcome="works",
)
@pytest.mark.parametrize("prompt", ["a <cat-toy> on grass", "<special>", "a (<cat-toy>:1.2), <cat-toy>"])
def test_an_added_token_in_a_prompt_is_what_diffusers_makes_of_it(prompt: str, grown: Pair, tmp_path: Path) -> None:
    """Also that one of several vectors becomes all of them; and an embedding of the name goes before."""
    _, reference = grown
    pipe = fake_pipeline(tmp_path)
    (tmp_path / "tokenizer").mkdir(exist_ok=True)
    reference.backend_tokenizer.save(str(pipe.bundle.root / pipe.bundle.family.text_encoders[0].tokenizer))
    pipe.generate(prompt, seed=7)
    engine = pipe.engines["text_encoder"]
    assert isinstance(engine, FakeEngine)
    said = re.sub(r"\((.*?):1.2\)", r"\1", prompt)
    converted = TextualInversionLoaderMixin().maybe_convert_prompt(said, reference)
    expected = [reference.bos_token_id, *reference_ids(reference, converted), reference.eos_token_id]
    assert any(row[: len(expected)].tolist() == expected for row in engine.calls[0].feed["ids"])
    with pytest.raises(RequestError, match="embedding <dog-toy>"):
        pipe.generate("<dog-toy>")
