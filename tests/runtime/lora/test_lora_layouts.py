"""The layouts of LoRA files that people have, against what PEFT and diffusers make of the same files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from lora_files import LAYOUTS, random_layers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from latentrt import RequestError
from latentrt.lora.delta import add_difference
from latentrt.lora.file import LoraFile, read_lora
from latentrt.lora.matching import match
from latentrt.lora.original_names import original_names
from latentrt.lora.sources import lora_sha256, lora_sources
from latentrt.lora.targets import AdaptedNetwork, Target, denoiser_prefixes, text_encoder_prefixes

Arrays = Mapping[str, np.ndarray]


def unet(*, levels: tuple[bool, ...], **settings) -> UNet2DConditionModel:
    """A small U-Net whose levels attend or not, as SDXL's do where only the first does not."""
    torch.manual_seed(0)
    kinds = {True: "CrossAttn", False: ""}
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16, 16)[: len(levels)],
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        down_block_types=tuple(f"{kinds[attends]}DownBlock2D" for attends in levels),
        up_block_types=tuple(f"{kinds[attends]}UpBlock2D" for attends in reversed(levels)),
        **settings,
    )


@pytest.fixture(scope="module")
def sdxl() -> UNet2DConditionModel:
    """Two transformer layers, a linear projection, and sizes that are embedded."""
    return unet(
        levels=(False, True, True),
        transformer_layers_per_block=(1, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=36,
    )


def part(module: nn.Module, *, name: str = "unet", prefixes: tuple[str, ...] | None = None) -> AdaptedNetwork:
    weights = [
        Target(key, tuple(value.shape), ())
        for key, value in module.state_dict().items()
        if key.endswith(".weight") and value.ndim in (2, 4)
    ]
    return AdaptedNetwork.of(name, denoiser_prefixes(name) if prefixes is None else prefixes, weights)


def merged(module: nn.Module, file: LoraFile, *, scale: float = 1.0, strict: bool = True) -> Arrays:
    """The weights that the file changes, with what it adds to them."""
    found = {}
    for matched in match(file, [part(module)], model="a bundle", family="a family", strict=strict):
        pristine = module.get_parameter(matched.target.key).detach().numpy()
        total = found[matched.target.key] = pristine.copy()
        add_difference(matched.layer, scale, to=total, pristine=pristine)
    return found


def compare(found: Arrays, expected: Mapping[str, Tensor], before: nn.Module) -> None:
    """Every weight, and that those that changed are those that were found."""
    changed = {name for name, value in expected.items() if not torch.equal(value, before.state_dict()[name])}
    assert changed == found.keys() and changed
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name].detach().numpy(), rtol=0, atol=2e-5 * np.abs(array).max())


# PEFT's own folders.

CONFIGURATIONS = {
    "alpha": {"r": 8, "lora_alpha": 32},
    "rank-stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"attn2.to_k": 2, "^down_blocks.1.*to_q": 3},
        "alpha_pattern": {"to_k": 1, r"down_blocks\.\d+\.attentions\.1.*to_q": 5},
    },
    "DoRA": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "a pattern of targets": {"r": 2, "lora_alpha": 3, "target_modules": r".*attentions\.1.*\.(to_q|to_out\.0)"},
    "some layers of a list": {
        "r": 2,
        "lora_alpha": 3,
        "layers_to_transform": [1],
        "layers_pattern": "attentions",
        "exclude_modules": ["attn1.to_k"],
    },
    "fan_in_fan_out": {"r": 2, "lora_alpha": 4, "fan_in_fan_out": True, "init_lora_weights": "gaussian"},
}


def peft_folder(folder: Path, module: nn.Module, settings: Mapping, *, seed: int = 1) -> dict[str, Tensor]:
    """Saves a LoRA with random values as PEFT does; the module's weights with it, by PEFT."""
    config = LoraConfig(**{"target_modules": ["to_q", "to_k", "to_out.0", "conv1"], **settings})
    wrapped = get_peft_model(module, config)
    generator = torch.Generator().manual_seed(seed)
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            value.data += torch.randn(value.shape, generator=generator) * 0.2
    wrapped.save_pretrained(folder)
    return dict(wrapped.merge_and_unload().state_dict())


