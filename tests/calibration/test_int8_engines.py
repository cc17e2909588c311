"""The int8 graph as a TensorRT for RTX engine: really built, without a GPU, and not dequantised on the way."""

import pytest

from latentrt.backends.tensorrt.records import built_engines
from latentrt.calibration.package import Calibrated
from latentrt.export.cli.build import sizes, span
from latentrt.export.engines.build import build_engines
from latentrt.export.engines.ranges import Ranges
from latentrt.export.engines.variants import variant

pytestmark = pytest.mark.skipif(
    not variant("tensorrt-rtx").installed(), reason="TensorRT for RTX has wheels for x86-64 Linux and Windows"
)


@pytest.mark.families
def test_the_engine_holds_int8_weights_and_rounds_every_activation(calibrated: Calibrated, tmp_path):
    bundle = calibrated.bundle
    ranges = Ranges.of(bundle.family, size=sizes("64x64"), batch=span("1"))
    build_engines(bundle, backend="tensorrt-rtx", folder=tmp_path, ranges=ranges, gpus=("sm89",), components=("step",))
    (engine,) = built_engines(tmp_path, "tensorrt-rtx")
    step = bundle.manifest["calibration"]["components"]["step"]
    assert engine.record.precision == "int8"
    # One int8 value for each weight, and one for each activation that is rounded.
    assert engine.record.types["int8"] == len(step["quantised"]) + len(step["tensors"])
    # Weights that were expanded to float would need four times as much.
    assert engine.record.weights_bytes <= 0.35 * 4 * bundle.component("step").parameters
