"""Checkpoints of Stable Diffusion 3 and 3.5 with random weights, tiny and in their published sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from latentrt.export.synthetic.parts import make_vae, write_parts


@dataclass(frozen=True, slots=True)
class Clip:
    """One CLIP text encoder; its projection is as wide as its layers."""

    width: int
    layers: int
    heads: int
    activation: str


@dataclass(frozen=True, slots=True)
class T5:
    """The T5 encoder; `width` is the context's."""

    layers: int
    heads: int
    head_width: int
    feed_forward: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Sd3Architecture:
    """Sizes of one checkpoint. Widths in channels, `sample_size` in latent pixels, `positions` in patches.

    `t5` None: without that text encoder. `dual` are the blocks with a second attention, over the image alone.
    `gain` multiplies the matrices of the transformer: at torch's own scale a tiny one hardly hears its conditions.
    """

    clips: tuple[Clip, Clip]
    t5: T5 | None
    context_width: int
    clip_vocabulary: int
    layers: int
    heads: int
    head_width: int
    positions: int
    sample_size: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    qk_norm: str | None = None
    dual: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    gain: float = 1.0


def _tiny(*, qk_norm: str | None = None, dual: tuple[int, ...] = ()) -> Sd3Architecture:
    return Sd3Architecture(
        clips=(Clip(width=16, layers=2, heads=2, activation="quick_gelu"),
               Clip(width=24, layers=2, heads=2, activation="gelu")),
        t5=T5(layers=2, heads=4, head_width=8, feed_forward=64, vocabulary=200),
        context_width=48,
        clip_vocabulary=600,
        layers=3,
        heads=4,
        head_width=16,
        positions=24,
        sample_size=16,
        vae_channels=(16, 16, 32, 32),
        vae_layers=1,
        qk_norm=qk_norm,
        dual=dual,
        gain=2.0,
    )  # fmt: skip


def _published(
    *, layers: int, heads: int, positions: int, qk_norm: str | None = None, dual: tuple[int, ...] = ()
) -> Sd3Architecture:
    """Without T5 (4.8 B parameters), and in float16 as the files are that people have."""
    return Sd3Architecture(
        clips=(Clip(width=768, layers=12, heads=12, activation="quick_gelu"),
               Clip(width=1280, layers=32, heads=20, activation="gelu")),
        t5=None,
        context_width=4096,
        clip_vocabulary=49408,
        layers=layers,
        heads=heads,
        head_width=64,
        positions=positions,
        sample_size=128,
        vae_channels=(128, 256, 512, 512),
        vae_layers=2,
        qk_norm=qk_norm,
        dual=dual,
        dtype=torch.float16,
    )  # fmt: skip


SD3_ARCHITECTURES = {
    "tiny-sd3": _tiny(),
    "tiny-sd35": _tiny(qk_norm="rms_norm", dual=(0,)),
    # The published configurations: 2.0 B, 2.2 B and 8.1 B parameters of the transformer.
    "sd3-medium": _published(layers=24, heads=24, positions=192),
    "sd35-medium": _published(layers=24, heads=24, positions=384, qk_norm="rms_norm", dual=tuple(range(13))),
    "sd35-large": _published(layers=38, heads=38, positions=192, qk_norm="rms_norm"),
}


def make_sd3_checkpoint(sizes: Sd3Architecture, folder: Path, clip_tokenizer: CLIPTokenizer) -> Path:
    """Writes a diffusers folder with random weights from torch's generator and returns it."""
    t5 = sizes.t5
    parts: dict[str, Callable[[], object]] = {
        "transformer": lambda: _transformer(sizes),
        "vae": lambda: _vae(sizes),
        "text_encoder": lambda: _clip(sizes.clips[0], sizes.clip_vocabulary, clip_tokenizer),
        "text_encoder_2": lambda: _clip(sizes.clips[1], sizes.clip_vocabulary, clip_tokenizer),
        "tokenizer": lambda: clip_tokenizer,
        "tokenizer_2": lambda: clip_tokenizer,
        "scheduler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    if t5 is not None:
        parts |= {
            "text_encoder_3": lambda: _t5(t5, sizes.context_width),
            "tokenizer_3": lambda: t5_tokenizer(t5.vocabulary),
        }
    settings = dict.fromkeys({"text_encoder_3", "tokenizer_3"} - parts.keys())
    return write_parts(StableDiffusion3Pipeline, folder, parts=parts, settings=settings, dtype=sizes.dtype)


def _transformer(sizes: Sd3Architecture) -> SD3Transformer2DModel:
    width = sizes.heads * sizes.head_width
    transformer = SD3Transformer2DModel(
        sample_size=sizes.sample_size,
        patch_size=2,
        in_channels=16,
        num_layers=sizes.layers,
        attention_head_dim=sizes.head_width,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.context_width,
        caption_projection_dim=width,
        pooled_projection_dim=sum(clip.width for clip in sizes.clips),
        out_channels=16,
        pos_embed_max_size=sizes.positions,
        dual_attention_layers=sizes.dual,
        qk_norm=sizes.qk_norm,
    )
    return _amplified(transformer, sizes.gain)


def _amplified(module: nn.Module, gain: float) -> nn.Module:
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.mul_(gain)
    return module


def _vae(sizes: Sd3Architecture) -> AutoencoderKL:
    return make_vae(
        sizes.vae_channels,
        layers=sizes.vae_layers,
        latent_channels=16,
        sample_size=sizes.sample_size,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip(sizes: Clip, vocabulary: int, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=sizes.width,
            intermediate_size=4 * sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            projection_dim=sizes.width,
            hidden_act=sizes.activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _t5(sizes: T5, width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=sizes.vocabulary,
            d_model=width,
            d_kv=sizes.head_width,
            d_ff=sizes.feed_forward,
            num_layers=sizes.layers,
            num_heads=sizes.heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def t5_tokenizer(vocabulary: int) -> T5TokenizerFast:
    """A T5-format tokenizer of Latin letters and a few words: what is longer wins, what is unknown is <unk>."""
    letters = [chr(code) for code in range(0x21, 0x7F) if chr(code) not in "<>"]
    words = ["▁a", "▁the", "▁red", "▁on", "ing", "er", "circle"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(word, -4.0) for word in words] + [(letter, -5.0) for letter in letters]
    return T5TokenizerFast(vocab=pieces, extra_ids=vocabulary - len(pieces))
