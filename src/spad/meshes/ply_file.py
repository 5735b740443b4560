"""The container of a PLY file: elements and properties, ASCII or binary of either byte order.

Source: Turk, "The PLY polygon file format", 1994.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip
_ByteOrder = Literal["=", "<", ">"]
_ORDERS: dict[str, _ByteOrder] = {
    "ascii": "=",
    "binary_little_endian": "<",
    "binary_big_endian": ">",
}
# A header is a few lines; what goes on and on is none.
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class ListValues:
    """A list of each row: all values one after the other, and how many each row has."""

    values: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class _Property:
    name: str
    dtype: np.dtype
    length_dtype: np.dtype | None = None  # of a list


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)


@dataclass(frozen=True)
class PlyFile:
    """Elements by name, each its properties by name, and the comments of the header."""

    elements: dict[str, dict[str, np.ndarray | ListValues]]
    comments: tuple[str, ...]


def read_ply_file(path: Path) -> PlyFile:
    """All elements of a PLY file.

    Raises: ValueError: no PLY file, malformed, or cut short.
    """
    data = path.read_bytes()
    order, elements, comments, start = _read_header(data)
    body = _Binary(data, start, order) if order != "=" else _Ascii(data[start:].split())
    found = {}
    for element in elements:
        if element.properties:
            found[element.name] = body.read(element)
    return PlyFile(found, tuple(comments))


def _read_header(data: bytes) -> tuple[_ByteOrder, list[_Element], list[str], int]:
    end = re.search(rb"(^|[\r\n])[ \t]*end_header[ \t]*(\r\n|\n|\r)", data[:_LONGEST_HEADER])
    if not data.startswith(b"ply") or end is None:
        raise ValueError("expected a PLY file, from 'ply' to 'end_header', got something else")
    order, elements, comments = None, [], []
    lines = re.split(r"\r\n|\n|\r", data[: end.start()].decode("utf-8", "surrogateescape"))
    for line in lines[1:]:
        word, *rest = line.split() or [""]
        if word == "format" and rest and rest[0] in _ORDERS:
            order = _ORDERS[rest[0]]
        elif word == "element" and len(rest) == 2 and re.fullmatch(r"\d{1,18}", rest[1]):
            elements.append(_Element(rest[0], int(rest[1])))
        elif word == "property" and elements:
            elements[-1].properties.append(_property(line, rest))
        elif word in ("comment", "obj_info"):
            comments.append(line.strip().partition(" ")[2].strip())
        elif word:
            raise ValueError(f"the PLY header has a line {line.strip()[:60]!r}")
    if order is None:
        raise ValueError("expected the PLY header to say ascii or binary, got neither")
    return order, elements, comments, end.end()


def _property(line: str, words: Sequence[str]) -> _Property:
    if len(words) == 2 and words[0] in _TYPES:
        return _Property(words[1], np.dtype(_TYPES[words[0]]))
    if len(words) == 4 and words[0] == "list" and words[1] in _TYPES and words[2] in _TYPES:
        return _Property(words[3], np.dtype(_TYPES[words[2]]), np.dtype(_TYPES[words[1]]))
    raise ValueError(f"the PLY header has a property {line.strip()[:60]!r}")


class _Binary:
    def __init__(self, data: bytes, at: int, order: _ByteOrder):
        self._data, self._at = data, at
        self._order: _ByteOrder = order

    def read(self, element: _Element) -> dict[str, np.ndarray | ListValues]:
        lists = [p for p in element.properties if p.length_dtype is not None]
        lengths = {p.name: 0 for p in lists}
        if lists and element.count:
            lengths = self._first_lengths(element)
        rows = self._rows(element, lengths)
        if rows is None:
            return self._walk(element)
        self._at += rows.nbytes
        found: dict[str, np.ndarray | ListValues] = {}
        for number, p in enumerate(element.properties):
            values = rows[f"value{number}"].astype(p.dtype)
            if p.length_dtype is not None:
                counts = np.full(element.count, lengths[p.name])
                found[p.name] = ListValues(values.reshape(-1), counts)
            else:
                found[p.name] = values
        return found

    def _first_lengths(self, element: _Element) -> dict[str, int]:
        at, lengths = self._at, {}
        for p in element.properties:
            at, count = self._length(element, p, at)
            if p.length_dtype is not None:
                lengths[p.name] = count
            at += count * p.dtype.itemsize
        return lengths

    def _length(self, element: _Element, p: _Property, at: int) -> tuple[int, int]:
        """Where the values of a property begin, and how many there are."""
        if p.length_dtype is None:
            count = 1
        else:
            self._check(element, at, p.length_dtype.itemsize)
            dtype = p.length_dtype.newbyteorder(self._order)
            count = int(np.frombuffer(self._data, dtype, 1, at)[0])
            at += p.length_dtype.itemsize
            if count < 0:
                raise ValueError(f"a list of {element.name} has {count} values")
        self._check(element, at, count * p.dtype.itemsize)
        return at, count

    def _check(self, element: _Element, at: int, size: int) -> None:
        if at + size > len(self._data):
            raise ValueError(
                f"expected {element.count:,} of {element.name}, but the file ends before; "
                "is it cut short?"
            )

    def _rows(self, element: _Element, lengths: dict[str, int]) -> np.ndarray | None:
        """All rows at once; None if their lists differ in length."""
        fields = []
        for number, p in enumerate(element.properties):
            if p.length_dtype is not None:
                fields.append((f"length{number}", p.length_dtype.newbyteorder(self._order)))
                shape = (lengths[p.name],)
                fields.append((f"value{number}", p.dtype.newbyteorder(self._order), shape))
            else:
                fields.append((f"value{number}", p.dtype.newbyteorder(self._order)))
        dtype = np.dtype(fields)
        if self._at + element.count * dtype.itemsize > len(self._data):
            if not lengths:
                self._check(element, self._at, element.count * dtype.itemsize)
            return None
        rows = np.frombuffer(self._data, dtype, element.count, self._at)
        for number, p in enumerate(element.properties):
            if p.name in lengths and (rows[f"length{number}"] != lengths[p.name]).any():
                return None
        return rows

    def _walk(self, element: _Element) -> dict[str, np.ndarray | ListValues]:
        """Row by row: only the lengths of its lists tell where the next one begins."""
        least = sum((p.length_dtype or p.dtype).itemsize for p in element.properties)
        self._check(element, self._at, element.count * least)
        at = self._at
        places: list[list[int]] = [[] for _ in element.properties]
        lengths: list[list[int]] = [[] for _ in element.properties]
        for _ in range(element.count):
            for number, p in enumerate(element.properties):
                at, count = self._length(element, p, at)
                places[number].append(at)
                lengths[number].append(count)
                at += count * p.dtype.itemsize
        self._at = at
        found: dict[str, np.ndarray | ListValues] = {}
        bytes_ = np.frombuffer(self._data, np.uint8)
        for number, p in enumerate(element.properties):
            counts = np.array(lengths[number], dtype=np.int64)
            size = p.dtype.itemsize
            # The first byte of every value, then all its bytes.
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            first = np.repeat(np.array(places[number], dtype=np.int64), counts) + within * size
            raw = bytes_[first[:, None] + np.arange(size)]
            values = raw.view(p.dtype.newbyteorder(self._order))[:, 0].astype(p.dtype)
            is_list = p.length_dtype is not None
            found[p.name] = ListValues(values, counts) if is_list else values
        return found


class _Ascii:
    def __init__(self, tokens: list[bytes]):
        self._tokens, self._at = tokens, 0

    def read(self, element: _Element) -> dict[str, np.ndarray | ListValues]:
        if element.count * len(element.properties) > len(self._tokens) - self._at:
            raise self._cut_short(element)
        if not any(p.length_dtype is not None for p in element.properties):
            end = self._at + element.count * len(element.properties)
            table = self._numbers(self._tokens[self._at : end]).reshape(element.count, -1)
            self._at = end
            return {
                p.name: _cast(table[:, number], p.dtype)
                for number, p in enumerate(element.properties)
            }
        columns: list[list[bytes]] = [[] for _ in element.properties]
        lengths: list[list[int]] = [[] for _ in element.properties]
        at = self._at
        for _ in range(element.count):
            for number, p in enumerate(element.properties):
                count = 1
                if p.length_dtype is not None:
                    count = self._list_length(element, at)
                    at += 1
                if at + count > len(self._tokens):
                    raise self._cut_short(element)
                columns[number] += self._tokens[at : at + count]
                lengths[number].append(count)
                at += count
        self._at = at
        found: dict[str, np.ndarray | ListValues] = {}
        for number, p in enumerate(element.properties):
            values = _cast(self._numbers(columns[number]), p.dtype)
            is_list = p.length_dtype is not None
            counts = np.array(lengths[number], dtype=np.int64)
            found[p.name] = ListValues(values, counts) if is_list else values
        return found

    def _list_length(self, element: _Element, at: int) -> int:
        if at >= len(self._tokens):
            raise self._cut_short(element)
        token = self._tokens[at]
        if not token.isdigit() or len(token) > 18:
            raise ValueError(
                f"a list of {element.name} has {token[:20].decode(errors='replace')!r} values"
            )
        return int(token)

    def _numbers(self, tokens: list[bytes]) -> np.ndarray:
        try:
            return np.array(tokens, dtype=np.bytes_).astype(np.float64)
        except ValueError as error:
            raise ValueError(f"expected numbers in the PLY file ({error})") from None

    def _cut_short(self, element: _Element) -> ValueError:
        return ValueError(
            f"expected {element.count:,} of {element.name}, but the file ends before; "
            "is it cut short?"
        )


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers of a text as their type; those that it does not hold are refused."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    limits = np.iinfo(dtype)
    if not ((values >= limits.min) & (values <= limits.max)).all():
        raise ValueError(f"expected whole numbers of {limits.min} to {limits.max}, got others")
    return values.astype(dtype)
