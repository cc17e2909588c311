"""Pooled attention in diffusers' own U-Net: what a graph with it must equal."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import Transformer2DModel
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d


@contextmanager
def pooled_attention(unet: nn.Module) -> Iterator[None]:
    """Meanwhile what the projections of keys and values read, in the largest self-attentions, is averaged over 2x2
    neighbours; at the edge of a side that is not even, over those that are there."""
    with ExitStack() as stack:
        for transformer in _largest(unet):
            sides: list[int] = []

            def keep(_: nn.Module, args: tuple[Any, ...], sides: list[int] = sides) -> None:
                sides[:] = args[0].shape[2:]

            def pool(_: nn.Module, args: tuple[Tensor, ...], sides: list[int] = sides) -> tuple[Tensor]:
                picture = args[0].mT.unflatten(2, sides)  # type: ignore[no-untyped-call]
                pooled = avg_pool2d(picture, 2, ceil_mode=True, count_include_pad=False)
                return (pooled.flatten(2).mT,)

            stack.callback(transformer.register_forward_pre_hook(keep).remove)
            for block in transformer.transformer_blocks:
                for projection in (block.attn1.to_k, block.attn1.to_v):
                    stack.callback(projection.register_forward_pre_hook(pool).remove)
        yield


def _largest(unet: Any) -> list[Any]:
    """The transformers of the first level that has any with self-attentions: the level of a down block is its place,
    that of an up block its place from the end, and the middle lies where the last of both do."""
    levels = [[block] for block in unet.down_blocks]
    if unet.mid_block is not None:
        levels[-1].append(unet.mid_block)
    for level, block in zip(reversed(levels), unet.up_blocks, strict=True):
        level.append(block)
    found = [[layer for block in level for layer in block.modules() if _attends_itself(layer)] for level in levels]
    return next(layers for layers in found if layers)


def _attends_itself(layer: nn.Module) -> bool:
    return isinstance(layer, Transformer2DModel) and not layer.transformer_blocks[0].only_cross_attention
