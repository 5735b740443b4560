"""Small models with colors, and true views of them."""

import json
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image

from spad.cameras import Cameras, save_transforms
from spad.data.view_sets import ViewSet, set_from_images
from spad.meshes.mesh import TriangleMesh, load_object
from spad.meshes.raycast import Light, render_views

SIZE = 64
NO_LIGHT = Light(ground=1.0, sky=1.0, key=0.0, fill=0.0)


def colored_ball(folder: Path, beside: bool = False) -> TriangleMesh:
    """A ball of radius 1, red at the top, blue at the bottom; or a gray one with a red one before
    it, along +x."""
    ball = trimesh.creation.icosphere(subdivisions=4)
    up = (ball.vertices[:, 2] + 1) / 2
    colors = np.stack([60 + 140 * up, np.full_like(up, 90), 200 - 140 * up], axis=1)
    if beside:
        small = trimesh.creation.icosphere(subdivisions=3, radius=0.25)
        small.apply_translation((1.6, 0, 0))
        colors = [[128, 128, 128]] * len(ball.vertices) + [[220, 40, 40]] * len(small.vertices)
        ball = trimesh.util.concatenate([ball, small])
    rgba = np.column_stack([np.asarray(colors), np.full(len(colors), 255)]).astype(np.uint8)
    mesh = trimesh.Trimesh(ball.vertices, ball.faces, vertex_colors=rgba, process=False)
    mesh.export(folder / "ball.ply")
    return load_object(folder / "ball.ply")


def table(folder: Path) -> TriangleMesh:
    """A brown table: a board on four legs."""
    parts = [trimesh.creation.box((1.6, 1.0, 0.2))]
    for x in (-0.65, 0.65):
        for y in (-0.35, 0.35):
            leg = trimesh.creation.box((0.2, 0.2, 0.9))
            leg.apply_translation((x, y, -0.5))
            parts.append(leg)
    mesh = trimesh.util.concatenate(parts)
    mesh.visual.vertex_colors = [150, 90, 40, 255]
    mesh.export(folder / "table.ply")
    return load_object(folder / "table.ply")


def views_of(obj: TriangleMesh, cameras: Cameras, light: Light = NO_LIGHT) -> ViewSet:
    """True views with alpha."""
    return set_from_images("thing", render_views(obj, cameras, light=light).rgba, cameras)


def ring(count: int = 8, elevation=20.0, scale: float = 1.0, center=(0.0, 0.0, 0.0)) -> Cameras:
    """Cameras on a circle around an object of a radius of about `scale`."""
    azimuth = [360 * view / count for view in range(count)]
    return Cameras.orbit(
        elevation, azimuth, 3.5 * scale, height=SIZE, width=SIZE, target=list(center)
    )


def write_views(folder, views: ViewSet, **fields) -> None:
    """Write views as transparent PNG files with a nerfstudio `transforms.json`, with more fields in
    that."""
    (folder / "images").mkdir(parents=True)
    straight = (views.images - 1 + views.alpha[:, None]) / views.alpha[:, None].clamp(min=1e-3)
    rgba = torch.cat([straight.clamp(0, 1), views.alpha[:, None]], dim=1)
    names = [f"images/{view:03d}.png" for view in range(len(views))]
    for name, image in zip(names, rgba.mul(255).round().byte().movedim(1, -1), strict=True):
        Image.fromarray(image.numpy()).save(folder / name)
    save_transforms(folder / "transforms.json", views.cameras, names)
    record = json.loads((folder / "transforms.json").read_text()) | fields
    (folder / "transforms.json").write_text(json.dumps(record))
