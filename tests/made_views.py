"""Small models with colors, and true views of them."""

from pathlib import Path

import numpy as np
import trimesh

from spad.cameras import Cameras
from spad.data.view_sets import ViewSet, set_from_images
from spad.meshes.mesh import TriangleMesh, load_object
from spad.meshes.raycast import Light, render_views

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
