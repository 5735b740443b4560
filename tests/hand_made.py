"""Models written by hand, so that no library's reading and writing can cancel out."""

import base64
import io
import json
import os
import signal
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image


def write_gltf(path: Path, parts: list[dict], nodes: list[dict] | None = None) -> Path:
    """A glTF file written by hand, so that no library's reading and writing can cancel out.

    A part has positions and faces, and may have uvs, colors, texture (uint8) and material.
    """
    blob = bytearray()
    data = {"asset": {"version": "2.0"}, "scene": 0, "accessors": [], "bufferViews": []}
    data |= {"meshes": [], "materials": [], "textures": [], "images": []}

    def accessor(values, dtype, kind: str, **extra) -> int:
        array = np.asarray(values, dtype=dtype)
        view = {"buffer": 0, "byteOffset": len(blob), "byteLength": array.nbytes}
        blob.extend(array.tobytes() + b"\0" * (-array.nbytes % 4))
        component = {"float32": 5126, "uint32": 5125, "uint8": 5121}[np.dtype(dtype).name]
        count = array.size // {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[kind]
        data["bufferViews"].append(view)
        data["accessors"].append(
            {"bufferView": len(data["bufferViews"]) - 1, "componentType": component}
            | {"count": count, "type": kind}
            | extra
        )
        return len(data["accessors"]) - 1

    for number, part in enumerate(parts):
        points = np.asarray(part["positions"], dtype=np.float32)
        bounds = {"min": points.min(axis=0).tolist(), "max": points.max(axis=0).tolist()}
        attributes = {"POSITION": accessor(points, "float32", "VEC3", **bounds)}
        if "uvs" in part:
            attributes["TEXCOORD_0"] = accessor(part["uvs"], "float32", "VEC2")
        if "colors" in part:
            attributes["COLOR_0"] = accessor(part["colors"], "uint8", "VEC4", normalized=True)
        indices = accessor(part["faces"], "uint32", "SCALAR")
        primitive = {"attributes": attributes, "indices": indices}
        if "texture" in part or "material" in part:
            material = {"name": f"m{number}"} | part.get("material", {})
            pbr = dict(material.get("pbrMetallicRoughness", {}))
            if "texture" in part:
                png = io.BytesIO()
                Image.fromarray(np.asarray(part["texture"], dtype=np.uint8)).save(png, "PNG")
                uri = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
                data["images"].append({"uri": uri})
                data["textures"].append({"source": len(data["images"]) - 1})
                pbr["baseColorTexture"] = {"index": len(data["textures"]) - 1}
            data["materials"].append(material | {"pbrMetallicRoughness": pbr})
            primitive["material"] = len(data["materials"]) - 1
        data["meshes"].append({"name": f"part{number}", "primitives": [primitive]})
    data["nodes"] = nodes or [{"mesh": index} for index in range(len(parts))]
    children = {child for node in data["nodes"] for child in node.get("children", ())}
    data["scenes"] = [{"nodes": [i for i in range(len(data["nodes"])) if i not in children]}]
    uri = "data:application/octet-stream;base64," + base64.b64encode(blob).decode()
    data["buffers"] = [{"uri": uri, "byteLength": len(blob)}]
    path.write_text(json.dumps({key: value for key, value in data.items() if value}))
    return path


def box(color=None, extents=(1, 1, 1), **material) -> dict:
    mesh = trimesh.creation.box(extents)
    part = {"positions": mesh.vertices, "faces": mesh.faces}
    if color is not None:
        part["material"] = {"pbrMetallicRoughness": {"baseColorFactor": color}} | material
    return part


def write_glb(path: Path, gltf: Path) -> Path:
    """A glTF file made into a GLB, pictures and buffers still spelled out inside the JSON."""
    text = gltf.read_bytes()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text), len(text), 0x4E4F534A)
    path.write_bytes(head + text)
    return path


def edit_gltf(path: Path, edit) -> Path:
    """Change the JSON of a glTF file in place."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def huge_png(side: int) -> bytes:
    """A few bytes that claim to be a picture of side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def is_running(pid: int) -> bool:
    """Whether a process still does something; one that nobody has asked about yet does not."""
    return _state(pid) not in ("Z", None)


def _state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def wait_until(happened: Callable[[], bool]) -> None:
    """Look ten times a second, for two minutes."""
    for _ in range(1200):
        if happened():
            return
        time.sleep(0.1)
    raise TimeoutError("waited for two minutes")


class StuckModel:
    """A model whose geometry comes through a pipe: whoever reads it waits for `release`."""

    def __init__(self, path: Path, part: dict):
        write_gltf(path, [part])
        self.pipe = path.with_suffix(".bin")

        def move_buffer(data: dict) -> None:
            self._geometry = base64.b64decode(data["buffers"][0]["uri"].partition(",")[2])
            data["buffers"][0]["uri"] = self.pipe.name

        edit_gltf(path, move_buffer)
        os.mkfifo(self.pipe)

    def wait_for_reader(self) -> int:
        """The process that waits for the geometry, which goes on waiting."""
        self._writer = self._open()
        wait_until(self._find_reader)
        return int(self._reader.name)

    def kill_reader(self) -> None:
        """Kill who waits for the geometry; whoever comes next waits for it too."""
        reader = self.wait_for_reader()
        # Stopped, it cannot see the pipe's end; and the end is there before the next one comes.
        os.kill(reader, signal.SIGSTOP)
        wait_until(lambda: _state(reader) in ("T", None))
        os.close(self._writer)
        os.kill(reader, signal.SIGKILL)
        wait_until(lambda: not is_running(reader))

    def forget_reader(self) -> None:
        """Wait until a reader that something else has stopped is gone."""
        wait_until(lambda: not is_running(int(self._reader.name)))
        os.close(self._writer)

    def release(self) -> None:
        """Give the next reader what it waits for."""
        self.wait_for_reader()
        os.write(self._writer, self._geometry)
        os.close(self._writer)

    def repair(self) -> None:
        """Put a plain file where the pipe is."""
        self.pipe.unlink()
        self.pipe.write_bytes(self._geometry)

    def _open(self) -> int:
        def someone_reads() -> bool:
            try:
                self._opened = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return False
            return True

        wait_until(someone_reads)
        return self._opened

    def _find_reader(self) -> bool:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                files = {os.readlink(file) for file in (process / "fd").iterdir()}
            except OSError:
                continue
            if str(self.pipe) in files and int(process.name) != os.getpid():
                self._reader = process
                return True
        return False
