"""The named axes of a bundle's graphs: how long they are for a request, and the shapes that follow (docs/bundle.md)."""

from collections.abc import Iterable, Mapping
from math import prod

from latentrt.arrays import Shape
from latentrt.errors import BundleError
from latentrt.family import Family


def axis_lengths(
    family: Family, *, size: tuple[int, int], batch: int, branches: int, context: int, embeddings: int = 1
) -> dict[str, int]:
    """The length of each named axis of the graphs' inputs (docs/bundle.md).

    Args:
        size: (width, height) in pixels.
        context: tokens of a prompt, as `Family.context_length` counts them.
        embeddings: rows of textual inversion.
    """
    (width, height), factor = size, family.vae_factor
    chunks = family.chunks_of(context) or 1
    h, w = height // factor, width // factor
    halves = {f"{axis}{n}": -(-size // n) for axis, size in (("h", h), ("w", w)) for n in (2, 4, 8)}
    return {
        "B": batch,
        "K": branches,
        "L": context,
        "h": h,
        "w": w,
        **halves,
        "H": height,
        "W": width,
        "N": batch * branches * chunks,
        "E": embeddings,
    }


def tensor_shape(dims: Iterable[str | int], lengths: Mapping[str, int]) -> Shape:
    """The shape of a tensor with these axes, of `axis_lengths`; a BundleError for an axis of another name."""
    return tuple(_length(axis, lengths) for axis in dims)


def _length(axis: str | int, lengths: Mapping[str, int]) -> int:
    """A number, a name, or a multiple of a name such as `8*h`."""
    if isinstance(axis, int):
        return axis
    parts = axis.split("*")
    for part in parts:
        if not part.isdecimal() and part not in lengths:
            raise BundleError(f"the manifest names an axis '{axis}'", expected=f"one of {', '.join(lengths)}")
    return prod(int(part) if part.isdecimal() else lengths[part] for part in parts)
