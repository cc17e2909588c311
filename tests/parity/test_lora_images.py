"""LoRA against diffusers' `load_lora_weights`, whole pictures of the trained checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lora_files import ATTENTION, CONVOLUTIONS, TEXT_ENCODER, random_layers, write_lora
from parity.cases import shapes_case

import latentrt
from latentrt import Pipeline
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.parity.metrics import worst_psnr_db
from latentrt.export.parity.torch.pipeline import Images, reference_images, reference_pipeline

CASE = shapes_case("dpmpp-2m", steps=6, size=(64, 64))
GATE_DB = 45.0
Applied = Sequence[tuple[Path, float]]


@pytest.fixture(scope="module")
def torch_pipeline(shapes_checkpoint: Path) -> StableDiffusionPipeline:
    return reference_pipeline(Checkpoint.open(shapes_checkpoint))


@pytest.fixture(scope="module")
def reference(torch_pipeline, shapes_checkpoint: Path) -> Callable[[Applied], Images]:
    """What diffusers makes of LoRAs."""

    def images(applied: Applied) -> Images:
        names = [f"adapter{i}" for i, _ in enumerate(applied)]
        try:
            for name, (path, _) in zip(names, applied, strict=True):
                torch_pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
            torch_pipeline.set_adapters(names, [scale for _, scale in applied])
            return reference_images(torch_pipeline, Checkpoint.open(shapes_checkpoint), CASE)
        finally:
            torch_pipeline.unload_lora_weights()

    return images


@pytest.fixture(scope="module")
def pipe(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with latentrt.load(shapes_bundle, backend="onnxruntime", cache_dir=tmp_path_factory.mktemp("cache")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def plain(pipe: Pipeline) -> Images:
    pipe.set_lora([])
    return pipe.run(CASE.request).images


def judge(pipe: Pipeline, applied: Applied, reference, plain: Images) -> None:
    """Equal to diffusers, and far from the picture without, or the equality says nothing."""
    pipe.set_lora(applied)
    found = pipe.run(CASE.request).images
    assert worst_psnr_db(found, plain) < 30
    assert worst_psnr_db(found, reference(applied)) >= GATE_DB


@pytest.mark.compatibility(
    kind="LoRA",
    what="kohya's files, and those of diffusers, older and with PEFT, for SD 1.x and its text encoder",
    recognised="lora_unet_down_blocks_, unet. with lora_A, lora.down or processor.to_q_lora",
    outcome="works",
)
@pytest.mark.parametrize(
    ("layout", "dtype", "unet", "text_encoder", "scale"),
    [
        ("kohya", torch.float32, ATTENTION, (), 1.0),
        ("kohya", torch.float16, ATTENTION, TEXT_ENCODER, 0.7),
        ("kohya", torch.float32, CONVOLUTIONS, (), 1.0),
        ("kohya", torch.float32, ATTENTION, (), -1.2),
        ("peft", torch.bfloat16, (*ATTENTION, "conv1"), TEXT_ENCODER, 1.0),
        ("diffusers", torch.float32, ATTENTION, TEXT_ENCODER, 0.5),
        ("old diffusers", torch.float32, ("to_q", "to_k", "to_v", "to_out.0"), TEXT_ENCODER[:4], 1.0),
    ],
    ids=lambda value: str(value).removeprefix("torch.") if not isinstance(value, tuple) else str(len(value)),
)
def test_pictures_equal_those_of_diffusers(
    layout, dtype, unet, text_encoder, scale, torch_pipeline, pipe, reference, plain, tmp_path
):
    layers = random_layers(torch_pipeline, unet=unet, text_encoder=text_encoder)
    path = write_lora(tmp_path / "a.safetensors", layers, layout=layout, dtype=dtype)
    judge(pipe, [(path, scale)], reference, plain)


def test_a_text_encoder_alone(torch_pipeline, pipe, reference, plain, tmp_path: Path):
    layers = random_layers(torch_pipeline, unet=(), text_encoder=TEXT_ENCODER, strength=1.5)
    judge(pipe, [(write_lora(tmp_path / "a.safetensors", layers), 1.0)], reference, plain)


def test_two_at_once(torch_pipeline, pipe, reference, plain, tmp_path: Path):
    first = write_lora(tmp_path / "a.safetensors", random_layers(torch_pipeline), layout="peft")
    second = write_lora(
        tmp_path / "b.safetensors",
        random_layers(torch_pipeline, unet=("to_k", "conv1"), rank=2, seed=1),
        layout="kohya",
    )
    judge(pipe, [(first, 0.8), (second, -0.6)], reference, plain)
