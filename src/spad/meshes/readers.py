"""Model files of every format: GLB, glTF, OBJ, PLY and STL."""

from __future__ import annotations

from pathlib import Path

from spad.meshes.gltf import read_gltf
from spad.meshes.gltf_file import GLTF_SUFFIXES
from spad.meshes.model_file import Model
from spad.meshes.obj import read_obj
from spad.meshes.ply import read_ply
from spad.meshes.stl import read_stl

_READERS = {
    **dict.fromkeys(GLTF_SUFFIXES, read_gltf),
    ".obj": read_obj,
    ".ply": read_ply,
    ".stl": read_stl,
}
MODEL_SUFFIXES = tuple(_READERS)


def read_model(path: str | Path, max_faces: int | None = None, with_textures: bool = True) -> Model:
    """Read a model file by its suffix; see `spad.meshes.gltf.read_gltf` for the arguments.

    Raises: ValueError: the file is missing, of another kind, unreadable or too large; the message
        begins with its name.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"expected a model file ({', '.join(MODEL_SUFFIXES)}), got {path.name}")
    if not path.is_file():
        raise ValueError(f"expected a model file, got {path}, which does not exist")
    try:
        return reader(path, max_faces, with_textures)
    except ValueError as error:
        raise ValueError(f"cannot read {path.name}: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path.name}: {error.strerror}") from error
