"""What a run gives: each step as it is made, and in the end images, seeds and timings."""

from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray, Value, slot, to_host
from latentrt.errors import RequestError
from latentrt.lora import Lora
from latentrt.output.metadata import image_parameters
from latentrt.output.picture_file import check_picture, write_picture
from latentrt.output.png import expand_pattern
from latentrt.request import Request
from latentrt.values import FilePath, Flag, check

Images: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, repr=False)
class Timings:
    """Milliseconds of one run: encoding of texts and photos, each engine call, decoding, and everything together.

    An engine on a device returns from a call when it is launched. Its entries in `steps_ms` are what the launches took
    and equal shares of the wait for all of them, so that their sum and mean are right and single ones mean little.
    """

    text_ms: float
    steps_ms: tuple[float, ...]
    decode_ms: float
    total_ms: float

    def __repr__(self) -> str:
        calls = len(self.steps_ms)
        mean = sum(self.steps_ms) / max(1, calls)
        return (
            f"<Timings: {self.total_ms / 1e3:.2f} s; text {self.text_ms:.0f} ms, {calls} calls of {mean:.0f} ms, "
            f"decoding {self.decode_ms:.0f} ms>"
        )

    def then(self, later: "Timings") -> "Timings":
        """Of two runs, one after the other."""
        return Timings(
            text_ms=self.text_ms + later.text_ms,
            steps_ms=self.steps_ms + later.steps_ms,
            decode_ms=self.decode_ms + later.decode_ms,
            total_ms=self.total_ms + later.total_ms,
        )


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What a run gives; it can be saved, and run again.

    Args:
        images: uint8 [B, H, W, 3].
        seeds: the seed of each image.
        timings: how long it took.
        requests: with their defaults and seeds filled in: run again, they give the same images.
        latents: float32 [B, C, h, w] where they were asked for; then there are no images, [0, H, W, 3].
        model: the bundle's name.
        lora: what was in the weights.
    """

    images: Images
    seeds: tuple[int, ...]
    timings: Timings
    requests: tuple[Request, ...]
    latents: FloatArray | None = None
    model: str = ""
    lora: tuple[Lora, ...] = ()

    def __repr__(self) -> str:
        what, (count, *_) = "images", self.images.shape
        if self.latents is not None:
            what, count = "latents", len(self.latents)
        height, width = self.images.shape[1:3]
        seeds = ", ".join(map(str, self.seeds[:4])) + (", ..." if len(self.seeds) > 4 else "")
        return f"<Result: {count} {what} of {width}x{height} px, seeds {seeds}; {self.timings.total_ms / 1e3:.2f} s>"

    def parameters(self) -> list[str]:
        """The text of each image that says how it was made, in the form that most programs of the field read."""
        height, width = self.images.shape[1:3]
        texts: list[str] = []
        for request in self.requests:
            seeds = self.seeds[len(texts) : len(texts) + len(request.prompts) * request.images]
            texts += image_parameters(request, seeds, model=self.model, size=(width, height), lora=self.lora)
        return texts

    def save(self, pattern: str | PathLike[str] = "{seed}.png", *, overwrite: bool = False) -> tuple[Path, ...]:
        """Writes the images, each whole or not at all, with the text that says how it was made.

        Args:
            pattern: a file that ends in .png (every pixel), .jpg, .jpeg or .webp (quality 95). `{seed}` and `{index}`
                are replaced; without them, several images are numbered.
            overwrite: replaces files that are there already. Otherwise nothing is written.

        Returns:
            The files, in the order of the images.

        Raises:
            RequestError: another suffix, a file that is there, two images under one name, or no images but latents.
            EnvironmentLacks: a file cannot be written.
        """
        if not len(self.images):
            raise RequestError("a result without images", expected="one of output='image'", hint="decode its latents")
        check({"pattern": FilePath(), "overwrite": Flag()}, pattern=pattern, overwrite=overwrite)
        name, count = fspath(pattern), len(self.images)
        paths = [expand_pattern(name, index=i, seed=seed, count=count) for i, seed in enumerate(self.seeds)]
        if len(set(paths)) < count:
            raise RequestError(f"{count} images under {len(set(paths))} names", expected="{index} in the pattern")
        for path in paths:
            check_picture(path, overwrite=overwrite)
        for path, image, text in zip(paths, self.images, self.parameters(), strict=True):
            write_picture(path, image, parameters=text, overwrite=overwrite)
        return tuple(paths)


@dataclass(frozen=True, slots=True, repr=False)
class Step:
    """One engine call that has just been made; valid until the loop goes on.

    Args:
        index: 0 for the first call.
        total: calls of the whole run (Heun and DPM2 make two a step).
        seconds: how long this call took; on an asynchronous device, its launch.
        state: [B, 4, C, h, w]; slot 0 is the latent.
        denoised: [B, C, h, w], the model's present idea of the final latent.
    """

    index: int
    total: int
    seconds: float
    state: Value
    denoised: Value
    _preview: FloatArray | None = field(repr=False)

    def __repr__(self) -> str:
        return f"<Step {self.index + 1} of {self.total}: {self.seconds:.3f} s>"

    def latent(self) -> FloatArray:
        """A copy of the latent, float32 [B, C, h, w]."""
        return np.array(to_host(slot(self.state, 0)))

    def preview(self) -> Images:
        """A small picture of each image's `denoised`, uint8 [B, h, w, 3], by a linear map from latents to colours:
        `preview()[0]` is that of the first image.

        Raises:
            RequestError: the bundle was exported without the map.
        """
        if self._preview is None:
            raise RequestError("this bundle has no preview map", hint="export it again")
        return small_pictures(to_host(self.denoised), self._preview)


def small_pictures(latents: FloatArray, preview_map: FloatArray) -> Images:
    """Latents [B, C, h, w] as pictures of their own size, uint8 [B, h, w, 3].

    Args:
        preview_map: [C + 1, 3] from channels and 1 to RGB in 0..1.
    """
    rgb = np.moveaxis(latents, 1, -1) @ preview_map[:-1] + preview_map[-1]
    levels: Images = (rgb.clip(0, 1) * 255).round().astype(np.uint8)
    return levels
