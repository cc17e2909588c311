"""From what a first pass made to the requests of a second one, larger."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from latentrt.arrays import FloatArray
from latentrt.errors import RequestError
from latentrt.family import Family
from latentrt.images.photo import Pixels
from latentrt.request import Request


def second_pass(requests: Sequence[Request], images: Pixels, latents: FloatArray, family: Family) -> Iterator[Request]:
    """A request for each image of a first pass.

    Args:
        requests: of the first pass, each with `upscale`, with defaults and seeds filled in.
        images: uint8 [B, H, W, 3], what it made.
        latents: float32 [B, C, h, w], what that was decoded from.
    """
    made = zip(images, latents, strict=True)
    for request in requests:
        upscale = request.upscale
        if upscale is None:
            raise RequestError(
                "a batch with and without upscaling", expected="all requests with it", hint="run them apart"
            )
        texts = zip(request.prompts, request.negatives, strict=True)
        for index, (prompt, negative) in enumerate(pair for pair in texts for _ in range(request.images)):
            image, latent = next(made)
            size = upscale.size((image.shape[1], image.shape[0]), family)
            yield replace(
                request,
                prompt=prompt,
                negative=negative,
                images=1,
                seed=request.seed + index if request.seed is not None else None,
                size=size,
                start=upscale.start(image, latent, size),
                upscale=None,
            )
