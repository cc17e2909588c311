"""What configuration files may say: every key of every class is looked at, and what is not carried is refused."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

from latentrt import CheckpointError
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.settings import CONTROLNETS, PARTS, PIPELINES, SCHEDULERS, Settings
from latentrt.export.checkpoint.settings.pipelines import OLD_SAMPLE_SIZES
from latentrt.export.graphs.modules.unet import UNet
from latentrt.export.quiet import quiet
from latentrt.export.synthetic.checkpoints import make_checkpoint

EVERY = {**PARTS, **CONTROLNETS, **SCHEDULERS, **PIPELINES}
Change = Callable[..., Checkpoint]


@pytest.fixture
def changed(tiny_checkpoint: Path, tmp_path: Path) -> Change:
    """Opens the tiny checkpoint with some settings of a part's configuration changed; ... leaves one out."""
    return lambda part, **settings: opened(tiny_checkpoint, tmp_path / "checkpoint", part, settings)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny-sdxl", tmp_path_factory.mktemp("sdxl") / "tiny")


def opened(source: Path, folder: Path, part: str, settings: dict[str, Any]) -> Checkpoint:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (file,) = folder.glob("model_index.json" if part == "index" else f"{part}/*config.json")
    config = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("name", EVERY)
def test_every_key_of_a_class_was_looked_at(name: str):
    """A version that adds a key fails here until somebody says whether it is carried."""
    settings: Settings = EVERY[name]
    known = {*settings.carried, *settings.idle}
    assert set(inspect.signature(settings.kind).parameters) - known == set()
    assert not set(settings.carried) & (settings.idle | settings.retired)


@pytest.mark.parametrize("name", {**PARTS, **CONTROLNETS})
def test_the_defaults_of_a_class_have_a_rule_that_they_keep(name: str):
    settings = EVERY[name]
    broken = [key for key, value in settings.defaults().items() if key in settings.carried
              and not settings.carried[key].holds(value)]  # fmt: skip
    assert broken == []


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("unet", {"resnet_flux": 3}, "resnet_flux to 3"),
        ("unet", {"dual_cross_attention": True}, "dual_cross_attention to True; expected false"),
        ("unet", {"class_embeddings_concat": True}, "class_embeddings_concat"),
        ("unet", {"attention_type": "gated"}, "attention_type to 'gated'; expected 'default'"),
        ("unet", {"center_input_sample": True}, "center_input_sample"),
        ("unet", {"encoder_hid_dim": 32}, "encoder_hid_dim"),
        ("unet", {"addition_embed_type": "image"}, "addition_embed_type"),
        ("unet", {"down_block_types": ["KDownBlock2D"]}, "down_block_types"),
        ("unet", {"in_channels": "4"}, "in_channels to '4'; expected a whole number"),
        ("unet", {"sample_size": 0}, "sample_size"),
        ("unet", {"time_cond_proj_dim": 33}, "time_cond_proj_dim to 33; expected an even number"),
        ("vae", {"scaling_factor": None}, "scaling_factor to None; expected a number above 0"),
        ("vae", {"upsample_fn": "bilinear"}, "upsample_fn"),
        ("text_encoder", {"hidden_act": "wave"}, "hidden_act to 'wave'"),
        ("text_encoder", {"use_attention_mask": True}, "use_attention_mask"),
        ("text_encoder", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("scheduler", {"thresholding": True}, "thresholding"),
        ("scheduler", {"a_new_kind_of_noise": 0.5}, "a_new_kind_of_noise to 0.5"),
        ("index", {"adapter": ["diffusers", "T2IAdapter"]}, "adapter"),
        ("index", {"_class_name": "StableDiffusionGLIGENPipeline"}, "StableDiffusionGLIGENPipeline"),
    ],
)
@pytest.mark.compatibility(
    kind="checkpoint", what="setting that this export does not know or carry", recognised="its key", outcome="refused"
)
def test_what_is_not_carried_is_refused_when_a_checkpoint_is_opened(changed: Change, part: str, settings, words: str):
    with pytest.raises(CheckpointError) as caught:
        changed(part, **settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("CLIPTextModel", {}),
        ("T5EncoderModel", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ],
)
def test_what_the_installed_transformers_writes_is_known(kind: str, settings: dict[str, Any]):
    config = PARTS[kind].kind(**settings)
    PARTS[kind].check(config.to_dict(), where="config.json")


