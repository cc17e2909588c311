"""Other values than the files' for the weights of an ONNX Runtime session: fed to each run, or as constants.

Float32 matrices on the CPU are fed. The session does not pack them, which costs a fiftieth of a step; in return it
serves any values, and to change them again takes no new session. Where other weights change as well, all are
constants: a session lays kernels of convolutions out anew when it is made, which is worth a tenth of a step, it
converts float16 to float32, and it fuses int8 into its quantised operators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort

from latentrt.arrays import Array
from latentrt.backends.onnxruntime.session import WEIGHTS_FOLDER
from latentrt.graph import GraphFile, Override
from latentrt.weights.dtypes import BFLOAT16, FLOAT8, Weight
from latentrt.weights.onnx_initializers import Initializer, read_name, with_constants, with_inputs

_UNKNOWN_TO_NUMPY = {BFLOAT16: 16, FLOAT8: 17}  # as ONNX numbers them
_ALIGNMENT = 16  # float32 values


@dataclass(frozen=True, slots=True, eq=False)
class NewWeights:
    """What a session reads in the place of weights in its files; it does not hold this memory.

    Args:
        arrays: the values that go into each run, by initializer.
        fed: the same memory as ONNX Runtime takes it, by input.
        constants: values that the session was made with.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    fed: Mapping[str, Any] = field(default_factory=dict)
    constants: Sequence[Any] = ()

    def serves(self, overrides: Sequence[Override]) -> bool:
        """Whether these weights, and no others, are fed."""
        return bool(self.arrays) and self.arrays.keys() == _initializers(overrides).keys()

    def feed(self, overrides: Sequence[Override]) -> None:
        """Writes the values into what is fed."""
        if self.arrays:
            for override in overrides:
                override.fill({name: self.arrays[name] for name in override.initializers})


NO_WEIGHTS = NewWeights()


def overridden(graph: GraphFile, device: str, settings: Any) -> tuple[bytes, NewWeights]:
    """The model to load in place of `graph`, and its weights: those that are fed have no values yet. `settings` get
    what it needs."""
    settings.add_session_config_entry(WEIGHTS_FOLDER, str(graph.path.parent))
    initializers = _initializers(graph.overrides)
    if device == "cpu" and all(_is_matrix(initializer) for initializer in initializers.values()):
        arrays = _arrays(initializers)
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        fed = {read_name(name, initializers[name]): value for name, value in values.items()}
        return with_inputs(graph.path.read_bytes(), initializers), NewWeights(arrays, fed)
    model, external = bytearray(graph.path.read_bytes()), {}
    for name, weight in graph.new_weights():
        place = initializers[name]
        if place.data is None or place.widened is not None:
            external[read_name(name, place)] = _ort_value(weight)
        else:  # `settings` take external ones only
            model[place.offset : place.offset + len(place.data)] = weight.values.tobytes()
    settings.add_external_initializers(list(external), list(external.values()))
    return with_constants(bytes(model), initializers), NewWeights(constants=tuple(external.values()))


def _initializers(overrides: Sequence[Override]) -> dict[str, Initializer]:
    return {name: place for override in overrides for name, place in override.initializers.items()}


def _is_matrix(initializer: Initializer) -> bool:
    """Whether it is one of float32, or a convolution's without a kernel."""
    return initializer.read_dtype == "float32" and math.prod(initializer.shape[2:]) == 1


def _arrays(initializers: Mapping[str, Initializer]) -> dict[str, Array]:
    """An array for each, of one allocation: the system gives that in large pages, which many small ones do not get."""
    sizes = {name: math.prod(place.shape) for name, place in initializers.items()}
    padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes.values()]
    parts = np.split(np.empty(sum(padded), np.float32), np.cumsum(padded)[:-1])
    return {
        name: part[: sizes[name]].reshape(place.shape)
        for (name, place), part in zip(initializers.items(), parts, strict=True)
    }


def _ort_value(weight: Weight) -> Any:
    if weight.dtype in _UNKNOWN_TO_NUMPY:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(weight.values, _UNKNOWN_TO_NUMPY[weight.dtype])
    return ort.OrtValue.ortvalue_from_numpy(weight.values)
