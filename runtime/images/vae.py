"""Pictures and latents: the decoder and the encoder of a bundle, whole or in tiles."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray, Shape, Value, to_host
from latentrt.bundle import Bundle
from latentrt.engine import EngineSet
from latentrt.errors import BackendError
from latentrt.images.tiles import Tile, check_tile, in_tiles, tile_of

Pixels: TypeAlias = npt.NDArray[np.uint8]


class Vae:
    """Both halves. The encoder is opened when it is first needed: text to image never does.

    Raises:
        RequestError: a tile of a size that the bundle does not make.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: EngineSet,
        *,
        tile: Tile = "auto",
    ) -> None:
        self._factor = bundle.family.vae_factor
        self._engines = engines
        self._tile = check_tile(tile, bundle.family)

    def decode(self, latent: Value) -> Pixels:
        """Latents [B, C, h, w], on the host or on a device, to uint8 [B, H, W, 3].

        Raises:
            BackendError: a latent that is not finite, or the engine failed.
        """
        tile = self._tile_of(latent.shape)
        if tile is not None:
            latent = to_host(latent)
        on_host = isinstance(latent, np.ndarray)
        if on_host:
            _check_finite(to_host(latent))
        images = self._decoded(latent) if tile is None else self._decoded_in_tiles(to_host(latent), tile)
        # What is not finite spreads over the whole picture: only one that is all of a colour is worth the download.
        if not on_host and (images == images[:, :1, :1]).all(axis=(1, 2, 3)).any():
            _check_finite(to_host(latent))
        return images

    def encode(self, image: Pixels, keep: FloatArray, noise: FloatArray) -> FloatArray:
        """One picture to its latent, float32 [C, h, w].

        Args:
            image: uint8 [H, W, 3].
            keep: float32 [H, W, 1], 0 where mid grey is to stand for the pixel.
            noise: float32 [C, h, w], draws from the posterior; zeros give its mean.
        """
        plane, tile = noise.shape[1:], self._tile_of(noise.shape)
        if tile is None:
            return self._encoded(image, keep, noise)

        def part(rows: slice, columns: slice) -> FloatArray:
            pixels = tuple(slice(s.start * self._factor, s.stop * self._factor) for s in (rows, columns))
            return np.moveaxis(self._encoded(image[pixels], keep[pixels], noise[:, rows, columns]), 0, -1)

        latent = in_tiles((plane[0], plane[1]), tile, part, scale=1, what="encoding a latent of")
        return np.moveaxis(latent, -1, 0)

    def tile_pixels(self, size: tuple[int, int]) -> int | None:
        """Of the parts that pictures of this size (width, height) are made in; None: they are not."""
        tile = self._tile_of((size[1] // self._factor, size[0] // self._factor))
        return None if tile is None else tile[0] * tile[1] * self._factor**2

    def prepare(self, shape: Shape) -> None:
        """Makes the decoder ready for latents [B, C, h, w] of this shape."""
        tile = self._tile_of(shape)
        self._engines["decoder"].prepare({"latent": shape if tile is None else (1, shape[1], *tile)})

    def prepare_encoder(self, shape: Shape) -> None:
        """Makes the encoder ready for a picture whose latent [C, h, w] has this shape."""
        (engine,), tile = self._engines.need("encoder"), self._tile_of(shape)
        h, w = shape[1:] if tile is None else tile
        height, width = h * self._factor, w * self._factor
        dims = {"image": (1, height, width, 3), "keep": (1, height, width, 1), "noise": (1, shape[0], h, w)}
        engine.prepare({name: dims[name] for name in engine.inputs})

    def _tile_of(self, shape: Shape) -> tuple[int, int] | None:
        return tile_of(self._tile, (shape[-2], shape[-1]), self._factor)

    def _decoded(self, latent: Value) -> Pixels:
        return np.asarray(to_host(self._engines["decoder"].run({"latent": latent})["image"]))

    def _decoded_in_tiles(self, latents: FloatArray, tile: tuple[int, int]) -> Pixels:
        """One image and one tile at a time."""

        def whole(latent: FloatArray) -> Pixels:
            def part(rows: slice, columns: slice) -> FloatArray:
                cut = np.ascontiguousarray(latent[None, :, rows, columns])
                return np.asarray(self._decoded(cut)[0], np.float32)

            plane = latent.shape[1], latent.shape[2]
            levels = in_tiles(plane, tile, part, scale=self._factor, what="decoding a latent of")
            return levels.round().astype(np.uint8)

        return np.stack([whole(latent) for latent in latents])

    def _encoded(self, image: Pixels, keep: FloatArray, noise: FloatArray) -> FloatArray:
        (engine,) = self._engines.need("encoder")
        feed = {"image": image[None], "keep": keep[None], "noise": noise[None]}
        # an encoder without a posterior takes no noise
        out = engine.run({name: np.ascontiguousarray(feed[name]) for name in engine.inputs})
        latent: FloatArray = np.asarray(to_host(out["latent"]))[0]
        return latent


def _check_finite(latent: FloatArray) -> None:
    if not np.isfinite(latent).all():
        raise BackendError(
            "the final latent holds NaN or infinity",
            expected="finite values",
            hint="check the checkpoint's weights, or use a higher precision",
        )
