"""Controls: pictures that lead what the model draws, each through a ControlNet of the bundle (docs/controlnet.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray, Shape
from latentrt.engine import Engine, Link
from latentrt.errors import RequestError
from latentrt.images.framing import Canvas, covering
from latentrt.images.photo import Pixels, Source, read_photo
from latentrt.manifest.contract import CONTROLNET, IMAGE_LATENT
from latentrt.values import Flag, Kind, Number, Text, settle

if TYPE_CHECKING:
    from latentrt.images.photo import Encode, Photo


_CONTROL: Mapping[str, Kind] = {
    "image": Source("picture"),
    "scale": Number(-1000, 1000),
    "start": Number(0, 1),
    "end": Number(0, 1),
    "guess": Flag(),
}


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A picture and the ControlNet that reads it.

    Args:
        name: of the ControlNet, as the bundle has it.
        image: what it was trained to read, such as edges or depth; a path, a Pillow image or a uint8 array. It stands
            for the finished picture: it is resized to cover that and cropped evenly.
        scale: how much it counts; 0 is not at all.
        start, end: fractions of the run. It takes part in the calls that lie wholly between them.
        guess: leaves the branch of the negative prompt alone, and counts less in the finer layers, so that the picture
            can lead without a prompt.

    Raises:
        RequestError: a value out of range.
    """

    name: str
    image: Photo
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    _: KW_ONLY
    guess: bool = False

    def __post_init__(self) -> None:
        settle(self, {"name": Text()})
        settle(self, _CONTROL, of=f" of control {self.name}")
        if not self.start < self.end:
            raise RequestError(
                f"control {self.name} acts from {self.start} to {self.end}",
                expected="fractions of the run, 0 to 1, the smaller first",
            )

    def seen(self, canvas: Canvas) -> Pixels:
        """The picture as the model is to see it, uint8 [H, W, 3] of the canvas's size. A run that works on a part of
        a picture sees that part."""
        image = read_photo(self.image).on_white()
        if canvas.frame is None:
            return covering(image, canvas.size)
        height, width = canvas.frame.whole.shape[:2]
        return replace(canvas.frame, whole=covering(image, (width, height))).view()

    def weights(self, calls: int, residuals: int, *, negative: Sequence[bool]) -> FloatArray:
        """Scale of each residual by call and branch, [calls, K, R].

        Source: `StableDiffusionControlNetPipeline.__call__` and `ControlNetModel.forward` (diffusers).

        Args:
            residuals: how many the ControlNet has.
            negative: of each branch, whether it is that of the negative prompts.
        """
        on = [index / calls >= self.start and (index + 1) / calls <= self.end for index in range(calls)]
        layers = np.logspace(-1, 0, residuals) if self.guess else np.ones(residuals)
        branches = [not (self.guess and passed_over) for passed_over in negative]
        found: FloatArray = (self.scale * np.einsum("c,k,r->ckr", on, branches, layers)).astype(np.float32)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One ControlNet's part in every call of a batch.

    Args:
        component: its graph.
        image: uint8 [B, H, W, 3]; black where an image has no such control.
        scale: float32 [calls, K, B, R]; 0 there, and where the control does not act.
        image_latent: float32 [B, C, h, w], the picture for ControlNets that read latents.
    """

    component: str
    image: Pixels
    scale: FloatArray
    image_latent: FloatArray | None = None

    def encoded(self, encode: Encode, shape: Shape) -> Pass:
        """With the latents of its pictures, each picture encoded once: the mean of what the encoder's posterior holds.

        Source: `StableDiffusion3ControlNetPipeline.__call__` (diffusers), which draws from it with no seed."""
        keep, noise = np.ones((*self.image.shape[1:3], 1), np.float32), np.zeros(shape, np.float32)
        known: dict[bytes, FloatArray] = {}
        latents = np.zeros((len(self.image), *shape), np.float32)
        for index, image in enumerate(self.image):
            if self.scale[:, :, index].any():
                key = image.tobytes()
                if key not in known:
                    known[key] = encode(image, keep, noise)
                latents[index] = known[key]
        return replace(self, image_latent=latents)

    @property
    def acting(self) -> npt.NDArray[np.bool_]:
        """The calls in which it takes part, [calls]."""
        found: npt.NDArray[np.bool_] = np.asarray(self.scale.any(axis=(1, 2, 3)), np.bool_)
        return found

    def during(self, calls: slice, branches: npt.NDArray[np.bool_]) -> Pass:
        """In some calls of the run, with those of its branches [K] that they have."""
        return replace(self, scale=np.ascontiguousarray(self.scale[calls][:, branches]))


@dataclass(frozen=True, slots=True, eq=False)
class ControlImage:
    """A control of one image of a batch, and its picture, uint8 [H, W, 3]."""

    control: Control
    image: Pixels


def check_controls(controls: Sequence[Control], known: Sequence[str], *, guesses: bool) -> None:
    """Raises RequestError for a control that the bundle has no ControlNet for, or one that is to guess where `guesses`
    says that the denoiser has no finer and deeper layers."""
    for control in controls:
        if control.guess and not guesses:
            raise RequestError(f"control {control.name} with guess", expected="a U-Net; this denoiser is a transformer")
    check_names([control.name for control in controls], known)


def check_names(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises RequestError for a name that none of the bundle's ControlNets has."""
    for name in names:
        if name not in known:
            raise RequestError(
                f"control '{name}'",
                expected=f"one of {', '.join(known)}" if known else "a bundle with ControlNets; this one has none",
                hint=None if known else "add some: latentrt control BUNDLE NAME=FOLDER -o BUNDLE2",
            )


