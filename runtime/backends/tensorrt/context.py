"""An execution context for one set of sizes, and how its launches are repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING

from latentrt.arrays import Shape
from latentrt.backends.cuda.api import CudaGraph
from latentrt.backends.tensorrt.device import TensorRtDevice
from latentrt.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)


class Replay(Enum):
    """How a context's launches are repeated."""

    DIRECT = "each launch is enqueued anew"
    CUDA_GRAPH = "captured with the CUDA runtime after a first launch"
    OWN_GRAPH = "captured by TensorRT itself"


class BoundContext:
    """An execution context with sizes of its own; its addresses are set before the first launch."""

    def __init__(
        self, device: TensorRtDevice, context: tensorrt.IExecutionContext, dims: Mapping[str, Shape], *, replay: Replay
    ) -> None:
        self.context = context
        self._device = device
        self._replay = replay
        self._graph: CudaGraph | None = None
        self._warm = False
        self._epoch = -1
        self._asked = False
        if context.active_optimization_profile < 0 and not context.set_optimization_profile_async(
            0, device.stream.handle
        ):
            raise device.failure("choosing the engine's profile")
        for name, shape in dims.items():
            if not context.set_input_shape(name, shape):
                raise device.failure(f"setting input '{name}' to {shape}")
        # 0 is what TensorRT answers as well where it cannot say; then what suffices for the largest shapes is taken.
        asked = int(context.update_device_memory_size_for_shapes())
        self.activation_bytes = asked if asked > 0 else int(context.engine.device_memory_size_v2)
        device.activation(self.activation_bytes)

    def output_shape(self, name: str) -> Shape:
        """Of an output, for the sizes of the inputs."""
        shape = tuple(int(length) for length in self.context.get_tensor_shape(name))
        if any(length < 0 for length in shape):
            raise BackendError(f"the shape of output '{name}' depends on values", expected="one that sizes decide")
        return shape

    def place(self, addresses: Mapping[str, int]) -> None:
        """Sets where inputs and outputs lie. A captured launch keeps the addresses that it has."""
        for name, address in addresses.items():
            if not self.context.set_tensor_address(name, address):
                raise self._device.failure(f"placing '{name}'")

    def launch(self) -> None:
        """Puts one execution on the stream: the first time directly, which also readies TensorRT for a capture."""
        address = self._device.activation(self.activation_bytes)
        if self._epoch != self._device.epoch:
            if self._graph is not None:
                self._device.synchronize()
            self.free()
            self.context.set_device_memory(address, self.activation_bytes)
            self._epoch = self._device.epoch
        if self._warm and not self._asked and self._replay is not Replay.DIRECT:
            self._check_capturable()
        if self._warm and self._graph is None and self._replay is Replay.CUDA_GRAPH:
            self._capture()
        if self._graph is not None:
            self._device.stream.launch(self._graph)
        else:
            self._execute()
            self._warm = True

    def free(self) -> None:
        """Forgets what was captured. The device must be done with it."""
        if self._graph is not None:
            self._graph.free()
        self._graph, self._warm = None, False

    def _check_capturable(self) -> None:
        """TensorRT for RTX tells whether a launch can be captured; the other variant has no such question."""
        self._asked = True
        ask = getattr(self.context, "is_stream_capturable", None)
        if ask is not None and not ask(self._device.stream.handle):
            log.warning("launches of this engine are not repeated as a CUDA graph: TensorRT cannot capture them")
            self._replay = Replay.DIRECT

    def _capture(self) -> None:
        self._device.synchronize()  # a launch still under way may forbid a capture
        try:
            self._graph = self._device.stream.capture(self._execute)
        except BackendError as error:
            if self._device.cuda.failed is not None:
                raise
            log.warning("launches are not captured as a CUDA graph: %s", str(error))  # a record would hold the frames
            self._replay = Replay.DIRECT

    def _execute(self) -> None:
        if not self.context.execute_async_v3(self._device.stream.handle):
            raise self._device.failure("launching an engine")
