"""What a plan needs of its bundle and of memory, told before any work."""

from latentrt.backends.host_memory import Call
from latentrt.bundle import CONTROLNET, SHALLOW, Bundle
from latentrt.denoise.batch import Plan
from latentrt.errors import RequestError
from latentrt.images.vae import Vae
from latentrt.manifest.contract import IMAGE_LATENT


def memory_calls(plan: Plan, bundle: Bundle, vae: Vae) -> list[Call]:
    """What decides the memory of a run: of its first pass, and of a second one that is larger."""
    family, upscales = bundle.family, [each.upscale for each in plan.requests if each.upscale is not None]
    sizes = {plan.size, *(upscale.size(plan.size, family) for upscale in upscales)}
    encodes = any(each.initial.canvas.image is not None for each in plan.image_plans) or plan.extra
    encodes |= any(IMAGE_LATENT in bundle.component(CONTROLNET + name).dims for name in plan.controls)
    encodes |= any(upscale.space == "pixel" for upscale in upscales)
    return [
        Call(
            size=size,
            images=len(plan.image_plans),
            branches=plan.branches,
            tile_pixels=vae.tile_pixels(size),
            encodes=encodes,
            controls=plan.controls,
            cached=plan.cache is not None,
        )
        for size in sorted(sizes)
    ]


def check_cache(plan: Plan, bundle: Bundle) -> None:
    """Raises RequestError for a step cache that the bundle has no graph for, or that would change nothing."""
    if plan.cache is None:
        return
    check_shallow_graph(bundle)
    if plan.deep.all():
        raise RequestError(
            f"a step cache that leaves no shallow call among {plan.calls}",
            expected="more calls, a longer interval or fewer deep ones",
            hint="leave it out",
        )


def check_shallow_graph(bundle: Bundle) -> None:
    """Raises RequestError for a bundle that has no graph of shallow calls."""
    if SHALLOW["step"] not in bundle.components:
        raise RequestError(
            f"step caching with bundle '{bundle.name}'",
            expected="one with a graph of shallow calls",
            hint="add it: latentrt convert BUNDLE -o OTHER --step-cache",
        )
