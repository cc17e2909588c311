"""Reading safetensors files, bfloat16 included, without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

from latentrt.errors import RequestError
from latentrt.files.lfs import HINT, POINTER, is_pointer
from latentrt.weights.dtypes import BFLOAT16, FLOAT8, Weight, from_bytes

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": BFLOAT16,
    "F8_E4M3": FLOAT8,
    "F8_E5M2": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_MOST_DIMENSIONS = 8
_PICKLES = (".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True, slots=True, eq=False)
class TensorFile:
    """The tensors of a file by name, the texts in its header, and the sha256 of its bytes."""

    path: Path
    tensors: Mapping[str, Weight]
    metadata: Mapping[str, str]
    sha256: str


def read_tensor_file(path: Path, *, what: str) -> TensorFile:
    """Reads a whole .safetensors file into memory.

    Args:
        what: what it should hold, for messages, such as `a LoRA`.

    Raises:
        RequestError: no such file, one that is damaged or in another format, or a tensor of an exotic type.
    """
    from safetensors import SafetensorError, deserialize

    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read ({error.strerror})", expected=f"{what} in a .safetensors file"
        ) from error
    if is_pointer(data):
        raise RequestError(f"{path} is {POINTER}", expected=f"{what} in a .safetensors file", hint=HINT)
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        pickled = path.suffix.lower() in _PICKLES
        raise RequestError(
            f"{path} is no complete safetensors file ({error})",
            expected=f"{what} in the safetensors format",
            hint="pickles can run code and are not read: convert it to safetensors" if pickled else "download it again",
        ) from error
    in_order = sorted(entries, key=itemgetter(0))  # the package hands them out in another one each time
    tensors = {name: _weight(path, name, entry) for name, entry in in_order}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__")
    return TensorFile(path, tensors, {} if metadata is None else metadata, hashlib.sha256(data).hexdigest())


def _weight(path: Path, name: str, entry: Mapping[str, object]) -> Weight:
    if entry["dtype"] not in _DTYPES:
        raise RequestError(f"'{name}' in {path} is {entry['dtype']}", expected=f"one of {', '.join(_DTYPES)}")
    data, shape = entry["data"], entry["shape"]
    assert isinstance(data, bytes | bytearray) and isinstance(shape, list)  # as the package promises
    if len(shape) > _MOST_DIMENSIONS:
        raise RequestError(f"'{name}' in {path} has {len(shape)} dimensions", expected=f"up to {_MOST_DIMENSIONS}")
    if entry["dtype"] == "F8_E5M2":  # the upper half of a float16
        bits = from_bytes(memoryview(data), "uint8", tuple(shape)).values.astype(np.uint16) << 8
        return Weight("float16", bits.view(np.float16))
    return from_bytes(memoryview(data), _DTYPES[str(entry["dtype"])], tuple(shape))
