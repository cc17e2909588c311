"""A family of models is one row of data, filled from a checkpoint's own configuration files.

No code compares a family's name: whatever a model needs that another does not is a field here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from latentrt.schedule import NoiseSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTower:
    """One text encoder: its component, its tokenizer and the sizes of its context.

    Args:
        component: graph of the bundle, such as `text_encoder`.
        tokenizer: path of its tokenizer.json within the bundle.
        length: tokens of one chunk, markers included (77 for CLIP).
        width: features of a token's embedding and of `hidden`.
        vocabulary: rows of the embedding; ids from here on are textual-inversion embeddings.
        bos_id, eos_id, pad_id: ids of the markers and of the padding.
    """

    component: str
    tokenizer: str
    length: int
    width: int
    vocabulary: int
    bos_id: int
    eos_id: int
    pad_id: int


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
        towers: text encoders, in the order in which their contexts are joined.
        latent_channels: C of the latent.
        vae_factor: pixels of an image a latent pixel stands for, along each axis.
        size_range_px: smallest and largest allowed width and height.
        noise: the training schedule and the prediction type.
        defaults: what a request means by None.
    """

    name: str
    towers: tuple[TextTower, ...]
    latent_channels: int
    vae_factor: int
    size_range_px: tuple[int, int]
    noise: NoiseSchedule
    defaults: Defaults

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "name": self.name,
            "towers": [asdict(tower) for tower in self.towers],
            "latent_channels": self.latent_channels,
            "vae_factor": self.vae_factor,
            "size_range_px": list(self.size_range_px),
            "noise": self.noise.to_dict(),
            "defaults": {**asdict(self.defaults), "size": list(self.defaults.size)},
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: a row that is not of this form; the bundle reader maps them.
        """
        low, high = row["size_range_px"]
        width, height = row["defaults"]["size"]
        return cls(
            name=row["name"],
            towers=tuple(TextTower(**tower) for tower in row["towers"]),
            latent_channels=row["latent_channels"],
            vae_factor=row["vae_factor"],
            size_range_px=(low, high),
            noise=NoiseSchedule.from_dict(row["noise"]),
            defaults=Defaults(**{**row["defaults"], "size": (width, height)}),
        )