PUBLISHED = {
    "text encoder of 2022": (
        "CLIPTextModel",
        {
            "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
            "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
            "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
            "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
            "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
        },
    ),
    "T5": (
        "T5EncoderModel",
        {
            "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64, "d_model": 4096,
            "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1,
            "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
            "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24,
            "num_heads": 64, "num_layers": 24, "output_past": True, "pad_token_id": 0,
            "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
            "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.41.2",
            "use_cache": True, "vocab_size": 32128,
        },
    ),
    "scheduler saved as one class and renamed": (
        "EulerDiscreteScheduler",
        {
            "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
            "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
            "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
            "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
        },
    ),
    "U-Net with fewer blocks": (
        "UNet2DConditionModel",
        {
            "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1], "attention_head_dim": [5, 10, 20],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_files_say_is_taken(name: str):
    kind, config = PUBLISHED[name]
    EVERY[kind].check(config, where=name)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_pipelines_that_mistrust_old_sizes_are_those_of_diffusers(pipeline: str):
    source = inspect.getsource(getattr(diffusers, pipeline).__init__)
    assert ("is_unet_version_less_0_9_0" in source) is (pipeline in OLD_SAMPLE_SIZES)


@pytest.mark.parametrize(
    ("version", "size"),
    [("0.2.2", 32), ("0.8.1", 16), ("0.8.1", 96), ("0.9.0.dev0", 32), ("0.42.1", 32), (..., 32), ("0.6.0", [16, 24])],
)
@pytest.mark.compatibility(
    kind="checkpoint",
    what="Stable Diffusion 1 folder of 2022 with sample_size 32",
    recognised="_diffusers_version before 0.9",
    outcome="works",
)
def test_the_native_size_is_that_of_diffusers(changed: Change, version, size):
    checkpoint = changed("unet", _diffusers_version=version, sample_size=size)
    with quiet():
        kept = StableDiffusionPipeline.from_pretrained(checkpoint.root, safety_checker=None).unet.config.sample_size
    height, width = (kept, kept) if isinstance(kept, int) else kept
    assert read_family(checkpoint).defaults.size == (8 * width, 8 * height)


@pytest.mark.parametrize("left_out", [None, ...])
def test_a_size_that_is_not_said_is_that_of_the_published_models(changed: Change, left_out, caplog):
    assert read_family(changed("unet", sample_size=left_out)).defaults.size == (512, 512)
    assert "sample_size" in caplog.text


@pytest.mark.compatibility(
    kind="checkpoint", what="configuration that leaves keys to their defaults", recognised="its class", outcome="works"
)
def test_keys_left_to_their_defaults_are_those_of_the_class(changed: Change):
    left_out = ("in_channels", "out_channels", "norm_eps", "layers_per_block", "act_fn")
    expected = read_family(changed("unet"))
    config = changed("unet", **dict.fromkeys(left_out, ...)).config("unet")
    defaults = {key: inspect.signature(UNet2DConditionModel).parameters[key].default for key in left_out}
    assert {key: config[key] for key in left_out} == defaults
    changed("vae", latent_channels=..., scaling_factor=...)
    assert read_family(changed("text_encoder", max_position_embeddings=...)) == expected
    with pytest.raises(CheckpointError, match="make 32 features a token; expected 1280"):
        read_family(changed("unet", cross_attention_dim=...))


@pytest.mark.compatibility(
    kind="checkpoint",
    what="text encoder whose configuration is a whole CLIP",
    recognised="text_config",
    outcome="works",
)
def test_the_configuration_of_a_whole_clip_has_that_of_its_text_encoder(changed: Change, tiny_checkpoint: Path):
    expected = Checkpoint.open(tiny_checkpoint).config("text_encoder")
    found = changed("text_encoder", text_config=expected, model_type="clip").config("text_encoder")
    assert found == expected


def test_an_end_of_text_that_no_tokenizer_writes_is_refused(sdxl: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="takes token 7 for the end of a text"):
        read_family(opened(sdxl, tmp_path / "checkpoint", "text_encoder_2", {"eos_token_id": 7}))


def test_a_tokenizer_of_another_length_is_refused(tiny_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 64}))
    with pytest.raises(CheckpointError, match=r"64 tokens.* 77 positions"):
        read_family(Checkpoint.open(folder))


@pytest.mark.compatibility(
    kind="checkpoint", what="SDXL U-Net that predicts a flow", recognised="its scheduler", outcome="works"
)
def test_a_unet_that_predicts_a_flow_is_sampled_as_one(tmp_path: Path):
    """`make test-families` compares its images."""
    family = read_family(Checkpoint.open(make_checkpoint("tiny-sdxl-flow", tmp_path / "checkpoint")))
    assert (family.defaults.sampler, family.noise.prediction_type, family.noise.shift) == (
        "flow-euler", "flow_prediction", 3.0,
    )  # fmt: skip


SMALL: dict[str, Any] = {
    "block_out_channels": (16, 24),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"mid_block_type": None},
            marks=pytest.mark.compatibility(
                kind="checkpoint", what="U-Net without a middle block", recognised="mid_block_type", outcome="works"
            ),
        ),
        {"mid_block_type": "UNetMidBlock2D"},
        {"flip_sin_to_cos": False, "freq_shift": 1},
        {"only_cross_attention": True},
        {"only_cross_attention": [True, False], "mid_block_only_cross_attention": True},
        {"transformer_layers_per_block": [[1], [2]], "reverse_transformer_layers_per_block": [[2, 1], 1]},
        {"layers_per_block": [2, 1], "attention_head_dim": [2, 3], "cross_attention_dim": [12, 12]},
        {"resnet_time_scale_shift": "scale_shift", "upcast_attention": True, "use_linear_projection": True},
        {"time_embedding_type": "fourier", "time_embedding_dim": 32},
        {"time_embedding_dim": 40, "conv_in_kernel": 5, "conv_out_kernel": 1, "act_fn": "mish"},
        {"mid_block_scale_factor": 1.4, "norm_eps": 1e-3, "resnet_out_scale_factor": 2.0, "resnet_skip_time_act": True},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_a_network_of_carried_settings_is_that_of_diffusers(settings: dict[str, Any]):
    torch.manual_seed(0)
    config = {**SMALL, **settings}
    PARTS["UNet2DConditionModel"].check(config, where="config.json")
    unet = UNet2DConditionModel(**config).eval()
    sample, timestep, context = torch.randn(2, 4, 9, 13), torch.tensor([500.0, 20.0]), torch.randn(2, 5, 12)
    with torch.no_grad():
        expected = unet(sample, timestep, context).sample
        found = UNet(unet)(sample, timestep, context)
        plain = UNet2DConditionModel(**SMALL).eval()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert config != SMALL and plain.config != unet.config


