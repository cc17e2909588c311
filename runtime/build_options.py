"""A request beyond the sizes that engines were built for, said in the words of `latentrt build`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from latentrt.backends.tensorrt.built_sizes import SizeNotBuiltError, build_command
from latentrt.bundle import Bundle
from latentrt.denoise.batch import Plan
from latentrt.errors import RequestError
from latentrt.text.conditioning import distinct

_OPTIONS = ("size", "batch", "branches", "context")
_AXES = {"batch": "B", "branches": "K", "context": "L"}


@contextmanager
def naming_build_options(bundle: Bundle, plan: Plan | None = None) -> Iterator[None]:
    """Raises a `SizeNotBuiltError` again as a RequestError that names sizes as a user writes them.

    Args:
        bundle: that is being run.
        plan: of the requests, for what a graph's own inputs do not tell; None where there are none.
    """
    try:
        yield
    except SizeNotBuiltError as error:
        asked = _options(_asked(bundle, error, plan))
        built = dict.fromkeys(_options(record.options) for record in error.records)
        if not asked or not all(built):
            raise
        raise RequestError(
            f"no engine of '{error.graph.component}' is built for {asked}",
            expected=" or ".join(built),
            hint=f"build one: {build_command(error.graph, error.records[0])} {asked}",
        ) from error


def _options(values: Mapping[str, object]) -> str:
    return " ".join(f"--{name} {values[name]}" for name in _OPTIONS if name in values)


def _asked(bundle: Bundle, error: SizeNotBuiltError, plan: Plan | None) -> dict[str, object]:
    """What the call amounts to. A text encoder is told only how many chunks it is to encode."""
    family, axes = bundle.family, bundle.component(error.graph.component).dims
    lengths = {axis: n for name, shape in error.dims.items() for axis, n in zip(axes[name], shape, strict=True)}
    found: dict[str, object] = {}
    if plan is not None:
        width, height = plan.size
        found = {"size": f"{width}x{height}", "batch": len(plan.image_plans), "branches": plan.branches}
        if "N" in lengths:
            texts = len(distinct(plan.texts))
            found["context"] = family.text_encoders[0].length * (lengths["N"] // texts)
    if "h" in lengths:
        found["size"] = f"{lengths['w'] * family.vae_factor}x{lengths['h'] * family.vae_factor}"
    return found | {option: lengths[axis] for option, axis in _AXES.items() if axis in lengths}