@pytest.mark.compatibility(
    kind="LoRA",
    what="PEFT folder, or its file, with adapter_config.json",
    recognised="names that begin with base_model.model., or the name adapter_model.safetensors",
    outcome="works",
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_folder_of_peft_adds_what_peft_adds(case: str, tmp_path: Path):
    pristine = unet(levels=(True, True))
    expected = peft_folder(tmp_path, unet(levels=(True, True)), CONFIGURATIONS[case])
    compare(merged(pristine, read_lora(tmp_path)), expected, pristine)
    file = read_lora(tmp_path / "adapter_model.safetensors")
    assert file.sha256 == read_lora(tmp_path).sha256 == lora_sha256(tmp_path)


def saved(folder: Path, **settings) -> Path:
    """A layer as PEFT saves it, with a configuration of one's own."""
    tensors = {"base_model.model.a.to_q.lora_A.weight": torch.ones(4, 6)}
    tensors["base_model.model.a.to_q.lora_B.weight"] = torch.ones(5, 4)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "peft_type": "LORA", **settings}))
    return folder


REFUSED = [
    ("bias", "all"),
    ("lora_bias", True),
    ("modules_to_save", ["conv_in"]),
    ("peft_type", "LOHA"),
    ("peft_type", "ADALORA"),
    ("init_lora_weights", "pissa"),
    ("init_lora_weights", "loftq"),
    ("trainable_token_indices", [1]),
    ("layer_replication", [[0, 1]]),
    ("use_qalora", True),
    ("what_is_new", 0.5),
    ("use_dora", True),
    ("r", 8),
    ("r", "4"),
    ("lora_alpha", "8"),
    ("lora_alpha", True),
    ("rank_pattern", {"to_q": 2}),
    ("alpha_pattern", {"(": 2}),
    ("alpha_pattern", [2]),
    ("target_modules", ["to_k"]),
    ("target_modules", {"to_k": 1}),
    ("exclude_modules", "a.to_q"),
    ("layers_to_transform", [3]),
    ("use_rslora", 1),
]


@pytest.mark.compatibility(
    kind="LoRA",
    what="PEFT with biases, whole layers, DoRA without magnitudes, PiSSA or another kind than LoRA",
    recognised="adapter_config.json",
    outcome="refused",
)
@pytest.mark.parametrize(("key", "value"), REFUSED, ids=str)
def test_what_a_configuration_says_beyond_that_is_refused(key: str, value: object, tmp_path: Path):
    settings = {"target_modules": ["to_q"], key: value}
    with pytest.raises(RequestError) as caught:
        read_lora(saved(tmp_path, **settings))
    words = {"r": "rank" if value == 8 else "r '4'", "exclude_modules": "target_modules"}
    words |= {"layers_to_transform": "target_modules", "rank_pattern": "rank"}
    assert words.get(key, key) in str(caught.value) and "adapter_config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10**5, "\xff"])
