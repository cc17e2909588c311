"""Files of textual inversion, and what `<name>` in a prompt reads."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentrt import Pipeline, Request, RequestError
from latentrt.datasets.dataset import Dataset
from latentrt.datasets.request_file import read_lines
from latentrt.family import TextEncoderSpec
from latentrt.testing import FakeEngine, fake_pipeline
from latentrt.text.textual_inversion import read_embedding

RNG = np.random.default_rng(0)


def text_encoder(component: str, width: int) -> TextEncoderSpec:
    return TextEncoderSpec(
        component=component, tokenizer="", length=77, width=width, vocabulary=9, bos_id=7, eos_id=8, pad_id=8
    )


ONE = (text_encoder("text_encoder", 8),)
TWO = (text_encoder("text_encoder", 8), text_encoder("text_encoder_2", 12))


def write(folder: Path, **tensors: np.ndarray) -> Path:
    save_file(tensors, folder / "e.safetensors")
    return folder / "e.safetensors"


def rows(n: int, width: int = 8) -> np.ndarray:
    return RNG.standard_normal((n, width)).astype(np.float32)


@pytest.mark.compatibility(
    kind="embedding",
    what="textual inversion of one text encoder, of stable-diffusion-webui or of diffusers",
    recognised="emb_params, or one tensor under any name",
    outcome="works",
)
@pytest.mark.parametrize("name", ["cat", "<cat>"])
@pytest.mark.parametrize("key", ["emb_params", "<a token>"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_layouts_of_one_text_encoder(tmp_path: Path, name: str, key: str, dtype: type):
    values = rows(3).astype(dtype)
    found = read_embedding(name, write(tmp_path, **{key: values}), ONE)
    assert found.name == "cat"
    assert found.rows["text_encoder"].dtype == np.float32
    np.testing.assert_array_equal(found.rows["text_encoder"], values.astype(np.float32))


def test_a_vector_is_one_token(tmp_path: Path):
    assert read_embedding("cat", write(tmp_path, cat=rows(1)[0]), ONE).rows["text_encoder"].shape == (1, 8)


@pytest.mark.compatibility(
    kind="embedding",
    what="textual inversion of two CLIP text encoders (SDXL, SD 3)",
    recognised="clip_l and clip_g, or text_encoders_0 and text_encoders_1",
    outcome="works",
)
@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_the_layout_of_two_text_encoders(keys: tuple[str, str], tmp_path: Path):
    large, small = rows(2, 12), rows(2)
    found = read_embedding("cat", write(tmp_path, **dict(zip(keys, (small, large), strict=True))), TWO)
    np.testing.assert_array_equal(found.rows["text_encoder"], small)
    np.testing.assert_array_equal(found.rows["text_encoder_2"], large)


@pytest.mark.parametrize(
    ("text_encoders", "tensors", "message"),
    [
        (ONE, {"emb_params": rows(1, 12)}, "embeddings of 12 features; expected 8, those of text_encoder; it was made"),
        (ONE, {"clip_l": rows(1), "clip_g": rows(1, 12)}, "8 and 12 features; expected 8, those of text_encoder"),
        (TWO, {"emb_params": rows(1)}, "8 features; expected 8 and 12, those of text_encoder and text_encoder_2"),
        (TWO, {"clip_l": rows(1), "clip_g": rows(2, 12)}, "1 and 2 tokens; expected as many for each"),
        (ONE, {"a": rows(1), "b": rows(1)}, "holds a and b; expected an embedding: emb_params, clip_l"),
        (TWO, {"clip_l": rows(1), "clip_g": rows(1, 12), "t5xxl": rows(1, 16)}, "T5 are not supported"),
        (ONE, {"emb_params": rows(1), "more": rows(1)}, "holds emb_params and more"),
        (ONE, {"emb_params": np.ones((1, 8), np.int32)}, "is int32"),
        (ONE, {"emb_params": np.array(1, np.float32)}, "1 features"),
        (ONE, {"emb_params": rows(1)[None]}, "shape"),
        (ONE, {"emb_params": rows(1) * np.float32(np.nan)}, "not finite"),
        ((), {"emb_params": rows(1)}, "text encoders take none"),
    ],
)
@pytest.mark.compatibility(
    kind="embedding",
    what="of another width or model, with rows for T5, of integers, or with other tensors beside",
    recognised="the file's tensors",
    outcome="refused",
)
def test_files_of_other_models_are_refused(tmp_path: Path, text_encoders, tensors, message: str):
    with pytest.raises(RequestError, match=message):
        read_embedding("cat", write(tmp_path, **tensors), text_encoders)


@pytest.mark.parametrize("name", ["", "a cat", "<a|b>", "é ü"])
def test_names_that_no_prompt_can_hold_are_refused(tmp_path: Path, name: str):
    with pytest.raises(RequestError, match="expected letters, digits"):
        read_embedding(name, write(tmp_path, emb_params=rows(1)), ONE)


@pytest.mark.compatibility(
    kind="embedding", what="a pickle (.pt, .bin)", recognised="no safetensors header", outcome="refused"
)
def test_a_pickle_is_refused_with_what_to_do(tmp_path: Path):
    path = tmp_path / "cat.pt"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(RequestError, match=r"safetensors.*pickles"):
        read_embedding("cat", path, ONE)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


def test_a_name_in_a_prompt_reads_the_rows_of_its_file(pipe: Pipeline, tmp_path: Path):
    cat, dog = rows(2), rows(1)
    pipe.add_embedding("cat", write(tmp_path, emb_params=cat))
    pipe.add_embedding("dog", write(tmp_path, emb_params=dog))
    assert pipe.embeddings == ("cat", "dog")
    pipe.generate("a <dog> and (<cat>:1.2)", negative="<dog>", seed=7)
    engine = pipe.engines["text_encoder"]
    assert isinstance(engine, FakeEngine)
    feed = engine.calls[0].feed
    extra = feed["extra_embeddings"]
    np.testing.assert_array_equal(extra, np.concatenate([cat, dog]))
    negative, prompt, _ = feed["ids"]
    places = np.flatnonzero(prompt >= 258)
    np.testing.assert_array_equal(extra[prompt[places] - 258], np.concatenate([dog, cat]))
    assert places.tolist() == [3, 9, 10]  # "a ", dog, " and ", cat
    np.testing.assert_array_equal(extra[negative[1] - 258], dog[0])


def test_only_embeddings_in_use_are_fed(pipe: Pipeline, tmp_path: Path):
    pipe.add_embedding("cat", write(tmp_path, emb_params=rows(2)))
    pipe.generate("a cat", seed=7)
    engine = pipe.engines["text_encoder"]
    assert isinstance(engine, FakeEngine)
    assert not engine.calls[0].feed["extra_embeddings"].any()
    assert engine.calls[0].feed["ids"].max() < 258


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(pipe: Pipeline, tmp_path: Path):
    with pytest.raises(RequestError, match=r"<cat> in a prompt.*none"):
        pipe.generate("a <cat>")
    pipe.add_embedding("dog", write(tmp_path, emb_params=rows(1)))
    with pytest.raises(RequestError, match=r"<cat> in a prompt.*<dog>.* \\<"):
        pipe.generate("a fox", negative="<cat>")
    pipe.generate(r"a \<cat>", seed=7)
    pipe.generate("a <cat>", seed=7, syntax="plain")


@pytest.mark.compatibility(
    kind="prompt",
    what="an embedding's name without angle brackets, or an embedding that no prompt names",
    recognised="--embedding NAME=FILE",
    outcome="warns",
)
@pytest.mark.parametrize(
    ("prompt", "says"),
    [("a house in STY, at dusk", "without angle brackets"), ("a house of style", "in no prompt")],
)
def test_an_embedding_without_effect_is_named_once(prompt: str, says: str, pipe: Pipeline, tmp_path: Path, caplog):
    pipe.add_embedding("sty", write(tmp_path, emb_params=rows(1)))
    for _ in range(2):
        pipe.generate(prompt, seed=7)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "latentrt.text.conditioning"]
    assert says in message and "<sty>" in message and "house" not in message


@pytest.mark.parametrize("where", ["prompt", "negative"])
def test_an_embedding_with_effect_is_not_warned_of(where: str, pipe: Pipeline, tmp_path: Path, caplog):
    pipe.add_embedding("sty", write(tmp_path, emb_params=rows(1)))
    pipe.generate(**{"prompt": "a house", "negative": "", where: "in <sty>"}, seed=7)
    assert not [record for record in caplog.records if record.name == "latentrt.text.conditioning"]


def test_of_a_list_each_embedding_is_noticed_once(pipe: Pipeline, tmp_path: Path, caplog):
    """One that some line names has an effect, whichever it is; making ready is no run."""
    pipe.add_embedding("sty", write(tmp_path, emb_params=rows(1)))
    pipe.prepare(size=(64, 64))
    lines, _ = read_lines(["a house", "in <sty>", "a <lora:x:1>"], defaults=Request(""), root=tmp_path)
    planned = Dataset(pipe, lines, tmp_path / "list", seed=1)
    assert [bad.number for bad in planned.bad] == [3] and "--lora" in str(planned.bad[0].error)
    pipe.generate("a house", seed=7)
    assert not [record for record in caplog.records if record.name == "latentrt.text.conditioning"]
    pipe.add_embedding("dog", write(tmp_path, emb_params=rows(1)))
    Dataset(pipe, lines[:2], tmp_path / "more", seed=1)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "latentrt.text.conditioning"]
    assert "dog is in no prompt" in message
