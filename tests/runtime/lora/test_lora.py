"""LoRA in the runtime: which weights it means, what it adds, and that the pristine weights come back."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import ATTENTION, CONVOLUTIONS, LAYOUTS, TEXT_ENCODER, random_layers, write_lora
from safetensors.torch import save_file
from torch.nn.functional import conv2d

import latentrt
from latentrt import Bundle, Lora, Pipeline, Request, RequestError
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.graph import GraphFile
from latentrt.lora import merge
from latentrt.lora.delta import add_difference, fits
from latentrt.lora.file import Layer, read_lora
from latentrt.lora.targets import bundle_parts
from latentrt.testing import fake_pipeline
from latentrt.weights.dtypes import Weight

REQUEST = Request("a red circle on a white background", seed=7, size=(64, 64), steps=2, sampler="euler")
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def models(shapes_checkpoint: Path) -> SimpleNamespace:
    checkpoint = Checkpoint.open(shapes_checkpoint)
    return SimpleNamespace(unet=checkpoint.unet(), text_encoder=checkpoint.text_encoder())


@pytest.fixture(scope="module")
def files(models, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("lora")
    recipes = {
        "a": random_layers(models),
        "b": random_layers(models, unet=(*CONVOLUTIONS, "to_k"), seed=1),
        "text": random_layers(models, unet=(), text_encoder=TEXT_ENCODER, strength=1.5),
    }
    return {name: write_lora(folder / f"{name}.safetensors", layers) for name, layers in recipes.items()}


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def pipe(request, shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    cache = tmp_path_factory.mktemp("cache")
    with latentrt.load(shapes_bundle, backend=request.param, cache_dir=cache) as loaded:
        yield loaded


def values(graph: GraphFile) -> dict[str, Weight]:
    return dict(graph.new_weights())


def test_pictures_come_back_to_the_bit(pipe: Pipeline, files):
    """None, A, B, A, none: what was there before leaves no trace, in the weights or in a cache of compiled graphs."""
    seen = []
    for applied in ([], [(files["a"], 0.8)], [(files["b"], 1.0)], [(files["a"], 0.8)], []):
        pipe.set_lora(applied)
        seen.append(pipe.run(REQUEST).images)
    none, a, b, again, restored = seen
    np.testing.assert_array_equal(again, a)
    np.testing.assert_array_equal(restored, none)
    assert not np.array_equal(a, none) and not np.array_equal(b, none) and not np.array_equal(a, b)


def test_loading_with_a_lora_equals_setting_it(pipe: Pipeline, files, shapes_bundle: Path, tmp_path: Path):
    pipe.set_lora([files["a"], (files["text"], -0.5)])
    with latentrt.load(
        shapes_bundle, backend=pipe.backend, cache_dir=tmp_path, lora=[files["a"], Lora(files["text"], -0.5)]
    ) as loaded:
        np.testing.assert_array_equal(loaded.run(REQUEST).images, pipe.run(REQUEST).images)
        assert [str(lora) for lora in loaded.lora] == ["a:1", "text:-0.5"]


def test_only_engines_whose_weights_change_load_again(pipe: Pipeline, files):
    pipe.set_lora([])
    before = dict(pipe.engines)
    pipe.set_lora([files["text"]])
    assert {name for name in before if pipe.engines[name] is not before[name]} == {"text_encoder"}
    pipe.set_lora([files["text"], (files["a"], 0)])
    assert pipe.engines["step"] is before["step"]


def test_onnx_runtime_keeps_its_session_for_other_values_of_the_same_weights(
    shapes_bundle: Path, files, tmp_path: Path, monkeypatch
):
    """Also where a switch follows another without a run between, and not where a LoRA changes other weights."""
    made = []

    def session(model, *arguments, **options):
        made.append(model)
        return new_session(model, *arguments, **options)

    new_session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with latentrt.load(shapes_bundle, backend="onnxruntime", cache_dir=tmp_path, lora=[files["a"]]) as pipe:
        first = pipe.run(REQUEST).images
        count = len(made)
        for applied in ([(files["a"], -0.7)], [(files["a"], 0.3)], [files["a"]]):
            pipe.set_lora(applied)
        np.testing.assert_array_equal(pipe.run(REQUEST).images, first)
        pipe.set_lora([(files["a"], -0.7)])
        assert not np.array_equal(pipe.run(REQUEST).images, first)
        assert len(made) == count
        pipe.set_lora([files["b"]])
        pipe.run(REQUEST)
        assert len(made) == count + 1


def test_a_refused_lora_changes_nothing(pipe: Pipeline, files, tmp_path: Path):
    pipe.set_lora([files["a"]])
    before = dict(pipe.engines)
    with pytest.raises(RequestError):
        pipe.set_lora([tmp_path / "nowhere.safetensors"])
    assert pipe.engines == before and [str(lora) for lora in pipe.lora] == ["a:1"]


def test_a_run_under_way_keeps_its_weights(pipe: Pipeline, files):
    steps = pipe.steps(REQUEST)
    next(steps)
    with pytest.raises(RequestError, match="busy"):
        pipe.set_lora([])
    steps.close()


def test_engines_of_ones_own_cannot_change(tmp_path: Path, files):
    with pytest.raises(RequestError, match=r"latentrt\.load"):
        fake_pipeline(tmp_path).set_lora([files["a"]])


def test_the_same_files_give_graphs_of_the_same_digest(shapes_bundle: Path, files):
    bundle = Bundle.open(shapes_bundle)

    def digests(*loras) -> dict[str, str | None]:
        return {name: graph.digest for name, graph in merge(bundle, loras).graphs.items()}

    assert digests(files["a"], files["b"]) == digests(files["a"], files["b"]) != digests(files["b"], files["a"])
    assert digests((files["a"], 0.5)) != digests(files["a"]) == digests((files["a"], 1)) == digests((files["a"], 1.0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_of_a_checkpoint_is_found_in_every_layout(layout: str, models, shapes_bundle: Path, tmp_path: Path):
    unet = ("to_q", "to_k", "to_v", "to_out.0") if layout == "old diffusers" else (*ATTENTION, *CONVOLUTIONS)
    layers = random_layers(models, unet=unet, text_encoder=TEXT_ENCODER)
    bundle = Bundle.open(shapes_bundle)
    graphs = merge(bundle, [write_lora(tmp_path / "a.safetensors", layers, layout=layout)]).graphs
    changed = {name for graph in graphs.values() for name in values(graph)}
    assert len(changed) == len(layers)
    assert all(any(name.startswith(module) for name in changed) for _, module in layers)


def test_flattened_names_are_unambiguous_and_complete(models, shapes_bundle: Path):
    for part in bundle_parts(Bundle.open(shapes_bundle)):
        module = getattr(models, part.name)
        weights = {name for name, weight in module.named_parameters() if weight.ndim in (2, 4)}
        assert {target.key for target in part.targets.values()} == weights


def merged_by_hand(models, layers, scale: float) -> dict[str, np.ndarray]:
    """[out, in, ...] in float32, by module."""
    found = {}
    for (part, module), m in layers.items():
        weight = getattr(models, part).get_submodule(module).weight.detach()
        found[module] = (
            weight + scale * m.alpha / len(m.down) * (m.up.flatten(1) @ m.down.flatten(1)).reshape(weight.shape)
        ).numpy()
    return found


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_16_bit_weights_are_rounded_once(kind: str, models, shapes_checkpoint: Path, tmp_path: Path, request):
    """Of the bundle's 16-bit weight and the difference, added in float32."""
    bundle = Bundle.open(request.getfixturevalue(f"shapes_{kind.replace('float', 'fp').replace('bfp', 'bf')}"))
    torch_kind = getattr(torch, kind)
    halved = SimpleNamespace(unet=Checkpoint.open(shapes_checkpoint).unet().to(torch_kind).float())
    layers = random_layers(models, unet=("to_q", "conv1"))
    graph = merge(bundle, [(write_lora(tmp_path / "a.safetensors", layers), 0.7)]).graphs["step"]
    expected = merged_by_hand(halved, layers, 0.7)
    for name, weight in values(graph).items():
        assert weight.dtype == kind
        module = name.removesuffix(".T").removesuffix(".weight")
        array = expected[module].T if name.endswith(".T") else expected[module]
        rounded = torch.from_numpy(array.copy()).to(torch_kind).float().numpy()
        # No farther than the nearest, but where sums of float32 ended on the other side of a tie.
        farther = np.abs(weight.float32() - array) - np.abs(rounded - array)
        assert farther.max() <= 1e-6 * np.abs(array).max()


