"""Names on a model hub, against a stand-in on loopback: what is downloaded, what is not, and what is said."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub, serve
from huggingface_hub import constants
from safetensors.torch import load_file

from latentrt.errors import CheckpointError, LatentRTError
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.hub import choose_weights
from latentrt.export.checkpoint.sources import SourceOptions, open_source

NAME = "owner/model"
WEIGHTS = {**dict.fromkeys(("unet", "vae"), "diffusion_pytorch_model"), "text_encoder": "model"}


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Every kind of file that a real repository has beside those that are needed."""
    root = shutil.copytree(tiny_checkpoint, tmp_path / "repository")
    for part, name in WEIGHTS.items():
        shutil.copy(root / part / f"{name}.safetensors", root / part / f"{name}.fp16.safetensors")
        pickled = "pytorch_model" if part == "text_encoder" else name
        torch.save(load_file(root / part / f"{name}.safetensors"), root / part / f"{pickled}.bin")
    shutil.copytree(root / "text_encoder", root / "safety_checker")
    for extra in ("unet/diffusion_pytorch_model.non_ema.safetensors", "v1-5.ckpt", "v1-5.safetensors", "README.md",
                  "unet/flax_model.msgpack", "text_encoder/openvino_model.bin", "vae/training_args.bin"):  # fmt: skip
        (root / extra).write_bytes(b"not needed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve(root) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield server


def weights_of(hub: Hub) -> set[str]:
    return {path for path in hub.files if path.endswith((".safetensors", ".bin", ".ckpt", ".msgpack"))}


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        pytest.param(
            {}, "{name}.safetensors",
            marks=pytest.mark.compatibility(
                kind="checkpoint", what="a name on a model hub",
                recognised="owner/model; the parts of its model_index.json", outcome="works",
            ),
        ),
        ({"variant": "fp16"}, "{name}.fp16.safetensors"),
        ({"allow_pickle": True}, "{name}.safetensors"),
    ],
)  # fmt: skip
def test_only_what_is_needed_is_downloaded(hub: Hub, options, ending):
    checkpoint = Checkpoint.open(NAME, **options)
    assert weights_of(hub) == {f"{part}/{ending.format(name=name)}" for part, name in WEIGHTS.items()}
    assert not {path for path in hub.files if path.startswith("safety_checker") or path == "README.md"}
    assert checkpoint.unet().config.in_channels == 4
    assert len(checkpoint.tokenizer()) > 0
    before = list(hub.got)
    Checkpoint.open(NAME, **options)
    assert hub.got == before


def test_pickles_are_downloaded_where_they_are_allowed_and_there_is_nothing_else(hub: Hub):
    for part in WEIGHTS:
        for file in (hub.root / part).glob("*.safetensors"):
            file.unlink()
    with pytest.raises(CheckpointError, match=r"no weights|--allow-pickle"):
        Checkpoint.open(NAME)
    assert weights_of(hub) == set()
    checkpoint = Checkpoint.open(NAME, allow_pickle=True)
    assert {path.rpartition(".")[2] for path in weights_of(hub)} == {"bin"}
    assert len(weights_of(hub)) == 3
    assert checkpoint.unet().config.in_channels == 4


def test_shards_come_with_their_index(hub: Hub, tiny_checkpoint: Path):
    path = hub.root / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    Checkpoint.open(tiny_checkpoint).unet().save_pretrained(hub.root / "unet", max_shard_size="200KB")
    found = Checkpoint.open(NAME)
    assert sum("unet/" in path and "-of-" in path for path in weights_of(hub)) > 1
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in hub.files
    assert found.unet().config.in_channels == 4


def test_a_vae_that_is_replaced_is_not_downloaded(hub: Hub, tiny_checkpoint: Path):
    options = SourceOptions(vae=tiny_checkpoint / "vae")
    with open_source(NAME, options=options):
        assert not {path for path in weights_of(hub) if path.startswith("vae")}


def test_an_interrupted_download_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """The rest alone is asked for, from the last piece that was stored."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.breaks_after = 100_000
    try:
        Checkpoint.open(NAME)
    except CheckpointError as error:
        assert error.hint is not None
        Checkpoint.open(NAME)
    begun = [begin for path, begin in hub.got if path.endswith(".safetensors") and begin > 0]
    assert begun == [100_000]


@pytest.mark.parametrize(
    ("code", "words"),
    [("GatedRepo", ("conditions", "log in")), ("RepoNotFound", ("has no", "check the name"))],
)
def test_what_the_hub_refuses_is_explained(hub: Hub, code, words):
    hub.refuses = code
    with pytest.raises(LatentRTError) as caught:
        Checkpoint.open(NAME)
    assert all(word in str(caught.value) for word in words)
    assert "\x1b" not in str(caught.value)


def test_a_repository_of_single_files_is_explained(hub: Hub):
    (hub.root / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no model_index\.json.*single file"):
        Checkpoint.open(NAME)


@pytest.mark.parametrize("how", ["switched off", "no network"])
def test_without_a_network_the_cache_is_enough(hub: Hub, how, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its tries

    def away() -> None:
        if how == "switched off":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{free.getsockname()[1]}"
            monkeypatch.setattr(constants, "ENDPOINT", url)
            monkeypatch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
            )

    with monkeypatch.context() as patched:
        patched.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-empty")
        away()
        with pytest.raises(CheckpointError, match=r"cache.*cannot be reached"):
            Checkpoint.open(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    Checkpoint.open(NAME)
    away()
    assert Checkpoint.open(NAME).unet().config.in_channels == 4


@pytest.mark.parametrize(
    ("names", "variant", "pickles", "chosen"),
    [
        (["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"], None, True, ["model.safetensors"]),
        (["model.fp16.safetensors", "pytorch_model.bin"], None, True, ["model.fp16.safetensors"]),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors", "model.safetensors"],
         "fp16", False, ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"]),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bin"], None, False, []),
        (["pytorch_model.fp16.bin", "optimizer.bin", "training_args.bin"], None, True, ["pytorch_model.fp16.bin"]),
    ],
)  # fmt: skip
def test_which_weights_are_chosen(names, variant, pickles, chosen):
    assert choose_weights(names, variant=variant, allow_pickle=pickles) == chosen
