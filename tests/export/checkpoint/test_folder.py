"""Folders in diffusers' layout: variants, shards and pickles."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentrt import CheckpointError
from latentrt.export.checkpoint.folder import Checkpoint

UNET = "diffusion_pytorch_model"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


def rewritten(part: Path, stem: str, change: Callable[[torch.Tensor], torch.Tensor], name: str) -> None:
    state = {key: change(value) for key, value in load_file(part / f"{stem}.safetensors").items()}
    save_file(state, part / name, metadata={"format": "pt"})


def test_a_variant_is_read_where_it_is_asked_for(folder: Path):
    """Of parts that have it; the others are read as they are."""
    rewritten(folder / "unet", UNET, lambda value: value + 1, f"{UNET}.tuned.safetensors")
    plain, tuned = Checkpoint.open(folder), Checkpoint.open(folder, variant="tuned")
    for key, value in tuned.unet().state_dict().items():
        assert torch.equal(value, plain.unet().state_dict()[key] + 1)
        break
    assert [file.name for file in tuned.weight_files("vae")] == [f"{UNET}.safetensors"]
    assert tuned.fingerprint() != plain.fingerprint()
    with pytest.raises(CheckpointError, match=r"variant 'fp61'"):
        Checkpoint.open(folder, variant="fp61")


def test_fp16_is_read_where_there_is_nothing_else(folder: Path):
    rewritten(folder / "unet", UNET, torch.Tensor.half, f"{UNET}.fp16.safetensors")
    (folder / "unet" / f"{UNET}.safetensors").unlink()
    checkpoint = Checkpoint.open(folder)
    assert [file.name for file in checkpoint.weight_files("unet")] == [f"{UNET}.fp16.safetensors"]
    assert checkpoint.unet().dtype == torch.float32


def test_shards_are_read_and_a_missing_one_is_named(folder: Path):
    checkpoint = Checkpoint.open(folder)
    whole = checkpoint.unet()
    (folder / "unet" / f"{UNET}.safetensors").unlink()
    whole.save_pretrained(folder / "unet", max_shard_size="1MB")
    shards = checkpoint.weight_files("unet")
    assert len(shards) > 2
    again, expected = Checkpoint.open(folder).unet().state_dict(), whole.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.items())
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"lacks {shards[1].name}; expected all {len(shards)} shards"):
        Checkpoint.open(folder)


def test_pickles_are_read_where_they_are_allowed(folder: Path):
    expected = Checkpoint.open(folder)
    for part, stem, name in (("unet", UNET, f"{UNET}.bin"), ("text_encoder", "model", "pytorch_model.bin")):
        torch.save(load_file(folder / part / f"{stem}.safetensors"), folder / part / name)
    modules = [expected.unet().state_dict(), expected.text_encoder().state_dict()]
    for part, stem in (("unet", UNET), ("text_encoder", "model")):
        (folder / part / f"{stem}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unet .*pickle.*safetensors.*--allow-pickle"):
        Checkpoint.open(folder)
    checkpoint = Checkpoint.open(folder, allow_pickle=True)
    for module, state in zip((checkpoint.unet(), checkpoint.text_encoder()), modules, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.compatibility(
    kind="checkpoint",
    what="a folder that Optimum exported",
    recognised="model.onnx or openvino_model.xml of the network",
    outcome="refused",
)
@pytest.mark.parametrize("name", ["model.onnx", "openvino_model.xml"])
@pytest.mark.parametrize("origin", [None, "someone/model"])
def test_what_another_program_exported_is_named_with_its_origin(folder: Path, name: str, origin: str | None):
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "_name_or_path": origin}))
    (folder / "unet" / f"{UNET}.safetensors").rename(folder / "unet" / name)
    with pytest.raises(CheckpointError, match=f"unet/{name}.*already exported.*{origin or 'that was exported'}"):
        Checkpoint.open(folder)
