"""The wire format of protocol buffers, as far as ONNX files need it.

Source: Protocol Buffers, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 63


def fields_of(message: memoryview) -> Iterator[tuple[int, int | memoryview, int]]:
    """(number, value, where it begins) of each field; strings and messages as their bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value, position
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(message):
            raise ValueError("it ends too early")
        yield tag >> 3, message[position : position + length], position
        position += length


def packed(data: memoryview) -> list[int]:
    numbers, position = [], 0
    while position < len(data):
        number, position = _varint(data, position)
        numbers.append(number)
    return numbers


def field(place: int, message: bytes) -> bytes:
    """A string, a message or packed numbers as a field."""
    return _as_varint(place << 3 | _BYTES) + _as_varint(len(message)) + message


def number(place: int, value: int) -> bytes:
    """A number from 0 on as a field."""
    return _as_varint(place << 3 | _VARINT) + _as_varint(value)


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > _LONGEST_VARINT:
            raise ValueError("a number of more than 64 bits")
