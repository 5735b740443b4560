"""The renderers: a model file and cameras in, images out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from spad.cameras import Cameras
from spad.meshes.mesh import load_object
from spad.meshes.raycast import RenderResult, render_views
from spad.meshes.readers import MODEL_SUFFIXES
from spad.meshes.settings import RendererSettings


class Renderer(Protocol):
    """A renderer of model files.

    Attributes:
        version: incremented when the images of the same settings change.
        suffixes: suffixes of the files it reads, in lower case.
    """

    version: int
    suffixes: tuple[str, ...]

    def render(self, path: Path, cameras: Cameras, settings: RendererSettings) -> RenderResult:
        """Render the model at `path` from v cameras.

        Raises:
            ValueError: the file cannot be used.
            ModuleNotFoundError: the renderer is not installed.
        """
        ...


class EmbreeRenderer:
    """The embree renderer, `spad.meshes.raycast`: CPU only, no display."""

    version = 2
    suffixes = MODEL_SUFFIXES

    def render(self, path: Path, cameras: Cameras, settings: RendererSettings) -> RenderResult:
        obj = load_object(path, settings.normalize, settings.up, settings.max_faces)
        views = render_views(obj, cameras, settings.samples_per_side)
        return RenderResult(views, obj.object_from_asset, obj.notes)


def find_renderer(name: str, threads: int = 1) -> Renderer:
    """The renderer "embree", which uses one thread, or "blender", which uses `threads`."""
    if name == "embree":
        return EmbreeRenderer()
    from spad.meshes.blender import BlenderRenderer

    return BlenderRenderer(threads)
