"""The family's row, read from a checkpoint's own configuration files."""

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint import Checkpoint
from latentrt.family import Defaults, Family, TextTower
from latentrt.schedule import NoiseSchedule

DEFAULT_SAMPLER = "dpmpp-2m"
DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 7.5
SMALLEST_PX = 64
LARGEST_PX = 4096


def read_family(checkpoint: Checkpoint) -> Family:
    """Fills the row.

    Raises:
        CheckpointError: a configuration that this version cannot export; says which field.
    """
    unet, vae = checkpoint.config("unet"), checkpoint.config("vae")
    _check_supported(checkpoint, unet)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    native_px = min(LARGEST_PX, unet["sample_size"] * factor)
    return Family(
        name=str(checkpoint.index["_class_name"]).removesuffix("Pipeline"),
        towers=(_tower(checkpoint),),
        latent_channels=vae["latent_channels"],
        vae_factor=factor,
        size_range_px=(SMALLEST_PX, min(LARGEST_PX, 8 * native_px)),
        noise=NoiseSchedule.from_config(scheduler_config(checkpoint)),
        defaults=Defaults(
            size=(native_px, native_px),
            steps=DEFAULT_STEPS,
            guidance=DEFAULT_GUIDANCE,
            sampler=DEFAULT_SAMPLER,
        ),
    )


def scheduler_config(checkpoint: Checkpoint) -> dict[str, object]:
    """The scheduler's configuration as `StableDiffusionPipeline` (diffusers) uses it: it overrules old files
    in which `steps_offset` is not 1."""
    return {**checkpoint.config("scheduler"), "steps_offset": 1}


def _tower(checkpoint: Checkpoint) -> TextTower:
    config = checkpoint.config("text_encoder")
    tokenizer = checkpoint.tokenizer()
    length, vocabulary = config["max_position_embeddings"], config["vocab_size"]
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens",
            expected=f"at most the {vocabulary} of the text encoder",
            hint="tokenizer and text encoder belong to different models",
        )
    return TextTower(
        component="text_encoder",
        tokenizer="tokenizer/tokenizer.json",
        length=length,
        width=config["hidden_size"],
        vocabulary=vocabulary,
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )


def _check_supported(checkpoint: Checkpoint, unet: dict[str, object]) -> None:
    """Refuses, before hours of work, what the step graph of this version does not carry."""
    unsupported = {
        "addition_embed_type": None,
        "class_embed_type": None,
        "time_cond_proj_dim": None,
        "encoder_hid_dim_type": None,
        "time_embedding_act_fn": None,
        "center_input_sample": False,
    }
    for field, neutral in unsupported.items():
        if unet.get(field, neutral) != neutral:
            raise CheckpointError(
                f"{checkpoint.root / 'unet'} has {field} = {unet[field]!r}",
                expected=f"{neutral!r}: a U-Net of Stable Diffusion 1.x or 2.x",
            )
    if unet.get("in_channels") != unet.get("out_channels"):
        raise CheckpointError(
            f"the U-Net takes {unet.get('in_channels')} channels and gives {unet.get('out_channels')}",
            expected="as many in as out: inpainting checkpoints with extra channels cannot be exported yet",
        )
