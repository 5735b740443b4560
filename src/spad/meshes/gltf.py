"""What a glTF file refers to, looked at before a renderer follows it."""

from __future__ import annotations

import json
import os
import struct
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from PIL import Image
from trimesh.resolvers import FilePathResolver

GLTF_SUFFIXES = (".glb", ".gltf")
_GLB_HEADER = struct.Struct("<4sIIII")
# Textures that give a surface its colour, in the core format and in its older extension.
_COLOURS = ("baseColorTexture", "emissiveTexture", "diffuseTexture")


class ModelFiles(FilePathResolver):
    """Files beside a model, by their names in it; none outside its folder."""

    def get(self, name: str) -> bytes:
        try:
            return super().get(name)
        except FileNotFoundError:
            # glTF writes names as parts of addresses: a space is %20.
            return super().get(unquote(name))


def read_gltf_header(path: Path) -> dict[str, Any]:
    """The JSON of a GLB or glTF file; damaged files raise whatever the damage leads to."""
    if path.suffix.lower() == ".gltf":
        return json.loads(path.read_bytes())
    with open(path, "rb") as file:
        return json.loads(file.read(_json_length(file)))


def _json_length(file: BinaryIO) -> int:
    """Bytes of the JSON of a GLB file, and the file moved to where it begins."""
    start = file.read(_GLB_HEADER.size)
    if len(start) < _GLB_HEADER.size or not start.startswith(b"glTF"):
        raise ValueError("it does not begin as a GLB file does")
    return _GLB_HEADER.unpack(start)[3]


def check_references(path: Path) -> None:
    """Look whether all that a GLB or glTF file refers to is there and may be read.

    Renderers draw a model without the pictures that they cannot read, and say nothing: a white
    object would be learned from.

    Raises: ValueError: a file lies outside the model's folder, or a picture that gives a surface
        its colour is missing, damaged, or too large to be one. Any other damage of the file
        raises whatever it leads to.
    """
    header = read_gltf_header(path)
    files = ModelFiles(str(path))
    for part in (*header.get("buffers", ()), *header.get("images", ())):
        uri = part.get("uri", "data:")
        if not uri.startswith("data:") and not _is_inside(files.parent, unquote(uri)):
            raise ValueError(f"it refers to {uri!r}, which lies outside its folder")
    for number in sorted(_colour_images(header)):
        name = header["images"][number].get("uri", "data:")
        name = f"picture {number}" if name.startswith("data:") else f"picture {name!r}"
        try:
            with Image.open(BytesIO(_image_bytes(path, header, number, files))):
                pass
        except FileNotFoundError:
            raise ValueError(f"{name} is missing") from None
        except (OSError, Image.DecompressionBombError) as error:
            words = "no picture" if isinstance(error, Image.UnidentifiedImageError) else str(error)
            raise ValueError(f"{name} cannot be read: {words}") from error


def _is_inside(folder: str, name: str) -> bool:
    folder = os.path.realpath(folder)
    return Path(os.path.realpath(os.path.join(folder, name))).is_relative_to(folder)


def _colour_images(header: dict) -> set[int]:
    """The images behind all colour textures of all materials."""
    found = set()
    for texture_id in _colour_textures(header.get("materials", [])):
        texture = header["textures"][texture_id]
        # An extension names the picture in a format that the core does not know, such as WebP.
        others = (extension.get("source") for extension in texture.get("extensions", {}).values())
        sources = [source for source in (*others, texture.get("source")) if source is not None]
        found.update(sources[:1])
    return found


def _colour_textures(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in _COLOURS:
                yield inner["index"]
            else:
                yield from _colour_textures(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _colour_textures(inner)


def _image_bytes(path: Path, header: dict, number: int, files: ModelFiles) -> bytes:
    image = header["images"][number]
    if "uri" in image:
        return _uri_bytes(image["uri"], files)
    view = header["bufferViews"][image["bufferView"]]
    buffer = header["buffers"][view["buffer"]]
    start, length = view.get("byteOffset", 0), view["byteLength"]
    if "uri" in buffer:
        return _uri_bytes(buffer["uri"], files)[start : start + length]
    with open(path, "rb") as file:
        # The binary part begins after its own length and kind, four bytes each.
        file.seek(_json_length(file) + 8 + start, os.SEEK_CUR)
        return file.read(length)


def _uri_bytes(uri: str, files: ModelFiles) -> bytes:
    if uri.startswith("data:"):
        return b64decode(uri.partition(",")[2])
    return files.get(uri)
