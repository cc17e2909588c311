"""A family of models is one row of data, filled from a checkpoint's own configuration files.

No code compares a family's name: whatever a model needs that another does not is a field here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from latentrt.samplers.noise_schedule import NoiseSchedule

TEXT_ENCODERS = "towers"  # the manifest's name of the field `text_encoders`
TIME_IDS = (
    "original_height",
    "original_width",
    "crop_top",
    "crop_left",
    "target_height",
    "target_width",
    "aesthetic_score",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderSpec:
    """One text encoder: its component, its tokenizer and the sizes of its context.

    Args:
        component: graph of the bundle, such as `text_encoder`.
        tokenizer: path of its tokenizer.json within the bundle.
        length: tokens of one chunk, markers included (77 for CLIP).
        width: features of a token's embedding and of `hidden`.
        vocabulary: rows of the embedding; ids from here on are textual-inversion embeddings.
        bos_id, eos_id, pad_id: ids of the markers and of the padding; `bos_id` None: no opening one.
        band: contexts of one band are joined along their features, bands follow each other along the tokens.
        in_context: whether `hidden` goes into the context.
        pooled_width: P of `pooled`, which is joined to the other text encoders' in order; 0 leaves it out.
        clip_skip: layers that are left out at the top of it before a request leaves out more.
        layers: how many it has; 0 is not known, or none can be left out.
        optional: the bundle may lack the component; zeros then stand for its context.
    """

    component: str
    tokenizer: str
    length: int
    width: int
    vocabulary: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    band: int = 0
    in_context: bool = True
    pooled_width: int = 0
    clip_skip: int = 0
    layers: int = 0
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request means by None. `size` is (width, height) in pixels."""

    size: tuple[int, int]
    steps: int
    guidance: float
    sampler: str
    schedule: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The facts about a model that the runtime acts on.

    Args:
        name: for people; nothing depends on it.
        text_encoders: text encoders, in the order in which their contexts are joined.
        latent_channels: C of the latent.
        vae_factor: pixels of an image a latent pixel stands for, along each axis.
        size_range_px: smallest and largest allowed width and height.
        noise: the training schedule and the prediction type.
        defaults: what a request means by None.
        context_width: D of the context, to which every band is padded with zeros; 0 is the width of band 0.
        time_ids: names of the numbers in the step's `time_ids`, among `TIME_IDS`.
        aesthetic_scores: what `aesthetic_score` means in the negative branches and in the prompt's.
        empty_is_zero: an empty negative prompt is zeros, context and pooled, and not the encoding of no words.
        guidance_embedding: guidance is an input of the network, which then runs without a negative branch.
        extra_channels: E of the step's `extra`, channels that join the latent at the network's input.
        size_multiple_px: width and height are multiples of it; 0 is `vae_factor`.
        blocks: blocks that `block_gate` can switch off; 0 where the step has no such input.
    """

    name: str
    text_encoders: tuple[TextEncoderSpec, ...]
    latent_channels: int
    vae_factor: int
    size_range_px: tuple[int, int]
    noise: NoiseSchedule
    defaults: Defaults
    context_width: int = 0
    time_ids: tuple[str, ...] = ()
    aesthetic_scores: tuple[float, float] = (2.5, 6.0)
    empty_is_zero: bool = False
    guidance_embedding: bool = False
    extra_channels: int = 0
    size_multiple_px: int = 0
    blocks: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.time_ids).difference(TIME_IDS):
            raise ValueError(f"time ids {sorted(unknown)}")

    @property
    def multiple_px(self) -> int:
        """What width and height are multiples of."""
        return self.size_multiple_px if self.size_multiple_px else self.vae_factor

    @property
    def width(self) -> int:
        """D of the context."""
        return self.context_width if self.context_width else sum(each.width for each in self.bands()[0])

    @property
    def pooled_width(self) -> int:
        """P of the step's `pooled`; 0 where it has none."""
        return sum(text_encoder.pooled_width for text_encoder in self.text_encoders)

    def bands(self) -> list[list[TextEncoderSpec]]:
        """The text encoders of the context, band by band."""
        members = [each for each in self.text_encoders if each.in_context]
        return [[each for each in members if each.band == band] for band in sorted({each.band for each in members})]

    def context_length(self, chunks: int) -> int:
        """L for prompts of so many chunks. Only the first band grows with them: the others take one."""
        first, *others = (band[0].length for band in self.bands())
        return chunks * first + sum(others)

    def chunks_of(self, context: int) -> int | None:
        """Inverse of `context_length`; None for a number of tokens that no chunks make."""
        first, once = self.bands()[0][0].length, self.context_length(1)
        chunks, rest = divmod(context - once, first)
        return None if rest or chunks < 0 else chunks + 1

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        text_encoders = row.pop("text_encoders")
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in row.items()},
            TEXT_ENCODERS: [asdict(text_encoder) for text_encoder in text_encoders],
            "noise": self.noise.to_dict(),
            "defaults": {**asdict(self.defaults), "size": list(self.defaults.size)},
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; what an older bundle does not say is neutral.

        Raises:
            KeyError, TypeError, ValueError: a row that is not of this form; the bundle reader maps them.
        """
        given: dict[str, Any] = {
            field.name: tuple(value) if isinstance(value := row[field.name], list) else value
            for field in fields(cls)
            if field.name in row
        }
        low, high = row["size_range_px"]
        width, height = row["defaults"]["size"]
        given |= {
            "text_encoders": tuple(TextEncoderSpec(**text_encoder) for text_encoder in row[TEXT_ENCODERS]),
            "size_range_px": (low, high),
            "noise": NoiseSchedule.from_dict(row["noise"]),
            "defaults": Defaults(**{**row["defaults"], "size": (width, height)}),
        }
        return cls(**given)