def control_passes(
    images: Sequence[Sequence[ControlImage]],
    calls: Sequence[int],
    *,
    negative: Sequence[bool],
    residuals: int,
) -> list[Pass]:
    """The passes of a batch: a ControlNet runs once in a call for all images, however they order their controls, and
    again where an image shows it more than one picture.

    Args:
        images: controls of each image.
        negative: of each branch, whether it is that of the negative prompts.
        residuals: R, how many the denoiser takes.
    """
    rounds: dict[tuple[str, int], dict[int, ControlImage]] = {}
    for index, controls in enumerate(images):
        for position, seen in enumerate(controls):
            before = sum(other.control.name == seen.control.name for other in controls[:position])
            rounds.setdefault((CONTROLNET + seen.control.name, before), {})[index] = seen
    passes = []
    for (component, _), members in rounds.items():
        shape = next(iter(members.values())).image.shape
        image = np.zeros((len(images), *shape), np.uint8)
        scale = np.zeros((max(calls), len(negative), len(images), residuals), np.float32)
        for index, seen in members.items():
            image[index] = seen.image
            scale[: calls[index], :, index] = seen.control.weights(calls[index], residuals, negative=negative)
        passes.append(Pass(component, image, scale))
    return passes


def control_links(passes: Sequence[Pass], engines: Mapping[str, Engine]) -> list[Link]:
    """What ControlNets do before each call of a sweep whose feed has residuals of zeros; each adds to them."""
    links = []
    for each in passes:
        engine = engines[each.component]
        constant = bool((each.scale == each.scale[0]).all())
        own: dict[str, FloatArray | Pixels] = {"image": each.image}
        if each.image_latent is not None:
            own[IMAGE_LATENT] = each.image_latent
        if constant:
            own["scale"] = each.scale[0]
        links.append(
            Link(
                engine=engine,
                feed={name: value for name, value in own.items() if name in engine.inputs},
                rows={} if constant else {"scale": each.scale},
                gives=given_residuals(engine),
            )
        )
    return links


def given_residuals(engine: Engine) -> dict[str, str]:
    """What each output of a ControlNet becomes for those after it."""
    return {output: output.removeprefix("next_") for output in engine.outputs}
