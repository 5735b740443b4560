"""Cameras of a set of views, and the files that hold them. Needs only torch."""

from spad.cameras.blender import from_blender, save_blender, to_blender
from spad.cameras.cameras import DEFAULT_FOV_RAD, DEFAULT_RADIUS, Cameras
from spad.cameras.colmap import load_colmap, save_colmap
from spad.cameras.formats import load_cameras
from spad.cameras.nerfstudio import load_transforms, save_transforms
from spad.cameras.parsing import LoadedCameras

__all__ = [
    "DEFAULT_FOV_RAD",
    "DEFAULT_RADIUS",
    "Cameras",
    "LoadedCameras",
    "from_blender",
    "load_cameras",
    "load_colmap",
    "load_transforms",
    "save_blender",
    "save_colmap",
    "save_transforms",
    "to_blender",
]