SDXL_MEAN, SDXL_STD = [-1.6, 1.1, 2.8, -0.6], [8.4, 0.9, 1.4, 5.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shift_factor": 0.1}, "shift_factor to 0.1"),
        ({"latents_mean": SDXL_MEAN}, "expected both, or neither"),
        ({"latents_mean": SDXL_MEAN[:3], "latents_std": SDXL_STD[:3]}, "each of 4 numbers"),
        ({"latents_mean": SDXL_MEAN, "latents_std": [1, 0, 1, 1]}, "latents_std"),
    ],
)
def test_statistics_that_diffusers_does_not_define_are_refused(sdxl: Path, tmp_path: Path, settings, words: str):
    with pytest.raises(CheckpointError) as caught:
        read_family(opened(sdxl, tmp_path / "checkpoint", "vae", settings))
    assert words in str(caught.value)


def test_statistics_are_refused_where_the_pipeline_leaves_them_out(changed: Change):
    with pytest.raises(CheckpointError, match=r"latents_mean .* StableDiffusionPipeline of diffusers decodes without"):
        read_family(changed("vae", latents_mean=SDXL_MEAN, latents_std=SDXL_STD))


def test_a_size_of_sdxl_that_is_not_said(sdxl: Path, tmp_path: Path):
    checkpoint = opened(sdxl, tmp_path / "checkpoint", "unet", {"sample_size": None})
    assert read_family(checkpoint).defaults.size == (1024, 1024)
    assert "else 128" in inspect.getsource(StableDiffusionXLPipeline.__init__).replace("\n", " ")
