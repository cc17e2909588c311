"""What is used of the modules `tensorrt` and `tensorrt_rtx`: types for a parameter, from stubs of the real bindings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # by folders of `typings/`; neither module can be imported without its libraries
    import tensorrt
    import tensorrt_rtx


class TensorRt(Protocol):
    """The module of either variant."""

    @property
    def __version__(self) -> str: ...
    @property
    def Builder(self) -> type[tensorrt.Builder]: ...  # noqa: N802 - all names are TensorRT's
    @property
    def BuilderFlag(self) -> type[tensorrt.BuilderFlag]: ...  # noqa: N802
    @property
    def ExecutionContextAllocationStrategy(self) -> type[tensorrt.ExecutionContextAllocationStrategy]: ...  # noqa: N802
    @property
    def LayerType(self) -> type[tensorrt.LayerType]: ...  # noqa: N802
    @property
    def OnnxParser(self) -> type[tensorrt.OnnxParser]: ...  # noqa: N802
    @property
    def Runtime(self) -> type[tensorrt.Runtime]: ...  # noqa: N802
    @property
    def TensorIOMode(self) -> type[tensorrt.TensorIOMode]: ...  # noqa: N802
    @property
    def TensorLocation(self) -> type[tensorrt.TensorLocation]: ...  # noqa: N802


class TensorRtRtx(Protocol):
    """What the module `tensorrt_rtx` has beside that."""

    @property
    def ComputeCapability(self) -> type[tensorrt_rtx.ComputeCapability]: ...  # noqa: N802
    @property
    def CudaGraphStrategy(self) -> type[tensorrt_rtx.CudaGraphStrategy]: ...  # noqa: N802
    @property
    def DynamicShapesKernelSpecializationStrategy(  # noqa: N802
        self,
    ) -> type[tensorrt_rtx.DynamicShapesKernelSpecializationStrategy]: ...


if TYPE_CHECKING:
    _regular: TensorRt = tensorrt
    _rtx: TensorRtRtx = tensorrt_rtx
