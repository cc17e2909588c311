"""Constants found in ONNX files without the onnx package, compared with it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrt.errors import BundleError
from latentrt.weights.onnx_initializers import read_initializers, with_inputs


@pytest.mark.parametrize("component", ["step", "text_encoder"])
@pytest.mark.parametrize("bundle", ["shapes_bundle", "shapes_fp16", "shapes_bf16"])
def test_every_initializer_is_that_of_onnx(bundle: str, component: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(bundle) / f"{component}.onnx"
    found = read_initializers(path)
    expected = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].read().float32(), array.astype(np.float32))


def test_initializers_become_inputs_of_their_own_type(shapes_bundle: Path):
    path = shapes_bundle / "text_encoder.onnx"
    chosen = {name: place for name, place in read_initializers(path).items() if place.dtype == "float32"}
    before, after = (
        onnx.load(path, load_external_data=False),
        onnx.load_from_string(with_inputs(path.read_bytes(), chosen)),
    )
    added = list(after.graph.input)[len(before.graph.input) :]
    assert {info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim) for info in added} == {
        name: place.shape for name, place in chosen.items()
    }
    assert {info.type.tensor_type.elem_type for info in added} == {onnx.TensorProto.FLOAT}
    del after.graph.input[len(before.graph.input) :]
    assert after == before


@given(data=st.data())
def test_damaged_bytes_raise_nothing_but_a_bundle_error(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "a.onnx"
    tensor = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "weight")
    whole = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    start = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=8)))
    try:
        read_initializers(path)
    except BundleError as error:
        assert "a.onnx" in str(error)
