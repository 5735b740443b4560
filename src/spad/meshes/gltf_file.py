"""The container of a glTF 2.0 or GLB file: its JSON, checked field by field, and its bytes.

Sections in brackets are those of the Khronos glTF 2.0 specification.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

GLTF_SUFFIXES = (".glb", ".gltf")

_MAGIC = b"glTF"
_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942
_PIECE = 1 << 20
# Compressed views of a buffer that may have no bytes of its own.
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")


class Entry:
    """An object of a file's JSON, with the place where it stands, for messages.

    Every method raises ValueError, with that place, for a value of another kind than asked for.
    """

    def __init__(self, value: Any, place: str):
        if not isinstance(value, dict):
            raise ValueError(f"{place}: expected an object, got {_short(value)}")
        self._value, self.place = value, place

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def names(self) -> list[str]:
        """Names of its fields."""
        return list(self._value)

    def entry(self, name: str) -> Entry:
        """An object inside it; an empty one if there is none."""
        return Entry(self._value.get(name, {}), f"{self.place}.{name}")

    def entries(self, name: str) -> list[Entry]:
        """A list of objects inside it; an empty one if there is none."""
        items = enumerate(self._list(name))
        return [Entry(item, f"{self.place}.{name}[{i}]") for i, item in items]

    def extension(self, name: str) -> Entry | None:
        """The value of an extension of it."""
        extensions = self.entry("extensions")
        return extensions.entry(name) if name in extensions else None

    def integer(self, name: str, default: int | None = None, low: int = 0) -> int:
        """A whole number of at least `low`; without a default it must be there."""
        value = self._value.get(name, default)
        # JSON has one kind of number: 3.0 is a whole one.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self._wrong(name, f"a whole number of at least {low}", value)
        return value

    def integers(self, name: str) -> list[int]:
        """A list of whole numbers of at least 0; an empty one if there is none."""
        items = self._list(name)
        inner = Entry({str(i): item for i, item in enumerate(items)}, f"{self.place}.{name}")
        return [inner.integer(str(i)) for i in range(len(items))]

    def numbers(self, name: str, default: Sequence[float] | None, length: int = 0) -> list[float]:
        """Finite numbers, as many as the default has or as `length` says, if it is not 0."""
        items = list(default or ()) if name not in self._value else self._list(name)
        length = length or len(default or ())
        good = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in items)
        if not good or (length and len(items) != length):
            raise self._wrong(name, f"{length or 'a list of'} numbers", items)
        try:
            numbers = [float(x) for x in items]
        except OverflowError:
            numbers = [math.inf]
        if not all(map(math.isfinite, numbers)):
            raise self._wrong(name, "finite numbers", items)
        return numbers

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        inner = Entry({name: [self._value.get(name, default)]}, self.place)
        return inner.numbers(name, None, 1)[0]

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self._value.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a string", value)
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; an empty one if there is none."""
        items = self._list(name)
        if not all(isinstance(item, str) for item in items):
            raise self._wrong(name, "a list of strings", items)
        return items

    def truth(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._value.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def _list(self, name: str) -> list:
        value = self._value.get(name, [])
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        return value

    def _wrong(self, name: str, expected: str, got: Any) -> ValueError:
        return ValueError(f"{self.place}.{name}: expected {expected}, got {_short(got)}")


class GltfFile:
    """A glTF 2.0 or GLB file.

    Attributes:
        root: its JSON.
        required: names of the extensions that it cannot do without.
        notes: sentences on what of it is left out or was read otherwise than it stands there.
    """

    def __init__(self, path: Path):
        """Read the JSON; the bytes of buffers and images are read as they are asked for.

        Raises: ValueError: the file is no glTF 2.0, or damaged.
        """
        self.path = path
        self.notes: set[str] = set()
        text, self._binary = _split(path.read_bytes())
        self.root = Entry(_parse(text), path.name)
        asset = self.root.entry("asset")
        version, least = asset.text("version"), asset.text("minVersion", "2.0")
        # [3.2] A client reads any minor version of 2, unless the file asks for a newer one.
        if version.split(".")[0] != "2" or least != "2.0":
            got = f"{version or 'none'}{f', at least {least}' if least != '2.0' else ''}"
            raise ValueError(f"expected version 2.0 of glTF, got {got}")
        self.required = frozenset(self.root.texts("extensionsRequired"))
        self._buffers: dict[int, memoryview] = {}
        self._lists: dict[str, list[Entry]] = {}

    def items(self, kind: str) -> list[Entry]:
        """One of the lists of the root, such as "nodes"."""
        if kind not in self._lists:
            entries = self.root.entries(kind)
            for number, entry in enumerate(entries):
                entry.place = f"{kind}[{number}]"
            self._lists[kind] = entries
        return self._lists[kind]

    def item(self, kind: str, index: int, place: str) -> Entry:
        """An entry of a list of the root; `place`, which refers to it, begins messages."""
        items = self.items(kind)
        if index >= len(items):
            raise ValueError(f"{place}: expected one of {len(items)} {kind}, got number {index}")
        return items[index]

    def view(self, index: int, place: str) -> tuple[memoryview, int]:
        """The bytes of a buffer view, and its byteStride, 0 if it has none [3.6.1, 5.11]."""
        view = self.item("bufferViews", index, place)
        start, length = view.integer("byteOffset", 0), view.integer("byteLength", low=1)
        stride = view.integer("byteStride", 0)
        if stride and not 4 <= stride <= 252:
            raise ValueError(f"{view.place}.byteStride: expected 4 to 252, got {stride}")
        number = view.integer("buffer")
        for name in _MESHOPT:
            if view.extension(name) is not None and not self._has_bytes(number):
                raise ValueError(f"{view.place} is compressed by {name}, which spad does not read")
        data = self._buffer(number, view.place)
        if start + length > len(data):
            raise ValueError(
                f"{view.place}: expected bytes {start:,} to {start + length:,} of buffer {number}, "
                f"which has {len(data):,}"
            )
        return data[start : start + length], stride

    def image_bytes(self, index: int, place: str) -> tuple[bytes, str]:
        """The encoded bytes of an image, and its name for messages [3.8.2]."""
        image = self.item("images", index, place)
        if "bufferView" in image:
            data, _ = self.view(image.integer("bufferView"), image.place)
            return bytes(data), f"image {index}"
        uri = image.text("uri")
        if not uri:
            raise ValueError(f"{image.place}: expected a uri or a bufferView, got neither")
        name = f"image {index}" if uri.startswith("data:") else f"image {uri!r}"
        try:
            return self._uri_bytes(uri, image.place, None), name
        except FileNotFoundError:
            raise ValueError(f"{name} is missing") from None

    def check_places(self) -> None:
        """Raise ValueError if the file refers to anything outside its folder."""
        for part in (*self.items("buffers"), *self.items("images")):
            uri = part.text("uri", "data:")
            if not uri.startswith("data:"):
                inside(self.path.parent, uri, part.place)

    def _has_bytes(self, number: int) -> bool:
        buffers = self.items("buffers")
        if number < len(buffers) and "uri" in buffers[number]:
            return True
        return number == 0 and self._binary is not None

    def _buffer(self, number: int, place: str) -> memoryview:
        if number in self._buffers:
            return self._buffers[number]
        buffer = self.item("buffers", number, place)
        length = buffer.integer("byteLength", low=1)
        if "uri" in buffer:
            try:
                data = self._uri_bytes(buffer.text("uri"), buffer.place, length)
            except FileNotFoundError:
                raise ValueError(f"{buffer.place}: {buffer.text('uri')!r} is missing") from None
        elif number == 0 and self._binary is not None:  # [4.4.3.3]
            data = self._binary
        else:
            raise ValueError(f"{buffer.place}: expected a uri, or a GLB's binary part, got neither")
        if len(data) < length:
            raise ValueError(
                f"{buffer.place}: expected {length:,} bytes, got {len(data):,}; is it cut short?"
            )
        # [4.4.3.3] A GLB's binary part may be up to three bytes longer.
        self._buffers[number] = memoryview(data)[:length]
        return self._buffers[number]

    def _uri_bytes(self, uri: str, place: str, most: int | None) -> bytes:
        if uri.startswith("data:"):
            return _data_bytes(uri, place)
        return read_inside(self.path.parent, uri, place, most)


def inside(folder: Path, uri: str, place: str) -> list[Path]:
    """Paths that a relative reference may mean, best first, all inside the folder [3.6.1.1, 2.8].

    Raises: ValueError: it is no relative path, or leads out of the folder, by a link or not.
    """
    if "://" in uri:
        raise ValueError(f"{place}: it refers to {uri!r}; expected a file beside it")
    # Percent-encoded by the specification; some exporters write names as they are, and Windows' \.
    names = [unquote(uri), uri, unquote(uri).replace("\\", "/")]
    root = os.path.realpath(folder)
    paths = []
    for name in dict.fromkeys(names):
        if "\0" in name:
            raise ValueError(f"{place}: expected the name of a file, got {name!r}")
        path = Path(os.path.realpath(os.path.join(root, name)))
        if not path.is_relative_to(root):
            raise ValueError(f"{place}: it refers to {uri!r}, which lies outside its folder")
        paths.append(path)
    return paths


def read_inside(folder: Path, uri: str, place: str, most: int | None = None) -> bytes:
    """The contents of the file of a relative reference, up to `most` bytes.

    Raises: FileNotFoundError: there is none. ValueError: as `inside`, or it cannot be read.
    """
    for path in inside(folder, uri, place):
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode) or most is None:
                    # Not `most` alone: as much memory is taken before the first byte is read.
                    return file.read(min(status.st_size, most or status.st_size))
                pieces: list[bytes] = []
                while most and (piece := file.read(min(most, _PIECE))):
                    pieces.append(piece)
                    most -= len(piece)
                return b"".join(pieces)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ValueError(f"{place}: cannot read {uri!r}: {error.strerror}") from error
    raise FileNotFoundError(uri)