@pytest.fixture(scope="module")
def float32_picture(files, shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    cache = tmp_path_factory.mktemp("cache")
    with latentrt.load(shapes_bundle, backend="onnxruntime", cache_dir=cache, lora=[files["a"]]) as loaded:
        return loaded.run(REQUEST).images.astype(np.float64)


@pytest.mark.parametrize(("kind", "backend"), [("fp16", "onnxruntime"), ("fp16", "openvino"), ("bf16", "openvino")])
def test_16_bit_bundles_make_nearly_the_same_picture(kind, backend, files, float32_picture, tmp_path, request):
    bundle = request.getfixturevalue(f"shapes_{kind}")
    with latentrt.load(bundle, backend=backend, cache_dir=tmp_path, lora=[files["a"]]) as loaded:
        difference = loaded.run(REQUEST).images - float32_picture
    assert 10 * np.log10(255**2 / np.square(difference).mean()) > (40 if kind == "fp16" else 25)


def difference(layer: Layer, weight: np.ndarray, scale: float) -> np.ndarray:
    total = weight.copy()
    add_difference(layer, scale, to=total, pristine=weight)
    return total - weight


def layer(down: torch.Tensor, up: torch.Tensor, *, mid: torch.Tensor | None = None, magnitude=None) -> Layer:
    def weight(tensor):
        return None if tensor is None else Weight("float32", tensor.numpy())

    return Layer("x", weight(down), weight(up), weight(mid), weight(magnitude), 0.5)


@settings(max_examples=40)
@given(m=st.integers(1, 300), n=st.integers(1, 300), rank=st.sampled_from([1, 3, 16, 200]), order=st.sampled_from("CF"))
def test_a_product_in_blocks_is_the_whole_product(m: int, n: int, rank: int, order: str):
    rng = np.random.default_rng(0)
    weight, up, down = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, n), (m, rank), (rank, n)))
    total = np.array(weight, order=order)
    made = Layer("x", Weight("float32", down), Weight("float32", up), None, None, 0.5)
    add_difference(made, 2.0, to=total, pristine=total)
    np.testing.assert_allclose(total, weight + up.astype(np.float64) @ down, atol=5e-5)


