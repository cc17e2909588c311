"""The family's row, read from a checkpoint's own configuration files."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.family_mmdit import T5, mmdit_family
from latentrt.export.checkpoint.folder import Checkpoint, tokenizer_of
from latentrt.export.checkpoint.latents import check_latents, vae_factor
from latentrt.export.checkpoint.settings.pipelines import OLD_SAMPLE_SIZES, OVERRULED_SCHEDULERS
from latentrt.family import TIME_IDS, Defaults, Family, TextEncoderSpec
from latentrt.samplers import step_table
from latentrt.samplers.noise_schedule import NoiseSchedule

SMALLEST_PX = 64
LARGEST_PX = 4096

_HIGHEST = 2  # as end of a text: transformers then takes the highest token, which is the end in OpenCLIP's files
_UNSAID = 10**6  # tokens

_NEW = "1.0"  # a file without a version is none of the first

log = logging.getLogger(__name__)

# What the network takes beside the latent, by number: sizes and crop, with a target size or with a score.
_TIME_IDS: Mapping[int, tuple[str, ...]] = {6: TIME_IDS[:6], 5: (*TIME_IDS[:4], "aesthetic_score")}


def read_family(checkpoint: Checkpoint) -> Family:
    """Fills the row.

    Raises:
        CheckpointError: a configuration that this version cannot export; says which field.
    """
    if checkpoint.network == "transformer":
        check_latents(checkpoint)
        clips = [_text_encoder(checkpoint, part, pooled=True) for part in checkpoint.text_encoders if part != T5]
        noise = NoiseSchedule.from_config(scheduler_config(checkpoint))
        return mmdit_family(checkpoint, clips, noise=noise, largest_px=LARGEST_PX)
    unet, vae = checkpoint.config("unet"), checkpoint.config("vae")
    _check_supported(checkpoint, unet, vae)
    factor = vae_factor(vae)
    sized = unet["addition_embed_type"] == "text_time"
    width, height = (min(LARGEST_PX, factor * length) for length in _sample_size(checkpoint, unet, sized=sized))
    noise = NoiseSchedule.from_config(scheduler_config(checkpoint))
    text_encoders = tuple(_text_encoder(checkpoint, part, pooled=sized) for part in checkpoint.text_encoders)
    family = Family(
        name=str(checkpoint.index["_class_name"]).removesuffix("Pipeline"),
        text_encoders=text_encoders,
        latent_channels=vae["latent_channels"],
        vae_factor=factor,
        size_range_px=(SMALLEST_PX, min(LARGEST_PX, 8 * max(width, height))),
        noise=noise,
        defaults=Defaults(size=(width, height), **_habits(noise, sized=sized, embeds=bool(unet["time_cond_proj_dim"]))),
        time_ids=_time_ids(checkpoint, unet, sum(text_encoder.pooled_width for text_encoder in text_encoders))
        if sized
        else (),
        # the default of the pipelines that know the setting
        empty_is_zero=sized and bool(checkpoint.index.get("force_zeros_for_empty_prompt", True)),
        guidance_embedding=bool(unet["time_cond_proj_dim"]),
        extra_channels=unet["in_channels"] - unet["out_channels"],
    )
    taken = unet["cross_attention_dim"]
    if {family.width} != (set(taken) if isinstance(taken, list | tuple) else {taken}):
        raise CheckpointError(
            f"the text encoders make {family.width} features a token",
            expected=f"{taken}, as the U-Net takes",
            hint="text encoders and U-Net belong to different models",
        )
    return family


def with_defaults(
    family: Family, *, steps: int | None = None, guidance: float | None = None, sampler: str | None = None
) -> Family:
    """The row with other defaults where they are given; a sampler has to fit the checkpoint."""
    changes: dict[str, Any] = {"steps": steps, "guidance": guidance, "sampler": sampler}
    defaults = replace(family.defaults, **{name: value for name, value in changes.items() if value is not None})
    step_table(family.noise, sampler=defaults.sampler, steps=defaults.steps)
    return replace(family, defaults=defaults)


def scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The scheduler's configuration as the pipeline (diffusers) uses it: those of Stable Diffusion 1 and 2 overrule old
    files."""
    overruled = OVERRULED_SCHEDULERS.get(str(checkpoint.index["_class_name"]), {})
    return {**checkpoint.config("scheduler"), **overruled}


def _sample_size(checkpoint: Checkpoint, unet: Mapping[str, Any], *, sized: bool) -> tuple[int, int]:
    """Width and height of the latent for which the checkpoint was made, as its pipeline (diffusers) reads them: a list
    is (height, width); the first U-Nets of Stable Diffusion 1 say 32 and mean 64. Where the file does not say,
    64, or 128 of one that is told the size of the image, which are those of the published models."""
    size = unet["sample_size"]
    if size is None:
        size = 128 if sized else 64
        log.warning("the U-Net's config.json names no sample_size: %d is taken for it", size)
    if not isinstance(size, int):
        height, width = size
        return width, height
    old = _is_old(str(unet.get("_diffusers_version", _NEW))) and checkpoint.index["_class_name"] in OLD_SAMPLE_SIZES
    size = 64 if old and size < 64 else size
    return size, size


