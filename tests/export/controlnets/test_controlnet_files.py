"""ControlNets in single files and in pickles: converted, or refused by name."""

import re
from pathlib import Path

import pytest
import single_files as original
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from latentrt.errors import CheckpointError
from latentrt.export.controlnets.controlnet import ControlNet

SHAPES = {
    "Stable Diffusion 1": {"attention_head_dim": 8, "cross_attention_dim": 24},
    "Stable Diffusion 2": {
        "attention_head_dim": (1, 2), "block_out_channels": (64, 128), "cross_attention_dim": 24,
        "use_linear_projection": True,
    },
    "Stable Diffusion XL": {
        "attention_head_dim": (1, 2), "block_out_channels": (64, 128), "cross_attention_dim": 24,
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 16, "transformer_layers_per_block": (1, 2),
    },
}  # fmt: skip
SMALL = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 1,
}


def network(name: str) -> ControlNetModel:
    torch.manual_seed(0)
    net = ControlNetModel(**SMALL | SHAPES[name])
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)  # those that are added are zeros at first
    return net


def in_the_original_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By the inverse of the U-Net's names, and those of what a ControlNet has besides."""
    own = {key: value for key, value in state.items() if key.startswith("controlnet_")}
    body = {key: value for key, value in state.items() if key not in own}
    renamed = {key.removeprefix("model.diffusion_model."): value for key, value in original.ldm_unet(body).items()}
    for key, value in own.items():
        name = re.sub(r"controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0.", key)
        name = name.replace("controlnet_mid_block.", "middle_block_out.0.")
        name = name.replace("controlnet_cond_embedding.conv_in.", "input_hint_block.0.")
        name = name.replace("controlnet_cond_embedding.conv_out.", "input_hint_block.14.")
        name = re.sub(
            r"controlnet_cond_embedding\.blocks\.(\d+)\.", lambda m: f"input_hint_block.{2 + 2 * int(m[1])}.", name
        )
        renamed[name] = value
    return renamed


@pytest.mark.compatibility(
    kind="ControlNet",
    what="single file, SD 1, 2 and XL",
    recognised="control_model. keys, the same without prefix, or diffusers' names",
    outcome="works",
)
@pytest.mark.parametrize("layout", ["control_model.", "", "diffusers"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_single_file_is_converted(name: str, layout: str, tmp_path: Path):
    net = network(name)
    state = net.state_dict()
    if layout != "diffusers":
        state = {layout + key: value for key, value in in_the_original_layout(state).items()}
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "net.safetensors")
    found = ControlNet.open("net", tmp_path / "net.safetensors")
    again = found.load().state_dict()
    assert again.keys() == net.state_dict().keys()
    assert all(torch.equal(value, again[key]) for key, value in net.state_dict().items())
    compared = ("attention_head_dim", "block_out_channels", "cross_attention_dim", "addition_embed_type", "in_channels")
    for key in (*compared, "conditioning_embedding_out_channels", "transformer_layers_per_block"):
        theirs, ours = net.config[key], found.config[key]
        assert (list(theirs) if isinstance(theirs, tuple) else theirs) == ours, key
    assert found.provenance()["source"] == str(tmp_path / "net.safetensors")
    assert found.provenance()["sha256"].keys() == {"net.safetensors"}


def test_a_pickle_is_read_where_it_is_allowed(tmp_path: Path):
    state = {
        f"control_model.{k}": v for k, v in in_the_original_layout(network("Stable Diffusion 1").state_dict()).items()
    }
    torch.save(state, tmp_path / "control_v11p.pth")
    with pytest.raises(CheckpointError, match=r"pickle.*--allow-pickle"):
        ControlNet.open("net", tmp_path / "control_v11p.pth")
    assert ControlNet.open("net", tmp_path / "control_v11p.pth", allow_pickle=True).load() is not None


@pytest.mark.compatibility(
    kind="ControlNet", what="folder with .bin weights", recognised="diffusion_pytorch_model.bin", outcome="refused"
)
def test_a_folder_of_pickles_says_why(random_controlnet: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((random_controlnet / "config.json").read_text())
    state = load_file(random_controlnet / "diffusion_pytorch_model.safetensors")
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle.*--allow-pickle"):
        ControlNet.open("net", tmp_path)
    again = ControlNet.open("net", tmp_path, allow_pickle=True).load().state_dict()
    assert all(torch.equal(value, again[key]) for key, value in state.items())


OTHERS = {
    "ControlNet Union": "task_embedding",
    "T2I-Adapter": "adapter.body.0.resnets.0.block1.weight",
    "LoRA": "lora_unet_down_blocks_0.alpha",
    "Control-LoRA": "lora_controlnet",
    "IP-Adapter": "ip_adapter.1.to_k_ip.weight",
}


@pytest.mark.parametrize(
    ("what", "key"),
    [
        pytest.param(
            what, key,
            marks=pytest.mark.compatibility(
                kind="ControlNet", what=f"{what}, single file", recognised=key, outcome="refused"
            ),
        )
        for what, key in OTHERS.items()
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(what: str, key: str, tmp_path: Path):
    save_file({key: torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=what):
        ControlNet.open("net", tmp_path / "x.safetensors")


def test_a_missing_path_is_told_from_a_file(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no folder"):
        ControlNet.open("net", tmp_path / "nothing")
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"no ControlNet.*it holds x \(1\)"):
        ControlNet.open("net", tmp_path / "x.safetensors")
    save_file({"control_model.zero_convs.0.0.weight": torch.ones(1)}, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="incomplete"):
        ControlNet.open("net", tmp_path / "half.safetensors")
