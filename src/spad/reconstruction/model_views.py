"""Images of a reconstructed model: as its own cameras saw it, and as a turntable."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.focus import Ball
from spad.images.grids import save_turntable
from spad.meshes.mesh import TriangleMesh
from spad.meshes.model_file import Material, Texture
from spad.meshes.raycast import Light, RenderBuffers, render_views
from spad.reconstruction.textured_mesh import TexturedMesh


def draw_model(mesh: TexturedMesh, cameras: Cameras, light: Light | None = None) -> RenderBuffers:
    """Images of a model from every camera, transparent where it is not.

    Args:
        light: that falls on the model, if it is lit; that of `spad render` if None.
    """
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    face_normals = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-30)
    texture = np.full((*mesh.texture.shape[:2], 4), 255, dtype=np.uint8)
    texture[..., :3] = mesh.texture
    model = TriangleMesh(
        vertices=mesh.vertices,
        faces=mesh.faces,
        face_normals=face_normals.astype(np.float32),
        corner_normals=mesh.normals[mesh.faces],
        base_uvs=mesh.uv[mesh.uv_faces],
        emissive_uvs=None,
        opacity_uvs=None,
        corner_colors=None,
        face_materials=np.zeros(len(mesh.faces), dtype=np.int32),
        materials=(Material(base_texture=0, unlit=not mesh.is_lit),),
        textures=(Texture(texture, ("clamp", "clamp")),),
        object_from_asset=np.eye(4),
    )
    return render_views(model, cameras, light=light or Light())


def on_white(views: RenderBuffers) -> tuple[Tensor, Tensor]:
    """Images (v, 3, h, w) on white and alpha (v, h, w), in [0, 1]."""
    rgba = torch.from_numpy(views.rgba).movedim(-1, 1).float() / 255
    color, alpha = rgba[:, :3], rgba[:, 3]
    return color * alpha[:, None] + 1 - alpha[:, None], alpha


def turntable(mesh: TexturedMesh, kind: str, frames: int = 36, size: int = 256) -> bytes:
    """An endless animation of the model that turns, from 20 degrees above.

    Args:
        kind: "webp" or "gif".
    """
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    ball = Ball(torch.from_numpy((low + high) / 2), float(np.linalg.norm(high - low)) / 2)
    azimuth = np.arange(frames) * 360 / frames - 60
    distance = 3.3 * ball.radius
    cameras = Cameras.orbit(
        20.0, azimuth.tolist(), distance, height=size, width=size, target=ball.center.tolist()
    )
    images, _ = on_white(draw_model(mesh, cameras))
    pixels = images.mul(255).round().to(torch.uint8).movedim(1, -1).numpy()
    encoded = io.BytesIO()
    encoded.name = f"turntable.{kind}"
    save_turntable(encoded, [Image.fromarray(image) for image in pixels], azimuth.tolist())
    return encoded.getvalue()
