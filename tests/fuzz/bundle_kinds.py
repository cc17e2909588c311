"""Bundles: manifests, files of keys, records of engines, graphs and their weights, tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.kind import Kind, Make, Try
from fuzz.mutate import wrong_bytes, wrong_text
from small_bundles import small_bundle, with_fakes

from latentrt import Request
from latentrt.backends import open_engines
from latentrt.backends.tensorrt.records import RECORD, EngineRecord
from latentrt.bundle import MANIFEST, Bundle
from latentrt.cli.inspect import describe
from latentrt.lora.targets import bundle_parts
from latentrt.pipeline import Pipeline
from latentrt.text.tokenizer import Tokenizer
from latentrt.weights.onnx_initializers import read_initializers

SECTIONS = ("provenance", "parity", "calibration", "controlnets")
TEXTS = ("", "a red fox, at dusk", "日本語 🎨 ½ Ⅸ \u0301", "<s> </s> <|startoftext|>", " \t\n", "A" * 300)


def manifests(folder: Path) -> tuple[Make, Try]:
    """`bundle.json` as commands read it, and a run planned by it on fake engines."""
    root = small_bundle(folder / "small")
    manifest = json.loads((root / MANIFEST).read_text())
    (folder / "fakes").mkdir()
    engines = with_fakes(Bundle.open(root), folder / "fakes").engines

    def use(data: bytes) -> None:
        (root / MANIFEST).write_bytes(data)
        bundle = Bundle.open(root)
        describe(bundle)
        for section in SECTIONS:
            bundle.section(section)
        bundle_parts(bundle)
        pipe = Pipeline(bundle, engines)
        plan = pipe.plan([Request("a fox", seed=1)])
        pipe.conditioner.encode(plan.texts, clip_skip=plan.clip_skip)

    return lambda rng: wrong_text(manifest, rng), use


def keys(folder: Path) -> tuple[Make, Try]:
    """Where weights come from, as LoRAs and calibration read it."""
    root = small_bundle(folder / "small")
    bundle = Bundle.open(root)
    weight = {"key": "mid_block.to_q.weight", "transposed": True, "axis": 0, "factors": [1.0, 2.0], "scale": "row"}
    entry = {"weight": weight, "row": {"key": "a", "transposed": False}}

    def use(data: bytes) -> None:
        (root / "step.keys.json").write_bytes(data)
        bundle_parts(bundle)

    return lambda rng: wrong_text(entry, rng), use


def records(folder: Path) -> tuple[Make, Try]:
    """`engine.json` beside a plan."""
    root = small_bundle(folder / "small")
    (path,) = root.glob(f"engines/*/*/{RECORD}")
    record = json.loads(path.read_text())

    def use(data: bytes) -> None:
        path.write_bytes(data)
        found = EngineRecord.read(path)
        found.runs_on((8, 9))
        found.profile.covers(dict.fromkeys(found.profile.min, (1, 2)))

    return lambda rng: wrong_text(record, rng), use


def graphs(backend: str) -> Callable[[Path], tuple[Make, Try]]:
    """A graph's file, opened and run by a backend."""
    return _files(backend, "decoder.onnx")


def weights(backend: str) -> Callable[[Path], tuple[Make, Try]]:
    """Its file of external weights."""
    return _files(backend, "decoder.weights")


def _files(backend: str, name: str) -> Callable[[Path], tuple[Make, Try]]:
    def prepare(folder: Path) -> tuple[Make, Try]:
        root = small_bundle(folder / "small")
        whole = (root / name).read_bytes()
        manifest = json.loads((root / MANIFEST).read_text())

        def use(data: bytes) -> None:
            (root / name).write_bytes(data)
            _sign(root, name, manifest, data)
            graph = Bundle.open(root).component("decoder").graph
            for initializer in read_initializers(graph.path).values():
                initializer.read()
            engine = open_engines([graph], backend=backend, threads=1)["decoder"]
            try:
                engine.run({"latent": np.ones((1, 4, 8, 8), np.float32)})
            finally:
                engine.close()

        return lambda rng: wrong_bytes(whole, rng), use

    return prepare


def _sign(root: Path, name: str, manifest: dict[str, Any], data: bytes) -> None:
    """What an attacker would do: the manifest is true of the file."""
    manifest["files"][name]["bytes"] = len(data)
    (root / MANIFEST).write_text(json.dumps(manifest))


def tokenizers(folder: Path) -> tuple[Make, Try]:
    """`tokenizer.json` of a bundle, of CLIP's kind and of T5's."""
    path = folder / "tokenizer.json"
    corpus = [_bpe(), _clip(), _unigram()]

    def use(data: bytes) -> None:
        path.write_bytes(data)
        tokenizer = Tokenizer.load(path)
        for text in TEXTS:
            tokenizer.encode(text)
            tokenizer.holds(text)

    return lambda rng: wrong_text(rng.choice(corpus), rng), use


def _bpe() -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors

    vocabulary = {"a": 0, "b": 1, "ab": 2, "<s>": 3, "</s>": 4, "Ġ": 5}
    made = Backend(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 4)])
    return json.loads(made.to_str())


def _clip() -> Any:
    """Normalised, split by an expression, with a suffix at the end of words and added tokens, as CLIP's is."""
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    vocabulary = {"a": 0, "b</w>": 1, "ab</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4, "a</w>": 5}
    made = Backend(
        models.BPE(vocab=vocabulary, merges=[("a", "b</w>")], unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]"), "removed", invert=True), pre_tokenizers.ByteLevel(False)]
    )
    start, end = ("<|startoftext|>", 3), ("<|endoftext|>", 4)
    made.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False)
    made.add_tokens([AddedToken("<cat>", normalized=False)])
    return json.loads(made.to_str())


def _unigram() -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    made = Backend(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("b", -2.0)], 0, True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return json.loads(made.to_str())


KINDS = (
    Kind("manifests", manifests),
    Kind("keys", keys, 2),
    Kind("records", records, 2),
    Kind("graphs", graphs("onnxruntime")),
    Kind("graphs-openvino", graphs("openvino"), 1),
    Kind("weights", weights("onnxruntime"), 1),
    Kind("tokenizers", tokenizers),
)
