"""Files of tensors, read without torch and compared with torch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from latentrt.errors import RequestError
from latentrt.weights.dtypes import Weight
from latentrt.weights.safetensors_file import read_tensor_file

TENSORS = {
    "single": torch.linspace(-3, 3, 24).reshape(2, 3, 4),
    "half": torch.linspace(-3, 3, 6).to(torch.float16),
    "brain": torch.linspace(-3, 3, 10).to(torch.bfloat16).reshape(5, 2),
    "double": torch.tensor(0.1, dtype=torch.float64),
    "none": torch.zeros(0, 4),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"key": "värde"})
    return tmp_path / "a.safetensors"


def test_every_float_type_is_read_as_torch_reads_it(path: Path):
    file = read_tensor_file(path, what="tensors")
    assert file.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(file.tensors[name].float32(), tensor.float().numpy())
    assert file.metadata == {"key": "värde"}


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bfloat16_is_rounded_as_torch_rounds_it(values: list[float]):
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(Weight.of(array, "bfloat16").float32(), expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-1], "no complete safetensors file"),
        (lambda data: data[:5], "no complete safetensors file"),
        (lambda data: b"PK\x03\x04" + data, "no complete safetensors file"),
        (lambda data: b"", "no complete safetensors file"),
    ],
    ids=["truncated", "header cut", "another format", "empty"],
)
def test_a_damaged_file_is_refused(change, says: str, path: Path):
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RequestError, match=says):
        read_tensor_file(path, what="a LoRA")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RequestError, match=r"nowhere\.safetensors cannot be read"):
        read_tensor_file(tmp_path / "nowhere.safetensors", what="a LoRA")


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(RequestError, match="convert it to safetensors"):
        read_tensor_file(tmp_path / "a.pt", what="a LoRA")


def headed(path: Path, header: str, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    return path


def test_metadata_may_be_null(tmp_path: Path):
    header = '{"__metadata__": null, "a": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}}'
    file = read_tensor_file(headed(tmp_path / "a.safetensors", header), what="a LoRA")
    assert file.metadata == {} and file.tensors["a"].shape == (0, 3)


def test_as_many_dimensions_as_no_array_has_are_refused(tmp_path: Path):
    shape = json.dumps([1] * 70)
    header = f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 4]}}}}'
    with pytest.raises(RequestError, match="70 dimensions"):
        read_tensor_file(headed(tmp_path / "a.safetensors", header, b"1234"), what="a LoRA")