def test_a_tucker_layer_is_three_convolutions_in_a_row():
    torch.manual_seed(0)
    down, mid, up = torch.randn(3, 6, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(5, 3, 1, 1)
    x = torch.randn(2, 6, 8, 8)
    expected = 0.5 * conv2d(conv2d(conv2d(x, down), mid, padding=1), up)
    made = layer(down, up, mid=mid)
    assert fits(made, (5, 6, 3, 3)) and not fits(made, (5, 6, 1, 1))
    weight = torch.from_numpy(difference(made, np.zeros((5, 6, 3, 3), np.float32), 1.0))
    torch.testing.assert_close(conv2d(x, weight, padding=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3, 3)])
@pytest.mark.parametrize("by", ["output", "input"])
def test_a_dora_has_the_magnitudes_that_it_says(shape: tuple[int, ...], by: str):
    torch.manual_seed(0)
    axis = 0 if by == "output" else 1
    weight = torch.randn(shape)
    magnitude = torch.rand([n if i == axis else 1 for i, n in enumerate(shape)]) + 0.5
    made = layer(torch.randn(2, *shape[1:]), torch.randn(5, 2, *[1] * (len(shape) - 2)), magnitude=magnitude)
    assert fits(made, shape)
    whole = weight.numpy() + difference(made, weight.numpy(), 1.0)
    others = tuple(i for i in range(len(shape)) if i != axis)
    np.testing.assert_allclose(np.sqrt(np.square(whole).sum(others)), magnitude.flatten().numpy(), rtol=1e-5)
    plain = weight.numpy() + difference(dataclasses.replace(made, magnitude=None), weight.numpy(), 1.0)
    along = np.moveaxis(whole / plain, axis, 0).reshape(shape[axis], -1)
    np.testing.assert_allclose(along, along[:, :1].repeat(along.shape[1], 1), rtol=1e-3)
    half = weight.numpy() + difference(made, weight.numpy(), 0.5)
    np.testing.assert_allclose(half, (weight.numpy() + whole) / 2, atol=1e-6)


