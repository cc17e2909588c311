"""A checkpoint written as a single file in the original layout becomes the same folder again, and what is refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import single_files as original
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from latentrt import CheckpointError
from latentrt.cli import main
from latentrt.export import package
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.single_file.convert import file_index, recognise, write_file
from latentrt.export.checkpoint.single_file.weights import Weights
from latentrt.export.checkpoint.sources import SourceOptions, open_source
from latentrt.export.package import export_bundle

Tensors = dict[str, torch.Tensor]


def unet(channels: tuple[int, ...], attends: tuple[bool, ...], **settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        **settings,
    )


def vae(**settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **settings,
    )


def clip(kind: type[nn.Module], width: int, act: str, projection: int | None = None) -> nn.Module:
    return kind(
        CLIPTextConfig(
            vocab_size=600,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=width // 64,
            hidden_act=act,
            projection_dim=width if projection is None else projection,
        )
    )


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint by its parts, how each is written in the original layout, and what it must be recognised as."""

    id: str
    name: str
    pipeline: str
    scheduler: dict[str, Any]
    parts: Callable[[], dict[str, nn.Module]]
    layout: dict[str, Callable[[Tensors], Tensors]]
    prediction: str | None = None


SD_LAYOUT = {"unet": original.ldm_unet, "vae": original.ldm_vae}
TEXT_TIME = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}


def sd1() -> dict[str, nn.Module]:
    return {
        "unet": unet((32, 64), (True, False), attention_head_dim=8, cross_attention_dim=64, layers_per_block=2),
        "vae": vae(),
        "text_encoder": clip(CLIPTextModel, 64, "quick_gelu"),
    }


def sd2() -> dict[str, nn.Module]:
    sizes = {"cross_attention_dim": 128, "use_linear_projection": True, "in_channels": 9, "sample_size": 96}
    return {
        "unet": unet((64, 128, 128), (True, True, False), attention_head_dim=(1, 2, 2), layers_per_block=1, **sizes),
        "vae": vae(layers_per_block=2),
        "text_encoder": clip(CLIPTextModel, 128, "gelu"),
    }


def sdxl() -> dict[str, nn.Module]:
    return {
        "unet": unet(
            (64, 128, 128),
            (False, True, True),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(1, 2, 2),
            cross_attention_dim=192,
            projection_class_embeddings_input_dim=6 * 256 + 96,
            layers_per_block=1,
            sample_size=128,
            **TEXT_TIME,
        ),
        "vae": vae(scaling_factor=0.13025),
        "text_encoder": clip(CLIPTextModel, 64, "quick_gelu"),
        "text_encoder_2": clip(CLIPTextModelWithProjection, 128, "gelu", 96),
    }


def refiner(*, lowest: bool = False) -> dict[str, nn.Module]:
    """`lowest`: whether it attends on its lowest level, as the published one does not."""
    return {
        "unet": unet(
            (64, 128, 128),
            (False, True, lowest),
            transformer_layers_per_block=(1, 2, 2),
            attention_head_dim=(1, 2, 2),
            cross_attention_dim=128,
            projection_class_embeddings_input_dim=5 * 256 + 128,
            layers_per_block=1,
            sample_size=128,
            **TEXT_TIME,
        ),
        "vae": vae(scaling_factor=0.13025),
        "text_encoder_2": clip(CLIPTextModelWithProjection, 128, "gelu"),
    }


def sd3(*, qk_norm: str | None = None, dual: tuple[int, ...] = (), t5: bool = False) -> dict[str, nn.Module]:
    config = T5Config(
        vocab_size=300, d_model=256, d_kv=64, d_ff=128, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    first = clip(CLIPTextModelWithProjection, 64, "quick_gelu")
    nn.init.eye_(first.text_projection.weight)  # the published files leave it out
    return {
        "transformer": SD3Transformer2DModel(
            num_layers=3,
            num_attention_heads=2,
            attention_head_dim=64,
            joint_attention_dim=256,
            caption_projection_dim=128,
            pooled_projection_dim=192,
            pos_embed_max_size=12,
            qk_norm=qk_norm,
            dual_attention_layers=dual,
        ),
        "vae": vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
                   use_post_quant_conv=False),
        "text_encoder": first,
        "text_encoder_2": clip(CLIPTextModelWithProjection, 128, "gelu"),
        **({"text_encoder_3": T5EncoderModel(config)} if t5 else {}),
    }  # fmt: skip


