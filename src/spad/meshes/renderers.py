"""The one interface behind which renderers differ: a model file and cameras in, pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from spad.cameras import Cameras
from spad.meshes.mesh import load_object
from spad.meshes.raycast import RenderResult, render_views
from spad.meshes.readers import MODEL_SUFFIXES
from spad.meshes.settings import RendererSettings


class Renderer(Protocol):
    """A way to draw model files.

    Attributes:
        version: raised when the same settings begin to give other pictures.
        suffixes: of the files it reads, lower case.
    """

    version: int
    suffixes: tuple[str, ...]

    def render(self, path: Path, cameras: Cameras, settings: RendererSettings) -> RenderResult:
        """Draw the model at `path` from v cameras, with colour, depth, normals and mask.

        Raises:
            ValueError: the file cannot be used; the message says why.
            ModuleNotFoundError: the renderer is not installed.
        """
        ...


class EmbreeRenderer:
    """Ray casting on the CPU, no display needed: see `spad.meshes.raycast`."""

    version = 2
    suffixes = MODEL_SUFFIXES

    def render(self, path: Path, cameras: Cameras, settings: RendererSettings) -> RenderResult:
        obj = load_object(path, settings.normalize, settings.up, settings.max_faces)
        views = render_views(
            obj,
            cameras.world_from_cam.numpy(),
            cameras.intrinsics.numpy(),
            cameras.height,
            cameras.width,
            settings.samples_per_side,
        )
        return RenderResult(views, obj.object_from_asset, obj.notes)


def find_renderer(name: str, workers: int = 0) -> Renderer:
    """The renderer "embree" or "blender"; `workers` as `BlenderRenderer` has it."""
    if name == "embree":
        return EmbreeRenderer()
    from spad.meshes.blender import BlenderRenderer

    return BlenderRenderer(workers)