@pytest.mark.parametrize(("config", "strength"), [
    ({"unet.lora_alpha": 8}, 2.0),
    ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": 2}}, 0.5),
    ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4.0),
    ({}, 1.0),
])  # fmt: skip
def test_alpha_may_lie_in_the_metadata(config: dict, strength: float, tmp_path: Path):
    tensors = {f"unet.{LINEAR}.lora_A.weight": torch.ones(4, 6), f"unet.{LINEAR}.lora_B.weight": torch.ones(5, 4)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    (found,) = read_lora(tmp_path / "a.safetensors").layers.values()
    assert found.strength == strength


NAME = f"unet.{LINEAR}"
PAIR = {f"{NAME}.lora_A.weight": torch.ones(4, 64), f"{NAME}.lora_B.weight": torch.ones(64, 4)}
SDXL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
BAD = {
    "no pair": ({f"{NAME}.lora_A.weight": torch.ones(4, 64)}, "has no up matrix"),
    "unlike ranks": (PAIR | {f"{NAME}.lora_B.weight": torch.ones(64, 3)}, r"shapes \[4, 64\] and \[64, 3\]"),
    "not finite": (PAIR | {f"{NAME}.lora_B.weight": torch.full((64, 4), torch.nan)}, "not finite"),
    "another width": (PAIR | {f"{NAME}.lora_A.weight": torch.ones(4, 320)}, r"\[64, 320\], and .* is \[64, 64\]"),
    "an alpha that is none": (PAIR | {f"{NAME}.alpha": torch.ones(2)}, "alpha of shape"),
    "unknown layer": ({key.replace("to_q", "to_w"): value for key, value in PAIR.items()}, "to_w"),
    "another family": (
        {f"{SDXL}.lora_down.weight": torch.ones(4, 2048), f"{SDXL}.lora_up.weight": torch.ones(640, 4)},
        "looks like one for SDXL",
    ),
    "LoHa": ({"lora_unet_conv_in.hada_w1_a": torch.ones(2, 2)}, "LoHa: not supported"),
    "a checkpoint": ({"conv_in.weight": torch.ones(2, 2)}, "that no supported kind of LoRA has: conv_in.weight"),
    "empty": ({}, "holds no tensors"),
}  # fmt: skip


@pytest.mark.compatibility(
    kind="LoRA",
    what="a file for another family, a damaged one, or a checkpoint",
    recognised="layers without a weight of their name and shape",
    outcome="refused",
)
@pytest.mark.parametrize("bad", BAD)
def test_what_does_not_belong_is_refused_by_name(bad: str, shapes_bundle: Path, tmp_path: Path):
    tensors, says = BAD[bad]
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(RequestError, match=says):
        merge(Bundle.open(shapes_bundle), [tmp_path / "bad.safetensors"])


def test_the_rest_is_applied_where_that_is_asked(shapes_bundle: Path, tmp_path: Path, caplog):
    path = tmp_path / "a.safetensors"
    save_file(PAIR | {key.replace("to_q", "to_w"): value + 1 for key, value in PAIR.items()}, path)
    bundle = Bundle.open(shapes_bundle)
    with pytest.raises(RequestError, match="strict=False"):
        merge(bundle, [path])
    merged = merge(bundle, [Lora(path, strict=False)])
    assert list(values(merged.graphs["step"])) == [f"{LINEAR}.weight.T"]
    assert "to_w" in caplog.text


@pytest.mark.parametrize(
    ("given", "says"),
    [("a.safetensors", "a list"), ([("a.safetensors", float("nan"))], "scale of a.safetensors is nan")],
)
def test_wrong_use_is_explained(given, says: str, shapes_bundle: Path):
    with pytest.raises(RequestError, match=says):
        merge(Bundle.open(shapes_bundle), given)


def test_an_int8_bundle_of_before_is_refused(shapes_bundle: Path, files):
    bundle = Bundle.open(shapes_bundle)
    components = {**bundle.manifest["components"]}
    components["step"] = {**components["step"], "precision": "int8"}
    old = dataclasses.replace(bundle, manifest={**bundle.manifest, "components": components})
    with pytest.raises(latentrt.BundleError, match="calibrate it again"):
        merge(old, [files["a"]])
