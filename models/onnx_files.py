"""The files beside an .onnx file that hold its weights, found without running anything.

Large networks are exported as a graph and one or more files of raw numbers ("external data"). The
graph names them, so a forged graph could name any file of the machine.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["external_files"]

# message -> field number -> message of the field; only what leads to tensors.
# Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}  # fmt: skip
_MAX_DEPTH = 100
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}


def external_files(path: Path) -> tuple[Path, ...]:
    """Files of external data that a graph names, sorted.

    Args:
        path: an .onnx file.

    Raises:
        ValueError: it is no ONNX file, or names a file outside its own folder, through a link too.
        FileNotFoundError: one is not there.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is empty, not an ONNX file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            names = sorted(set(_locations(data, 0, len(data), "Model", 0)))
        except (IndexError, UnicodeDecodeError, RecursionError) as err:
            raise ValueError(f"{str(path)!r} is no ONNX file, or a damaged one") from err
    folder = path.resolve().parent
    found = []
    for name in names:
        place = (folder / name).resolve() if "\0" not in name else folder
        if Path(name).is_absolute() or "\\" in name or not place.is_relative_to(folder):
            raise ValueError(
                f"{str(path)!r} keeps weights in {name!r}, outside of its folder; put the files "
                "into one folder and export again"
            )
        if not place.is_file():
            raise FileNotFoundError(f"{str(path)!r} keeps weights in {name!r}, which is not there")
        found.append(place)
    return tuple(found)


def _locations(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise RecursionError("messages within messages")
    for number, first, last in _fields(data, start, end):
        inner = _FIELDS[kind].get(number)
        if inner == "Entry":
            key_value = {n: data[a:b] for n, a, b in _fields(data, first, last)}
            if key_value.get(1) == b"location":
                yield key_value.get(2, b"").decode()
        elif inner is not None:
            yield from _locations(data, first, last, inner, depth + 1)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field of a protobuf message."""
    position = start
    while position < end:
        tag, position = _varint(data, position)
        wire_type = tag & 7
        if wire_type == _LENGTH_DELIMITED:
            length, position = _varint(data, position)
            if position + length > end:
                raise IndexError("a field that ends outside of its message")
            yield tag >> 3, position, position + length
            position += length
        elif wire_type == 0:
            _, position = _varint(data, position)
        elif wire_type in _FIXED_BYTES:
            position += _FIXED_BYTES[wire_type]
        else:
            raise IndexError(f"wire type {wire_type}")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError("a number of more than 64 bits")
