"""What a ControlNet shares with its model, read from the graphs of the bundle. Needs no torch."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from latentrt.arrays import FloatArray
from latentrt.errors import BundleError

_PATCHES = ("pos_embed.proj.weight", "pos_embed.proj.bias", "pos_embed.pos_embed")


def latent_shift(encoder: Path) -> float:
    """What the encoder takes away from its latents at the end, in the scale of the network: shift times scale.

    Args:
        encoder: its graph, in any precision: this algebra is float32 in all.

    Raises:
        BundleError: an encoder that ends otherwise, such as that of a tiny autoencoder: what the shift of the model's
            own was, it does not say.
    """
    value, scale = _before(ir.load(encoder).graph.outputs[0], "Mul", neutral=1.0)
    _, shift = _before(value, "Sub", neutral=0.0)
    if (scale, shift) == (1.0, 0.0):
        raise BundleError(
            f"{encoder} neither shifts nor scales its latents, and the ControlNet wants them without the shift",
            expected="the VAE that the model was trained with",
            hint="export the checkpoint with its own VAE",
        )
    return scale * shift


def patch_embedding(step: Path) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What a transformer embeds its patches with: weight [D, C, p, p], bias [D], positions [1, n * n, D]."""
    found = {}
    for name, value in ir.load(step).graph.initializers.items():
        for wanted in _PATCHES:
            if name.endswith(wanted) and value.const_value is not None:
                found[wanted] = value.const_value.numpy().astype(np.float32)
    if missing := [name for name in _PATCHES if name not in found]:
        raise BundleError(f"{step} has no {missing[0]}", hint="export the bundle again")
    weight, bias, positions = (found[name] for name in _PATCHES)
    return weight, bias, positions


def _before(value: ir.Value, kind: str, *, neutral: float) -> tuple[ir.Value, float]:
    """The value from which a node of this kind with a constant made another, and the constant; where no such node did,
    itself and `neutral`."""
    node = value.producer()
    if node is None or node.op_type != kind:
        return value, neutral
    before, constant = node.inputs
    if before is None or constant is None or constant.const_value is None or constant.const_value.size != 1:
        return value, neutral
    return before, float(constant.const_value.numpy().item())