def _is_old(version: str) -> bool:
    """Whether a version of diffusers is before 0.9, of which its pipelines ask too."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) < (0, 9)


def _habits(noise: NoiseSchedule, *, sized: bool, embeds: bool) -> dict[str, Any]:
    """Steps, guidance and the checkpoint's own sampler. One distilled to few steps says so by its scheduler, if
    at all: one of consistency models, or Euler's with trailing steps (zero terminal SNR asks for those too)."""
    consistent = noise.default_sampler in ("lcm", "tcd")
    trailing = noise.timestep_spacing == "trailing" and not noise.rescale_betas_zero_snr
    if consistent or (trailing and noise.default_sampler in ("euler", "euler-a")):
        # 8.5: the default of LatentConsistencyModelPipeline (diffusers), whose scale is an input of the network
        return {"sampler": noise.default_sampler, "steps": 4, "guidance": 8.5 if embeds else 1.0}
    return {"sampler": noise.default_sampler, "steps": 20, "guidance": 5.0 if sized else 7.5}


def _text_encoder(checkpoint: Checkpoint, part: str, *, pooled: bool) -> TextEncoderSpec:
    """A text encoder's row. Where one has a projection, all are read at their penultimate layer, and that one's
    pooled output is used."""
    config = checkpoint.config(part)
    tokenizer = checkpoint.tokenizer(tokenizer_of(part))
    length, vocabulary = config["max_position_embeddings"], config["vocab_size"]
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"the tokenizer of {part} has {len(tokenizer)} tokens",
            expected=f"at most the {vocabulary} of the text encoder",
            hint="tokenizer and text encoder belong to different models",
        )
    longest = tokenizer.model_max_length  # a very large number where the files do not say
    if longest < _UNSAID and longest != length:
        raise CheckpointError(
            f"the tokenizer of {part} pads to {longest} tokens, and the text encoder has {length} positions",
            expected="one number",
            hint="tokenizer and text encoder belong to different models",
        )
    end = config["eos_token_id"]
    if pooled and projects(checkpoint, part) and end not in (_HIGHEST, tokenizer.eos_token_id):
        raise CheckpointError(
            f"{part} takes token {end} for the end of a text",
            expected=f"{tokenizer.eos_token_id} as its tokenizer, or {_HIGHEST}, which stands for the highest",
            hint="the pooled text is read there: correct eos_token_id in its config.json",
        )
    return TextEncoderSpec(
        component=part,
        tokenizer=f"{tokenizer_of(part)}/tokenizer.json",
        length=length,
        width=config["hidden_size"],
        vocabulary=vocabulary,
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        pooled_width=config["projection_dim"] if pooled and projects(checkpoint, part) else 0,
        clip_skip=0 if normed(checkpoint) else 1,
        layers=config["num_hidden_layers"],
    )


def projects(checkpoint: Checkpoint, part: str) -> bool:
    """Whether a text encoder projects its pooled output."""
    return str(checkpoint.index[part][1]) == "CLIPTextModelWithProjection"


def normed(checkpoint: Checkpoint) -> bool:
    """Whether text encoders apply their final norm to the layer that is read: where none of them projects."""
    return not any(projects(checkpoint, part) for part in checkpoint.text_encoders)


def _time_ids(checkpoint: Checkpoint, unet: Mapping[str, Any], pooled_width: int) -> tuple[str, ...]:
    """Which numbers the network takes, from how wide the projection of their angles is."""
    joined, each = unet["projection_class_embeddings_input_dim"], unet["addition_time_embed_dim"]
    scored = bool(checkpoint.index.get("requires_aesthetics_score", False))
    count, rest = divmod(joined - pooled_width, each)
    if rest or count != (5 if scored else 6):
        raise CheckpointError(
            f"the U-Net joins {joined} features of pooled text, sizes and scores",
            expected=f"{pooled_width} of text and {5 if scored else 6} numbers of {each}",
            hint="requires_aesthetics_score in model_index.json says whether a score takes the target size's place",
        )
    return _TIME_IDS[count]


def _check_supported(checkpoint: Checkpoint, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Refuses parts that do not fit together, before hours of work."""
    extra = unet["in_channels"] - unet["out_channels"]
    if extra not in (0, 1 + unet["out_channels"]):
        raise CheckpointError(
            f"the U-Net takes {unet['in_channels']} channels and gives {unet['out_channels']}",
            expected="as many in as out, or an inpainting model's mask and latent of the masked image besides",
        )
    if unet["out_channels"] != vae["latent_channels"]:
        raise CheckpointError(
            f"the VAE has {vae['latent_channels']} latent channels",
            expected=f"{unet['out_channels']}, as the U-Net gives",
            hint="VAE and U-Net belong to different models",
        )
    if unet["addition_embed_type"] == "text_time" and None in (
        unet["addition_time_embed_dim"],
        unet["projection_class_embeddings_input_dim"],
    ):
        raise CheckpointError(
            f"{checkpoint.root / 'unet'} has addition_embed_type text_time and no width for it",
            expected="addition_time_embed_dim and projection_class_embeddings_input_dim",
        )
    check_latents(checkpoint, extra_channels=extra)
