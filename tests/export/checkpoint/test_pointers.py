"""Git LFS pointers are called so wherever a file of weights or settings is read, and so are averaged weights alone."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentrt.errors import CheckpointError, LatentRTError, RequestError
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.sources import open_source
from latentrt.export.controlnets.controlnet import ControlNet
from latentrt.family import TextEncoderSpec
from latentrt.lora.file import read_lora
from latentrt.text.textual_inversion import read_embedding

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 1234\n"
TEXT_ENCODER = TextEncoderSpec(
    component="text_encoder", tokenizer="t", length=77, width=8, vocabulary=10, bos_id=0, eos_id=1, pad_id=1
)


@pytest.mark.compatibility(
    kind="checkpoint",
    what="folder of which only Git LFS pointers were cloned",
    recognised="the first line of a pointer",
    outcome="refused",
)
@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json", "tokenizer/vocab.json",
        "scheduler/scheduler_config.json", "text_encoder/model.safetensors",
    ],
)  # fmt: skip
def test_in_a_checkpoint(name: str, tiny_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    assert (folder / name).exists()
    (folder / name).unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"Git LFS pointer.*git lfs pull"):
        Checkpoint.open(folder).tokenizer()


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_a_single_file(name: str, tmp_path: Path):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        open_source(str(tmp_path / name)).__enter__()


@pytest.mark.compatibility(
    kind="LoRA", what="Git LFS pointer", recognised="the first line of a pointer", outcome="refused"
)
def test_a_lora_and_an_embedding(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    path.write_text(POINTER)
    for read in (lambda: read_lora(path), lambda: read_embedding("x", path, [TEXT_ENCODER])):
        with pytest.raises(RequestError, match=r"Git LFS pointer.*git lfs pull"):
            read()


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_controlnet(name: str, random_controlnet: Path, tmp_path: Path):
    folder = shutil.copytree(random_controlnet, tmp_path / "net")
    (folder / name).unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(LatentRTError, match="Git LFS pointer"):
        ControlNet.open("net", folder)


@pytest.mark.compatibility(
    kind="checkpoint",
    what="single file of averaged weights (EMA) alone",
    recognised="keys model_ema.",
    outcome="refused",
)
def test_averaged_weights_alone(tmp_path: Path):
    save_file({"model_ema.diffusion_modelinput_blocks00weight": torch.ones(2)}, tmp_path / "ema.safetensors")
    with pytest.raises(CheckpointError, match="EMA"):
        open_source(str(tmp_path / "ema.safetensors")).__enter__()
