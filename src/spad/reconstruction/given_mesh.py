"""A mesh that is given, ready to be textured: as it is drawn, and where its texture lies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spad.cameras import Cameras
from spad.meshes.mesh import TriangleMesh, load_object
from spad.meshes.model_file import BARE, Material, Texture
from spad.meshes.raycast import RenderBuffers, render_views
from spad.reconstruction.mesh_extraction import BareMesh
from spad.reconstruction.texture import Layout, overlap, unwrapped
from spad.reconstruction.textured_mesh import TexturedMesh

# Share of the area on the texture that may lie on other parts, by rounding at borders.
_MOST_OVERLAP = 0.03
_OUTSIDE = 1e-4


@dataclass(frozen=True, eq=False)
class GivenMesh:
    """A mesh in object coordinates: z up, in the unit ball about the origin.

    Attributes:
        model: as it was read.
        layout: where its triangles lie on the texture.
        notes: sentences on what was not taken as it is in the file.
    """

    model: TriangleMesh
    layout: Layout
    notes: tuple[str, ...]

    @property
    def bare(self) -> BareMesh:
        """The surface alone."""
        return BareMesh(self.model.vertices, self.model.faces)

    def drawn_bare(self, cameras: Cameras) -> RenderBuffers:
        """Gray images, lit."""
        count = len(self.model.faces)
        plain = replace(
            self.model,
            corner_colors=None,
            face_materials=np.zeros(count, np.int32),
            materials=(BARE,),
            textures=(),
        )
        return render_views(plain, cameras)

    def drawn(self, texture: np.ndarray, cameras: Cameras) -> RenderBuffers:
        """Images with a texture (h, w, 3) uint8, which holds its light."""
        rgba = np.full((*texture.shape[:2], 4), 255, dtype=np.uint8)
        rgba[..., :3] = texture
        painted = replace(
            self.model,
            base_uvs=self.layout.uv[self.layout.faces],
            emissive_uvs=None,
            opacity_uvs=None,
            corner_colors=None,
            face_materials=np.zeros(len(self.model.faces), np.int32),
            materials=(Material(base_texture=0, unlit=True),),
            textures=(Texture(rgba, ("clamp", "clamp")),),
        )
        return render_views(painted, cameras)

    def textured(self, texture: np.ndarray) -> TexturedMesh:
        """The mesh where it was in its file, in its units, z up, with a texture (h, w, 3) uint8."""
        model = self.model
        scale = 1 / np.linalg.norm(model.object_from_asset[0, :3])
        center = -scale * model.object_from_asset[:3, 3]
        # Vertices with several normals, at creases, become several.
        corners = np.column_stack(
            [model.faces.reshape(-1), np.round(model.corner_normals.reshape(-1, 3), 4)]
        )
        _, first, vertex = np.unique(corners, axis=0, return_index=True, return_inverse=True)
        pairs = np.column_stack([vertex.reshape(-1), self.layout.faces.reshape(-1)])
        _, chosen, corner = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        return TexturedMesh(
            (model.vertices.astype(np.float64) * scale + center).astype(np.float32)[
                model.faces.reshape(-1)[first]
            ],
            vertex.reshape(-1, 3).astype(np.int32),
            model.corner_normals.reshape(-1, 3)[first],
            self.layout.uv[self.layout.faces.reshape(-1)[chosen]],
            corner.reshape(-1, 3).astype(np.int32),
            vertex.reshape(-1)[chosen].astype(np.int32),
            texture,
        )


def read_given_mesh(
    path: Path, size: int, up: str | None = None, unwrap: bool = False
) -> GivenMesh:
    """Read a model to texture. Its own texture coordinates are kept where one image fits them.

    Args:
        path: .glb, .gltf, .obj, .ply or .stl.
        size: texels along each side of the texture.
        up: as of `load_object`.
        unwrap: lay the texture out anew.

    Raises: ValueError: as of `load_object`.
    """
    model = load_object(path, up=up)
    own = None if unwrap else _own_layout(model, size)
    notes = list(model.notes)
    if own is None or isinstance(own, str):
        if own is not None:
            notes.append(f"the texture is laid out anew: {own}")
        own = unwrapped(BareMesh(model.vertices, model.faces), size)
    return GivenMesh(model, own, tuple(notes))


def _own_layout(model: TriangleMesh, size: int) -> Layout | str:
    """The layout of the file, or why it is of no use."""
    uv = model.own_uvs
    if uv is None:
        return "not all faces have texture coordinates"
    if not ((uv >= -_OUTSIDE) & (uv <= 1 + _OUTSIDE)).all():
        return "the file's texture coordinates repeat an image"
    corners = np.column_stack([model.faces.reshape(-1), uv.reshape(-1, 2)])
    _, first, number = np.unique(corners, axis=0, return_index=True, return_inverse=True)
    layout = Layout(
        uv.reshape(-1, 2)[first].clip(0, 1),
        number.reshape(-1, 3).astype(np.int32),
        model.faces.reshape(-1)[first].astype(np.int32),
        size,
    )
    if overlap(layout) > _MOST_OVERLAP:
        return "several parts of the file share one place of the texture"
    return layout