def t5_text_encoder(state: Tensors) -> Tensors:
    """Without the second name of the shared embedding."""
    prefix = "text_encoders.t5xxl.transformer."
    return {prefix + key: value for key, value in state.items() if key != "encoder.embed_tokens.weight"}


SD3_LAYOUT = {
    "transformer": original.mmdit,
    "vae": original.ldm_vae,
    "text_encoder": lambda state: original.hf_clip(
        {key: value for key, value in state.items() if key != "text_projection.weight"},
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": lambda state: original.hf_clip(state, "text_encoders.clip_g.transformer."),
    "text_encoder_3": t5_text_encoder,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
CASES = (
    Case(
        "sd1",
        "Stable Diffusion 1.x",
        "StableDiffusionPipeline",
        {"prediction_type": "epsilon", "beta_schedule": "scaled_linear"},
        sd1,
        SD_LAYOUT | {"text_encoder": lambda state: original.hf_clip(state, "cond_stage_model.transformer.")},
    ),
    Case(
        "sd2 inpainting",
        "Stable Diffusion 2.x for 768 px",
        "StableDiffusionInpaintPipeline",
        {"prediction_type": "v_prediction"},
        sd2,
        SD_LAYOUT | {"text_encoder": lambda state: original.open_clip(state, "cond_stage_model.model.")},
        prediction="v_prediction",
    ),
    Case(
        "sdxl",
        "Stable Diffusion XL",
        "StableDiffusionXLPipeline",
        {"prediction_type": "epsilon", "_class_name": "EulerDiscreteScheduler"},
        sdxl,
        SD_LAYOUT
        | {
            "text_encoder": lambda state: original.hf_clip(state, "conditioner.embedders.0.transformer."),
            "text_encoder_2": lambda state: original.open_clip(state, "conditioner.embedders.1.model."),
        },
    ),
    Case(
        "sdxl refiner",
        "Stable Diffusion XL refiner",
        "StableDiffusionXLImg2ImgPipeline",
        {"prediction_type": "epsilon"},
        refiner,
        SD_LAYOUT | {"text_encoder_2": lambda state: original.open_clip(state, "conditioner.embedders.0.model.")},
    ),
    Case(
        "sdxl refiner by its text encoder",
        "Stable Diffusion XL refiner",
        "StableDiffusionXLImg2ImgPipeline",
        {"prediction_type": "epsilon"},
        lambda: refiner(lowest=True),
        SD_LAYOUT | {"text_encoder_2": lambda state: original.open_clip(state, "conditioner.embedders.0.model.")},
    ),
    Case("sd3", "Stable Diffusion 3", "StableDiffusion3Pipeline", FLOW, sd3, SD3_LAYOUT),
    Case(
        "sd3.5 with T5",
        "Stable Diffusion 3",
        "StableDiffusion3Pipeline",
        FLOW,
        lambda: sd3(qk_norm="rms_norm", dual=(0, 1), t5=True),
        SD3_LAYOUT,
    ),
)


def single_state(case: Case, parts: Mapping[str, nn.Module]) -> Tensors:
    return {
        key: value.contiguous()
        for name, part in parts.items()
        for key, value in case.layout[name](part.state_dict()).items()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_part_comes_back_with_equal_weights_and_settings(case: Case, tmp_path: Path):
    torch.manual_seed(0)
    parts = case.parts()
    save_file(single_state(case, parts), tmp_path / "one.safetensors")
    found = recognise(Weights.open(tmp_path / "one.safetensors"), prediction=case.prediction)
    assert found.architecture.name == case.name
    assert [part.row.part for part in found.parts] == list(parts)
    index = file_index(found)
    write_file(found, tmp_path / "folder", prediction=case.prediction)
    assert index["_class_name"] == case.pipeline
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert {key: scheduler[key] for key in case.scheduler} == case.scheduler
    for name, part in parts.items():
        assert index[name][1] == type(part).__name__
        again = type(part).from_pretrained(tmp_path / "folder" / name)
        assert_equal_settings(again, part)
        expected = part.state_dict()
        assert again.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize(("parts", "name"), [(sdxl, "Stable Diffusion XL"), (refiner, "Stable Diffusion XL refiner")])
def test_without_text_encoders_the_lowest_level_tells_the_refiner(parts: Callable[..., Any], name: str, tmp_path: Path):
    save_file(original.ldm_unet(parts()["unet"].state_dict()), tmp_path / "one.safetensors")
    assert recognise(Weights.open(tmp_path / "one.safetensors")).architecture.name == name


def assert_equal_settings(again: nn.Module, part: nn.Module) -> None:
    """All that changes a network's output; sizes that only a pipeline reads are not part of it."""
    got, expected = ({**module.config} if not hasattr(module.config, "to_dict") else module.config.to_dict()
                     for module in (again, part))  # fmt: skip
    ignored = {"sample_size", "force_upcast", "dtype", "architectures"}
    unlike = {key for key in expected if key[0] != "_" and plain(got.get(key)) != plain(expected[key])}
    assert unlike - ignored == set()


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.fixture(scope="module")
def tiny_state(tiny_checkpoint: Path) -> Tensors:
    """The tiny checkpoint as one file's tensors."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    parts = {"unet": checkpoint.unet(), "vae": checkpoint.vae(), "text_encoder": checkpoint.text_encoder()}
    return single_state(CASES[0], parts)


@pytest.fixture
def write(tiny_state: Tensors, tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny checkpoint as a single file, without keys that start with one of `without`, and with others."""

    def write(*, without: tuple[str, ...] = (), name: str = "tiny.safetensors", **more: torch.Tensor) -> Path:
        state = {key: value for key, value in tiny_state.items() if not key.startswith(without)} | more
        if name.endswith(".safetensors"):
            save_file(state, tmp_path / name)
        else:
            torch.save({"state_dict": state, "global_step": 875000}, tmp_path / name)
        return tmp_path / name

    return write


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_single_file_exports_to_the_same_graphs(
    write, tiny_checkpoint: Path, tmp_path: Path, monkeypatch, export_once
):
    """One graph byte by byte, as all four take most of a minute; the others' modules by weights and settings. The
    graph is traced once if both modules have the same content, else twice."""
    monkeypatch.setattr(package, "export_graph", export_once)
    every = package.component_specs
    monkeypatch.setattr(
        package, "component_specs", lambda *given: tuple(spec for spec in every(*given) if spec.name == "decoder")
    )
    folder = Checkpoint.open(tiny_checkpoint)
    notes: list[str] = []
    options = SourceOptions(components=tiny_checkpoint)
    file = write()
    with open_source(str(file), options=options, beside=tmp_path / "out", note=notes.append) as checkpoint:
        assert_equal_settings(checkpoint.unet(), folder.unet())
        assert_equal_settings(checkpoint.text_encoder(), folder.text_encoder())
        assert same_weights(checkpoint.unet(), folder.unet())
        assert same_weights(checkpoint.text_encoder(), folder.text_encoder())
        bundle = export_bundle(checkpoint, tmp_path / "out", check=False)
    assert bundle.manifest["files"] == export_bundle(folder, tmp_path / "from-folder", check=False).manifest["files"]
    origin = bundle.manifest["provenance"]["checkpoint"]
    assert origin["source"] == str(file)
    assert file.name in origin["sha256"]
    assert not any(name.endswith(".safetensors") and name != file.name for name in origin["sha256"])
    (note,) = notes
    assert note.startswith(f"{file} is Stable Diffusion 1.x: unet (")
    assert note.endswith(", int64 (1)")
    assert not list(tmp_path.glob(".checkpoint-*"))


def test_a_pickle_of_half_weights_is_read_where_it_is_allowed(tiny_state, tiny_checkpoint: Path, tmp_path: Path):
    """As trainers write it: tensors under `state_dict`, EMA weights and the noise schedule beside them."""
    half = {key: value.half() if value.is_floating_point() else value for key, value in tiny_state.items()}
    extra = {"model_ema.decay": torch.tensor(0.99), "betas": torch.ones(1000)}
    torch.save({"state_dict": half | extra, "global_step": 7}, tmp_path / "tiny.ckpt")
    with pytest.raises(CheckpointError, match=r"is a pickle.*--allow-pickle"), open_source(str(tmp_path / "tiny.ckpt")):
        pass
    options = SourceOptions(allow_pickle=True, components=tiny_checkpoint)
    with open_source(str(tmp_path / "tiny.ckpt"), options=options) as checkpoint:
        network, expected = checkpoint.unet(), Checkpoint.open(tiny_checkpoint).unet()
    assert network.dtype == torch.float32
    weights = expected.state_dict()
    assert all(torch.equal(value, weights[key].half().float()) for key, value in network.state_dict().items())


class Code:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_a_pickle_with_code_in_it_is_refused_even_if_pickles_are_allowed(tmp_path: Path):
    torch.save({"state_dict": {}, "callback": Code()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"builtins\.exec"):
        Weights.open(tmp_path / "evil.ckpt", allow_pickle=True)


def test_a_fine_tuned_network_alone_takes_the_rest_from_components(write, tiny_checkpoint: Path):
    file = write(without=("first_stage_model.", "cond_stage_model."))
    with pytest.raises(CheckpointError, match=r"unet \([\d.]+ M\).*lacks vae, text_encoder, tokenizer"):
        open_source(str(file)).__enter__()
    with open_source(str(file), options=SourceOptions(components=tiny_checkpoint)) as checkpoint:
        names = checkpoint.fingerprint()
    with open_source(str(file), options=SourceOptions(components=tiny_checkpoint)) as again:
        assert again.fingerprint() == names  # so that an interrupted export goes on
    assert {file.name, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"} <= set(names)
    assert "unet/diffusion_pytorch_model.safetensors" not in names


def test_a_network_under_diffusers_own_names_is_recognised(tiny_checkpoint: Path, tmp_path: Path):
    shutil.copy(tiny_checkpoint / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "unet.safetensors")
    with open_source(str(tmp_path / "unet.safetensors"), options=SourceOptions(components=tiny_checkpoint)) as found:
        assert same_weights(found.unet(), Checkpoint.open(tiny_checkpoint).unet())


@pytest.mark.parametrize("form", ["file", "prefixed file", "part", "checkpoint"])
def test_the_vae_is_replaced(form: str, write, tiny_checkpoint: Path, tmp_path: Path):
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    path = other / "vae" / "diffusion_pytorch_model.safetensors"
    state = {key: value + 1 for key, value in load_file(path).items()}
    path.unlink()
    save_file(state, path)
    save_file(original.ldm_vae(state, "" if form == "file" else "first_stage_model."), tmp_path / "vae.safetensors")
    given = {"part": other / "vae", "checkpoint": other}.get(form, tmp_path / "vae.safetensors")
    for source in (tiny_checkpoint, write()):
        with open_source(str(source), options=SourceOptions(vae=given, components=tiny_checkpoint)) as checkpoint:
            again = checkpoint.vae()
            assert again.state_dict().keys() == state.keys()
            assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
            assert_equal_settings(again, Checkpoint.open(tiny_checkpoint).vae())
            assert ("vae/vae.safetensors" in checkpoint.fingerprint()) is given.is_file()


@pytest.mark.parametrize(
    ("more", "notes", "option", "expected"),
    [
        ({}, {}, None, "epsilon"),
        ({"v_pred": torch.zeros(0)}, {}, None, "v_prediction"),
        ({}, {"modelspec.prediction_type": "v"}, None, "v_prediction"),
        ({}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, None, "v_prediction"),
        ({}, {"modelspec.predict_key": "v"}, None, "v_prediction"),
        ({}, {"modelspec.predict_key": "epsilon"}, None, "epsilon"),
        ({}, {"modelspec.prediction_type": "v-prediction"}, None, "v_prediction"),
        ({}, {"prediction_type": "v_prediction"}, None, "v_prediction"),
        ({}, {"ss_v_parameterization": "True"}, None, "v_prediction"),
        ({}, {"ss_v_parameterization": "None", "modelspec.prediction_type": ""}, None, "epsilon"),
        ({}, {"ss_base_model_version": "sd_v2_768_v"}, None, "v_prediction"),
        ({"v_pred": torch.zeros(0)}, {}, "epsilon", "epsilon"),
    ],
)
def test_what_the_network_predicts(more, notes, option, expected, tiny_state, tiny_checkpoint, tmp_path: Path):
    save_file(tiny_state | more, tmp_path / "one.safetensors", metadata=notes or None)
    options = SourceOptions(components=tiny_checkpoint, prediction=option)
    with open_source(str(tmp_path / "one.safetensors"), options=options) as checkpoint:
        assert checkpoint.config("scheduler")["prediction_type"] == expected


SETTINGS = {
    "Stable Diffusion": ('model:\n  params:\n    parameterization: "v"\n', "v_prediction", False),
    "of epsilon": ("model: {params: {parameterization: eps}}", "epsilon", False),
    "Stable Diffusion XL": (
        "model: {params: {denoiser_config: {params: {scaling_config: "
        "{target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling}}}}}",
        "v_prediction",
        False,
    ),
    "zero terminal SNR": ("model: {params: {parameterization: v, zsnr: true}}", "v_prediction", True),
}
WORKS = {"kind": "checkpoint", "outcome": "works"}


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
@pytest.mark.parametrize(
    ("text", "prediction", "zero"),
    [
        pytest.param(
            *row, marks=pytest.mark.compatibility(what="single file", recognised=f"x.yaml beside it, {name}", **WORKS)
        )
        for name, row in SETTINGS.items()
    ],
)
def test_settings_beside_a_file(suffix, text, prediction, zero, write, tiny_checkpoint: Path):
    file = write()
    file.with_suffix(suffix).write_text(text)
    with open_source(str(file), options=SourceOptions(components=tiny_checkpoint)) as checkpoint:
        config = checkpoint.config("scheduler")
    assert config["prediction_type"] == prediction
    assert bool(config.get("rescale_betas_zero_snr")) is zero


@pytest.mark.parametrize(
    "text", ["model: {params: {parameterization: w}}", "a: [", "{target: x.denoiser_scaling.EDMScaling}"]
)
def test_settings_that_are_refused(text, write, tiny_checkpoint: Path):
    file = write()
    file.with_suffix(".yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"\.yaml"):
        open_source(str(file), options=SourceOptions(components=tiny_checkpoint)).__enter__()


@pytest.mark.parametrize(
    ("more", "notes", "zero"),
    [
        ({"ztsnr": torch.zeros(0)}, {}, True),
        ({}, {"ss_zero_terminal_snr": "True"}, True),
        ({}, {"ss_zero_terminal_snr": "False"}, False),
        ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {"modelspec.predict_key": "v"}, True),
    ],
)
def test_zero_terminal_snr_is_stated(more, notes, zero, tiny_state, tiny_checkpoint, tmp_path: Path, caplog):
    save_file(tiny_state | more, tmp_path / "one.safetensors", metadata=notes or None)
    options = SourceOptions(components=tiny_checkpoint)
    with open_source(str(tmp_path / "one.safetensors"), options=options) as checkpoint:
        config = checkpoint.config("scheduler")
    assert (config.get("rescale_betas_zero_snr", False), config.get("timestep_spacing") == "trailing") == (zero, zero)
    assert "v_pred" not in caplog.text
    assert "ztsnr" not in caplog.text


def test_contradictions_are_said(write, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture):
    file = write(v_pred=torch.zeros(0))
    file.with_suffix(".yaml").write_text("parameterization: eps")
    for option, said in ((None, True), ("epsilon", False)):
        caplog.clear()
        with open_source(str(file), options=SourceOptions(components=tiny_checkpoint, prediction=option)) as checkpoint:
            assert checkpoint.config("scheduler")["prediction_type"] == ("epsilon" if option else "v_prediction")
        assert ("contradicts" in caplog.text and ".yaml" in caplog.text and "v_pred" in caplog.text) is said


@pytest.mark.compatibility(
    kind="checkpoint",
    what="SDXL single file of v prediction",
    recognised="modelspec.predict_key, modelspec.prediction_type, ss_v_parameterization, key v_pred, x.yaml beside it",
    outcome="works",
)
def test_sdxl_of_v_prediction(tmp_path: Path):
    case = next(case for case in CASES if case.id == "sdxl")
    save_file(
        single_state(case, {"unet": case.parts()["unet"]}),
        tmp_path / "xl.safetensors",
        metadata={"modelspec.predict_key": "v"},
    )
    found = recognise(Weights.open(tmp_path / "xl.safetensors"))
    write_file(found, tmp_path / "folder")
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert (found.architecture.name, scheduler["prediction_type"]) == ("Stable Diffusion XL", "v_prediction")


@pytest.mark.compatibility(
    kind="checkpoint",
    what="CosXL, Playground 2.5",
    recognised="the keys edm_vpred.sigma_max, edm_mean",
    outcome="refused",
)
@pytest.mark.parametrize("key", ["edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std"])
def test_models_of_continuous_levels_are_refused(key, write, tiny_checkpoint: Path):
    with pytest.raises(CheckpointError, match="continuous noise levels"):
        open_source(str(write(**{key: torch.ones(1)})), options=SourceOptions(components=tiny_checkpoint)).__enter__()


def test_a_folder_is_told_what_its_network_predicts(tiny_checkpoint: Path):
    with open_source(str(tiny_checkpoint), options=SourceOptions(prediction="v")) as checkpoint:
        assert checkpoint.config("scheduler")["prediction_type"] == "v_prediction"
        assert checkpoint.config("scheduler")["beta_end"] == 0.012


def test_sd2_of_unknown_prediction_is_asked_for_it(tmp_path: Path):
    case = CASES[1]
    save_file(single_state(case, {"unet": case.parts()["unet"]}), tmp_path / "two.safetensors")
    weights = Weights.open(tmp_path / "two.safetensors")
    with pytest.raises(
        CheckpointError, match=r"2\.x base or Stable Diffusion 2\.x for 768 px.*--prediction epsilon or"
    ):
        recognise(weights)
    assert recognise(weights, prediction="epsilon").architecture.name == "Stable Diffusion 2.x base"


def test_unused_keys_are_counted_and_named(write, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture):
    file = write(**{"model_ema.decay": torch.ones(1), "model_ema.num_updates": torch.ones(1), "betas": torch.ones(9)})
    with open_source(str(file), options=SourceOptions(components=tiny_checkpoint)):
        pass
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("latentrt")]
    counted = line.partition("keys are not used: ")[2].split(", ")
    assert sorted(counted) == ["betas (1)", "cond_stage_model (1)", "model_ema (2)"]


ONE_WEIGHT = "model.diffusion_model.middle_block.0.in_layers.2.weight"
REFUSED = (
    ("a missing weight", {"without": (ONE_WEIGHT,)}, r"unet in .* lacks 1 of \d+ weights .*is missing"),
    ("another shape", {ONE_WEIGHT: torch.ones(3, 3)}, r"unet in .* 1 of another shape; .* is \[3, 3\] and not"),
    ("a quantised weight", {ONE_WEIGHT: torch.ones(64, 64, 3, 3, dtype=torch.int8)}, "int8; expected floating point"),
    (
        "a weight too many",
        {ONE_WEIGHT.replace("in_layers", "cond_proj"): torch.ones(3)},
        r"has 1 weights that .*cond_proj",
    ),
    ("a LoRA", {"lora_unet_down.alpha": torch.ones(1)}, "is a LoRA"),
    ("scaled fp8", {"scaled_fp8": torch.ones(1)}, "quantised to scaled fp8"),
    ("no denoiser", {"without": ("model.",)}, r"no denoiser that is known; it holds first_stage_model \(\d+\), cond_"),
    ("half a network", {"without": ("model.diffusion_model.middle_block",)}, "the unet in .* is incomplete"),
)


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_files_that_are_refused(change, message, write, tiny_checkpoint: Path, tmp_path: Path):
    source = open_source(str(write(**change)), options=SourceOptions(components=tiny_checkpoint), beside=tmp_path / "x")
    with pytest.raises(CheckpointError, match=message):
        source.__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_parts_of_unlike_models_are_refused(tiny_state, tiny_checkpoint: Path, tmp_path: Path):
    parts = {"unet": sd1()["unet"]}  # takes 64 features; the tiny text encoder gives 32
    save_file(single_state(CASES[0], parts), tmp_path / "wide.safetensors")
    with pytest.raises(CheckpointError, match="text encoders give 32 features; expected 64"):
        open_source(str(tmp_path / "wide.safetensors"), options=SourceOptions(components=tiny_checkpoint)).__enter__()


def test_the_command_line_says_what_a_single_file_lacks(write, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(write()), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "lacks tokenizer" in said and "--components" in said
    assert "no single file has a tokenizer in it" in said