def _data_bytes(uri: str, place: str) -> bytes:
    """The contents of a data: URI (RFC 2397)."""
    kind, comma, body = uri.partition(",")
    if not comma:
        raise ValueError(f"{place}: expected data:TYPE;base64,DATA, got {_short(uri)}")
    if not kind.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return b64decode(unquote(body), validate=True)
    except (Base64Error, ValueError) as error:
        raise ValueError(f"{place}: its base64 data is damaged ({error})") from None


def _split(data: bytes) -> tuple[bytes, bytes | None]:
    """The JSON and the binary part of a GLB [4.4]; all of a .gltf."""
    if not data.startswith(_MAGIC):
        if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            raise ValueError("it does not begin as a glTF or GLB file does")
        return data, None
    chunks = dict(reversed(list(_chunks(data))))
    if _JSON_CHUNK not in chunks:
        raise ValueError("expected JSON in the GLB file, got none")
    return chunks[_JSON_CHUNK], chunks.get(_BINARY_CHUNK)


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    if len(data) < 12:
        raise ValueError(f"the GLB file is cut short: {len(data)} bytes")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise ValueError(f"expected version 2 of GLB, got {version}")
    if length > len(data):
        raise ValueError(f"the GLB file is cut short: {len(data):,} of {length:,} bytes")
    at = 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<II", data, at)
        if at + 8 + size > length:
            raise ValueError(f"a part of the GLB file is cut short: {size:,} bytes at {at:,}")
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size


def _parse(text: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"its JSON has {constant}, which is no number there")

    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise ValueError(f"its JSON is not UTF-8 (byte {error.start:,})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its JSON is damaged ({error})") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
