"""True views of textured models that no two sides of look alike, from hand-made files."""

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import trimesh

from hand_made import write_gltf
from spad.cameras import Cameras
from spad.data.view_sets import ViewSet, set_from_images
from spad.meshes.mesh import load_object
from spad.meshes.raycast import render_views

# Boxes as (size, place), meters.
MODELS = {
    "chair": [
        ((0.9, 0.9, 0.15), (0, 0, 0)),
        ((0.9, 0.15, 0.9), (0, 0.4, 0.5)),
        ((0.15, 0.15, 0.6), (-0.35, -0.35, -0.35)),
        ((0.2, 0.8, 0.3), (0.45, 0, 0.2)),
    ],
    "hammer": [
        ((0.3, 0.3, 1.4), (0, 0, 0)),
        ((1.1, 0.45, 0.4), (0.25, 0, 0.6)),
        ((0.5, 0.9, 0.2), (-0.1, 0.2, -0.7)),
    ],
    "house": [
        ((1.2, 0.8, 0.7), (0, 0, 0)),
        ((0.5, 0.5, 0.6), (0.3, 0.1, 0.6)),
        ((0.3, 0.6, 0.4), (-0.6, -0.3, -0.1)),
    ],
}


@lru_cache
def true_set(name: str, views: int = 10, elevation_deg: float = 20.0, size: int = 128) -> ViewSet:
    """Views evenly round."""
    cameras = Cameras.ring(views, elevation_deg, height=size, width=size)
    return rendered_set(name, cameras)


def rendered_set(name: str, cameras: Cameras) -> ViewSet:
    """One of `MODELS` from any cameras."""
    with TemporaryDirectory() as folder:
        path = write_gltf(Path(folder) / "model.gltf", [_part(*box, name) for box in MODELS[name]])
        model = load_object(path)
    return set_from_images(name, render_views(model, cameras).rgba, cameras, f"a {name}")


def white_set(cameras: Cameras) -> ViewSet:
    """Views that show nothing."""
    views, height, width = len(cameras), cameras.height, cameras.width
    return ViewSet(
        "nothing",
        None,
        torch.ones(views, 3, height, width),
        torch.zeros(views, height, width),
        cameras,
    )


def _part(size: tuple, place: tuple, name: str) -> dict:
    """A box of small triangles, painted by a pattern that fills space."""
    box = trimesh.creation.box(size).subdivide_to_size(0.06)
    points = box.vertices + place
    rng = np.random.default_rng([*name.encode()])
    waves = rng.normal(0, 6, (3, 12))
    amplitudes = rng.normal(0, 1, (12, 3))
    pattern = np.sin(points @ waves + rng.uniform(0, 6, 12)) @ amplitudes
    colors = (127 + 127 * np.tanh(pattern / 2)).astype(np.uint8)
    opaque = np.full((len(colors), 1), 255, np.uint8)
    return {
        "positions": points[:, [0, 2, 1]] * [1, 1, -1],
        "faces": box.faces,
        "colors": np.hstack([colors, opaque]),
    }
