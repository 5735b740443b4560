"""glTF files put together piece by piece, so that a test says what is special about its own."""

import base64
import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}

# A box without symmetry, so that no turned or mirrored one passes for it.
POINTS = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 4]], dtype="f4")
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype="u2")
UVS = np.array([[0, 0], [1, 0], [0, 1], [0.2, 0.6]], dtype="f4")
COLORS = np.array([[0, 0.2, 0.4, 1], [0.6, 0.8, 1, 0.2], [1, 1, 1, 1], [0, 0, 0, 0]], dtype="f4")


class Gltf:
    """A glTF file in the making. `add` and the like return the number of what they added."""

    def __init__(self, **root):
        self.data = {"asset": {"version": "2.0"}, **root}
        self.blob = bytearray()

    def add(self, kind: str, **entry) -> int:
        self.data.setdefault(kind, []).append(entry)
        return len(self.data[kind]) - 1

    def view(self, data: bytes, **extra) -> int:
        self.blob.extend(b"\0" * (-len(self.blob) % 4))
        start = len(self.blob)
        self.blob.extend(data)
        return self.add("bufferViews", buffer=0, byteOffset=start, byteLength=len(data), **extra)

    def accessor(self, values, dtype: str = "f4", **extra) -> int:
        array = np.asarray(values, dtype=f"<{dtype}")
        array = array.reshape(len(array), -1)
        extra = {"bufferView": self.view(array.tobytes())} | extra
        kind = KINDS[array.shape[1]]
        return self.add(
            "accessors", componentType=COMPONENTS[dtype], count=len(array), type=kind, **extra
        )

    def sparse(self, values, where, count: int, base=None, index_type: str = "u2", **extra) -> int:
        """An accessor whose elements `where` are replaced in `base`, or in zeros."""
        array = np.asarray(values, dtype="<f4")
        entry = {
            "count": len(array),
            "indices": {
                "bufferView": self.view(np.asarray(where, f"<{index_type}").tobytes()),
                "componentType": COMPONENTS[index_type],
            },
            "values": {"bufferView": self.view(array.tobytes())},
        }
        if base is not None:
            extra["bufferView"] = self.view(np.asarray(base, "<f4").tobytes())
        kind = KINDS[array.shape[1]]
        return self.add(
            "accessors", componentType=5126, count=count, type=kind, sparse=entry, **extra
        )

    def primitive(self, points=POINTS, faces=FACES, **rest) -> dict:
        """Attributes in capitals are numbers of accessors; the rest goes into the primitive."""
        attributes = {"POSITION": points if isinstance(points, int) else self.accessor(points)}
        attributes |= {name: rest.pop(name) for name in list(rest) if name.isupper()}
        if faces is not None:
            indices = faces if isinstance(faces, int) else self.accessor(np.ravel(faces), "u2")
            rest = {"indices": indices} | rest
        return {"attributes": attributes, **rest}

    def mesh(self, *primitives: dict, **rest) -> int:
        return self.add("meshes", primitives=list(primitives) or [self.primitive()], **rest)

    def picture(self, pixels, kind: str = "PNG") -> int:
        file = io.BytesIO()
        Image.fromarray(np.asarray(pixels, "u1")).save(file, kind, **(
            {"lossless": True} if kind == "WEBP" else {}))  # fmt: skip
        mime = f"image/{kind.lower()}"
        return self.add("images", bufferView=self.view(file.getvalue()), mimeType=mime)

    def textured(self, pixels, uv=UVS, sampler=None, **info) -> dict:
        """A primitive with a picture as its base color; `info` goes into the textureInfo."""
        texture = {"source": self.picture(pixels)}
        if sampler is not None:
            texture["sampler"] = self.add("samplers", **sampler)
        info = {"index": self.add("textures", **texture), **info}
        material = self.add("materials", pbrMetallicRoughness={"baseColorTexture": info})
        return self.primitive(TEXCOORD_0=self.accessor(uv), material=material)

    def save(self, path: Path) -> Path:
        """As .gltf with a data URI, or as .glb."""
        data = dict(self.data)
        if "scenes" not in data and "nodes" not in data and "meshes" in data:
            data["nodes"] = [{"mesh": number} for number in range(len(data["meshes"]))]
        if path.suffix == ".gltf":
            if self.blob and "buffers" not in data:
                uri = "data:application/octet-stream;base64," + base64.b64encode(self.blob).decode()
                data["buffers"] = [{"uri": uri, "byteLength": len(self.blob)}]
            path.write_text(json.dumps(data))
            return path
        data.setdefault("buffers", [{"byteLength": len(self.blob)}])
        text = json.dumps(data).encode()
        text += b" " * (-len(text) % 4)
        blob = bytes(self.blob) + b"\0" * (-len(self.blob) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        chunks += struct.pack("<II", len(blob), 0x004E4942) + blob
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path