def test_a_configuration_that_is_none_is_refused(text: str, tmp_path: Path):
    folder = saved(tmp_path)
    (folder / "adapter_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(RequestError, match="adapter_config"):
        read_lora(folder)


@pytest.mark.compatibility(
    kind="LoRA",
    what="PEFT file without its adapter_config.json",
    recognised="base_model.model. and no alphas",
    outcome="refused",
)
def test_without_its_configuration_a_file_of_peft_is_refused_or_the_assumption_stated(tmp_path: Path, caplog):
    folder = saved(tmp_path)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(RequestError, match=r"no adapter_config.json .*strict=False"):
        read_lora(folder)
    (layer,) = read_lora(folder, strict=False).layers.values()
    assert layer.strength == 1 and "alpha = rank is assumed" in caplog.text


@pytest.mark.compatibility(
    kind="LoRA",
    what="PEFT folders of a U-Net and its text encoders side by side",
    recognised="unet/, text_encoder/, text_encoder_2/ with adapter_model.safetensors",
    outcome="works",
)
def test_parts_that_lie_side_by_side_are_one_lora(tmp_path: Path):
    for name in ("unet", "text_encoder_2"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name, lora_alpha=12 if name == "unet" else 2)
    file = read_lora(tmp_path)
    assert {name: layer.strength for name, layer in file.layers.items()} == {
        "unet.a.to_q": 3.0,
        "text_encoder_2.a.to_q": 0.5,
    }
    assert file.sha256 == lora_sha256(tmp_path) != read_lora(tmp_path / "unet").sha256
    assert {*read_lora(tmp_path / "text_encoder_2" / "adapter_model.safetensors").layers} == {"text_encoder_2.a.to_q"}


def test_a_folder_without_a_lora_or_with_several_is_refused(tmp_path: Path):
    with pytest.raises(RequestError, match=r"no \.safetensors file.*pickles"):
        read_lora(tmp_path)
    for name in ("a", "b"):
        save_file({"unet.a.lora_A.weight": torch.ones(1, 1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(RequestError, match=r"2 \.safetensors files.*name the file"):
        read_lora(tmp_path)


def text_encoder(width: int) -> nn.Module:
    layer = nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": nn.Linear(width, width)})})
    return nn.ModuleDict({"encoder": nn.ModuleDict({"layers": nn.ModuleList([layer])})})


@pytest.mark.parametrize("widths", [(6, 8), (6, 6)])
def test_a_text_encoder_without_a_name_is_told_by_its_width(widths: tuple[int, int], tmp_path: Path):
    name = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 6), f"{name}.lora_B.weight": torch.ones(6, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 2}')
    names = ("text_encoder", "text_encoder_2")
    parts = [part(nn.ModuleDict())]
    parts += [
        part(text_encoder(width), name=name, prefixes=text_encoder_prefixes(name, among=names))
        for name, width in zip(names, widths, strict=True)
    ]
    file = read_lora(tmp_path)
    if widths == (6, 6):
        with pytest.raises(RequestError, match="of text_encoder or text_encoder_2"):
            match(file, parts, model="a", family="b")
    else:
        (found,) = match(file, parts, model="a", family="b")
        assert found.part == "text_encoder"


# Names of the original networks.


def kohya_original(layers: Mapping, modules: Mapping[str, str]) -> dict[str, Tensor]:
    """kohya's layout under the names of the original network; alphas as other trainers' numbers."""
    renamed = {(part, modules.get(module, module)): matrices for (part, module), matrices in layers.items()}
    return LAYOUTS["kohya"](renamed)


def original_unet(module: nn.Module) -> dict[str, str]:
    modules = [name for name, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    found = {module: name for module, name, _ in original_names(modules)}
    assert found.keys() == set(modules)
    assert len(set(found.values())) == len(modules)
    return found


@pytest.mark.compatibility(
    kind="LoRA",
    what="kohya's LoRA of SDXL, in the names of the original network",
    recognised="lora_unet_input_blocks_, lora_unet_middle_block_, lora_unet_output_blocks_",
    outcome="works",
)
def test_original_names_of_sdxl_add_what_diffusers_adds(sdxl: UNet2DConditionModel, tmp_path: Path):
    names = original_unet(sdxl)
    layers = random_layers(SimpleNamespace(unet=sdxl), unet=tuple(names), alpha=3.0)
    tensors = kohya_original(layers, names)
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "a.safetensors")
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=sdxl.config)
    reference = UNet2DConditionModel.from_config(sdxl.config)
    reference.load_state_dict(sdxl.state_dict())
    reference.load_lora_adapter(state, network_alphas=alphas, prefix="unet")
    reference.fuse_lora(lora_scale=0.7)
    reference.unload_lora()
    found = merged(sdxl, read_lora(tmp_path / "a.safetensors"), scale=0.7)
    assert len(found) == len(layers) == len(names)
    compare(found, reference.state_dict(), sdxl)


def test_original_names_are_those_of_diffusers_converter():
    """Of Stable Diffusion 1.5's and 2.1's form: four levels, of which the last does not attend."""
    net = unet(levels=(True, True, True, False))
    names = original_unet(net)
    assert names["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"] == (
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    )
    assert names["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.1.conv"
    assert names["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
    weights = {f"model.diffusion_model.{name}.weight": torch.tensor(i) for i, name in enumerate(names.values())}
    needed = {"time_embed.0.bias", "time_embed.2.bias", "out.0.weight", "out.0.bias", "out.2.bias"}
    needed |= {"input_blocks.0.0.bias"}
    needed |= {f"{name}.bias" for name in names.values() if name.endswith((".op", ".conv"))}
    weights |= {f"model.diffusion_model.{name}": torch.tensor(-1) for name in needed}
    converted = convert_ldm_unet_checkpoint(weights, {**net.config})
    for number, module in enumerate(names):
        assert converted[f"{module}.weight"] == number


@pytest.fixture(scope="module")
def sd3() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=8,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
    )


@pytest.mark.compatibility(
    kind="LoRA",
    what="kohya's LoRA of SD 3, three projections in one matrix",
    recognised="lora_unet_joint_blocks_0_x_block_attn_qkv",
    outcome="works",
)
def test_original_names_of_sd3_add_what_their_sums_would_be_converted_to(sd3: SD3Transformer2DModel, tmp_path: Path):
    modules = [name for name, child in sd3.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    blocks: dict[str, int] = {}
    for module, name, rows in original_names(modules):
        blocks[name] = blocks.get(name, 0) + (sd3.get_submodule(module).weight.shape[0] if rows.count == 3 else 0)
    shapes = {name: sd3.get_submodule(module).weight.shape for module, name, _ in original_names(modules)}
    tensors, sums = {}, {}
    for name, shape in shapes.items():
        out = blocks[name] or shape[0]
        down, up = torch.randn(2, *shape[1:]), torch.randn(out, 2, *[1] * (len(shape) - 2))
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        tensors[f"{flat}.alpha"] = torch.tensor(1)
        sums[f"{name}.weight"] = 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(out, *shape[1:])
    save_file(tensors, tmp_path / "a.safetensors")
    # The converter asks for every weight of a checkpoint; what is no module's weight is of no interest here.
    expected = convert_sd3_transformer_checkpoint_to_diffusers(_whole(sums, sd3))
    found = merged(sd3, read_lora(tmp_path / "a.safetensors"))
    assert {name.removesuffix(".weight") for name in found} == set(modules) - {"context_embedder"}
    for name, array in found.items():
        added = array - sd3.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(added, expected[name].numpy(), atol=1e-5)


def _whole(weights: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    whole = {name: value.clone() for name, value in weights.items()}
    whole |= {f"{name.removesuffix('.weight')}.bias": torch.zeros(len(value)) for name, value in weights.items()}
    whole |= {"pos_embed": net.pos_embed.pos_embed}
    whole |= {f"context_embedder.{kind}": getattr(net.context_embedder, kind).detach() for kind in ("weight", "bias")}
    return whole


def test_a_file_with_both_names_of_a_weight_adds_it_once(sdxl: UNet2DConditionModel, tmp_path: Path, caplog):
    names = original_unet(sdxl)
    layers = random_layers(SimpleNamespace(unet=sdxl), unet=("attn1.to_q",))
    plain = LAYOUTS["kohya"](layers)
    save_file(plain, tmp_path / "a.safetensors")
    both = plain | kohya_original(layers, names)
    save_file({key: value.clone() for key, value in both.items()}, tmp_path / "b.safetensors")
    once, both = (merged(sdxl, read_lora(tmp_path / f"{name}.safetensors")) for name in "ab")
    assert once.keys() == both.keys()
    assert all(np.array_equal(once[name], both[name]) for name in once)
    assert "under another name" in caplog.text


@pytest.mark.parametrize("prefix", ["lora_unet_", "lycoris_", "diffusion_model.", "model.diffusion_model.", "unet."])
def test_names_begin_as_trainers_write_them(prefix: str, sdxl: UNet2DConditionModel):
    found = part(sdxl).find(f"{prefix}input_blocks.4.1.transformer_blocks.0.attn2.to_k")
    assert [place.target.key for place in found] == [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    ]


@pytest.mark.parametrize(
    ("part_name", "among", "prefix"),
    [
        ("text_encoder", 2, "lora_te_text_model_"),
        ("text_encoder", 2, "lora_te1_text_model_"),
        ("text_encoder_2", 2, "lora_te2_text_model_"),
        ("text_encoder_2", 1, "lora_te1_"),  # SDXL's refiner
        ("text_encoder", 2, "text_encoders.clip_l.transformer.text_model."),
        ("text_encoder_2", 2, "clip_g.transformer.text_model."),
        ("text_encoder_2", 2, "text_encoder_2.text_model."),
    ],
)
def test_text_encoders_are_counted_as_trainers_count(part_name: str, among: int, prefix: str):
    names = [part_name] if among == 1 else ["text_encoder", "text_encoder_2"]
    found = part(text_encoder(6), name=part_name, prefixes=text_encoder_prefixes(part_name, among=names))
    assert found.find(f"{prefix}encoder_layers_0_self_attn_q_proj")
    other = "lora_te2_" if part_name == "text_encoder" else "lora_te3_"
    assert not found.find(f"{other}encoder_layers_0_self_attn_q_proj")


def test_where_nothing_of_the_denoiser_fits_the_rest_is_not_offered(sdxl: UNet2DConditionModel, tmp_path: Path):
    name = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 6), f"{name}.lora_up.weight": torch.ones(6, 2)}
    other = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors |= {key.replace(name, other): value + 1 for key, value in tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    parts = [
        part(sdxl),
        part(text_encoder(6), name="text_encoder", prefixes=text_encoder_prefixes("text_encoder", among=("a", "b"))),
    ]
    with pytest.raises(RequestError, match="double_blocks") as caught:
        match(read_lora(tmp_path / "a.safetensors"), parts, model="a", family="b")
    assert "strict=False" not in str(caught.value)


# Numbers.

ALPHAS: Mapping[str, Callable[[], Tensor]] = {
    "int64": lambda: torch.tensor(2),
    "int32, one element": lambda: torch.tensor([2], dtype=torch.int32),
    "uint8": lambda: torch.tensor(2, dtype=torch.uint8),
    "float64": lambda: torch.tensor(2.0, dtype=torch.float64),
    "bfloat16, [1, 1]": lambda: torch.tensor([[2.0]], dtype=torch.bfloat16),
    "float8": lambda: torch.tensor(2.0).to(torch.float8_e4m3fn),
    "another float8": lambda: torch.tensor(2.0).to(torch.float8_e5m2),
}


@pytest.mark.compatibility(
    kind="LoRA",
    what="alpha as an integer or a float of any size, or with one element",
    recognised=".alpha",
    outcome="works",
)
@pytest.mark.parametrize("kind", ALPHAS)
def test_alpha_is_any_number(kind: str, tmp_path: Path):
    tensors = {"unet.a.lora_down.weight": torch.ones(4, 6), "unet.a.lora_up.weight": torch.ones(5, 4)}
    save_file(tensors | {"unet.a.alpha": ALPHAS[kind]()}, tmp_path / "a.safetensors")
    (layer,) = read_lora(tmp_path / "a.safetensors").layers.values()
    assert layer.strength == 0.5


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_matrices_may_have_eight_bits(dtype: torch.dtype, tmp_path: Path):
    down = torch.randn(4, 6).to(dtype)
    save_file({"unet.a.lora_A.weight": down, "unet.a.lora_B.weight": torch.ones(5, 4)}, tmp_path / "a.safetensors")
    (layer,) = read_lora(tmp_path / "a.safetensors").layers.values()
    np.testing.assert_array_equal(layer.down.float32(), down.float().numpy())


def test_matrices_of_integers_are_refused(tmp_path: Path):
    tensors = {"unet.a.lora_A.weight": torch.ones(4, 6, dtype=torch.int8), "unet.a.lora_B.weight": torch.ones(5, 4)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match="down tensor of int8"):
        read_lora(tmp_path / "a.safetensors")


KINDS = {
    "LoHa": "a.hada_w1_a",
    "LoKr": "a.lokr_w2",
    "OFT": "a.oft_blocks",
    "GLoRA": "a.a1.weight",
    "norms": "a.w_norm",
    "differences": "a.diff",
    "biases": "base_model.model.a.lora_B.bias",
    "token embeddings": "base_model.model.a.lora_embedding_A",
    "trained embeddings": "bundle_emb.cat.clip_l",
    "whole layers": "base_model.model.conv_in.modules_to_save.weight",
}


@pytest.mark.compatibility(
    kind="LoRA",
    what="LoHa, LoKr, OFT, GLoRA, norms, whole differences, biases, trained embeddings",
    recognised="hada_, lokr_, oft_, a1, w_norm, diff, bias, lora_embedding_, bundle_emb",
    outcome="refused",
)
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_refused_by_name(kind: str, tmp_path: Path):
    save_file({KINDS[kind]: torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match=f"{kind}.*: not supported"):
        read_lora(tmp_path / "a.safetensors")


def test_a_folder_with_one_file_is_that_file_and_with_more_is_refused(tmp_path: Path):
    save_file({"unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3)}, tmp_path / "style.safetensors")
    assert [source.path.name for source in lora_sources(tmp_path)] == ["style.safetensors"]
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(RequestError, match=r"2 \.safetensors.*name the file"):
        lora_sources(tmp_path)
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_lora_weights.bin").touch()
    with pytest.raises(RequestError, match=r"no \.safetensors.*convert them to safetensors"):
        lora_sources(tmp_path / "pickles")
