"""Scores of a 3D model against a reference: distance of the surfaces, and of rendered views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from spad.cameras import Cameras
from spad.data.view_sets import ViewSet, set_from_images
from spad.evaluation.psnr_ssim import psnr
from spad.evaluation.reference_meshes import MeshPair
from spad.evaluation.shape import compare_shapes, surface_points, visible_points
from spad.meshes.mesh import TriangleMesh, load_object
from spad.meshes.raycast import Light, render_views

JUDGING_VIEWS = 12
_SIZE = 128
_RENDER_LIGHT = Light()
# Boxes of a model and its reference in one frame overlap by more than this share along each axis.
_LEAST_OVERLAP = 0.3


def judging_cameras(size: int = _SIZE) -> Cameras:
    """Twelve cameras all around, between 10 degrees below the horizon and 60 above, always the
    same."""
    rng = np.random.default_rng(5)
    low, high = np.sin(np.radians([-10.0, 60.0]))
    elevation = np.degrees(np.arcsin(rng.uniform(low, high, JUDGING_VIEWS)))
    azimuth = (np.arange(JUDGING_VIEWS) + rng.random(JUDGING_VIEWS)) * 360 / JUDGING_VIEWS
    return Cameras.orbit(elevation.tolist(), azimuth.tolist(), height=size, width=size)


def rendered_set(mesh: TriangleMesh, cameras: Cameras, light: Light = _RENDER_LIGHT) -> ViewSet:
    """Renders of a mesh with alpha, as a set of views."""
    return set_from_images("renders", render_views(mesh, cameras, light=light).rgba, cameras)


def score_meshes(pair: MeshPair) -> tuple[dict[str, float], torch.Tensor]:
    """Scores by column, and the renders that were compared, (24, 3, h, w) on white: those of the
    reference first.

    Of the reference, only what can be seen from outside counts. Both are rendered in the light of
    `spad render`, except for models that declare to be unlit.

    Raises: ValueError: a file is unreadable, or the two are not in one frame.
    """
    model, reference = in_one_frame(pair)
    truth = visible_points(reference)
    shape = compare_shapes(surface_points(model.vertices, model.faces), truth)
    cameras = judging_cameras()
    true, drawn = (rendered_set(mesh, cameras) for mesh in (reference, model))
    scores = {
        "chamfer": shape.chamfer,
        "f_score": shape.f_score,
        "normal_consistency": shape.normals,
        "mesh_psnr": float(psnr(drawn.images, true.images).mean()),
        "mesh_iou": mean_iou(drawn, true),
    }
    return scores, torch.cat([true.images, drawn.images])


def in_one_frame(pair: MeshPair) -> tuple[TriangleMesh, TriangleMesh]:
    """A model and its reference, z up, in the frame that `load_object` gives the reference: its
    farthest vertex is at distance 1 of the origin.

    The model may lie where the reference's file has it, or where `spad render` puts the reference,
    as models made of its renders do; the frame in which the two boxes overlap more is taken.

    Raises: ValueError: a file is unreadable, or the boxes overlap in neither frame.
    """
    model, reference = load_object(pair.model), load_object(pair.reference)
    own = _z_up_from_object(model)
    to_frame = [own, np.linalg.inv(_z_up_from_object(reference)) @ own]
    box = _box(reference.vertices)
    moved = [model.vertices @ each[:3, :3].T + each[:3, 3] for each in to_frame]
    overlaps = [_overlap(_box(vertices), box) for vertices in moved]
    best = int(np.argmax(overlaps))
    if overlaps[best] < _LEAST_OVERLAP:
        raise ValueError(
            f"expected {pair.model} in the frame of {pair.reference}, or where spad render puts "
            f"it, got boxes that overlap by {overlaps[best]:.0%} along an axis; move or turn one "
            "of them"
        )
    return replace(model, vertices=moved[best].astype(np.float32)), reference


def mean_iou(one: ViewSet, other: ViewSet) -> float:
    """Mean over views of the intersection over union of their alpha."""
    common = torch.minimum(one.alpha, other.alpha).sum((1, 2))
    union = torch.maximum(one.alpha, other.alpha).sum((1, 2)).clamp(min=1e-6)
    return float((common / union).mean())


def _z_up_from_object(mesh: TriangleMesh) -> np.ndarray:
    """(4, 4) from a normalized mesh to its file's units and origin, z up."""
    scale = float(np.linalg.norm(mesh.object_from_asset[:3, 0]))
    transform = np.diag([1 / scale] * 3 + [1.0])
    # The turn from y up to z up leaves the origin where it is.
    transform[:3, 3] = -mesh.object_from_asset[:3, 3] / scale
    return transform


def _box(vertices: np.ndarray) -> np.ndarray:
    """(2, 3) lowest and highest corner."""
    return np.stack([vertices.min(0), vertices.max(0)])


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (2, 3), along each axis, the smallest."""
    sides = np.minimum(one[1], other[1]) - np.maximum(one[0], other[0])
    whole = np.maximum(one[1], other[1]) - np.minimum(one[0], other[0])
    # A flat object has no thickness to compare.
    thick = whole > 0.01 * whole.max()
    return float((sides.clip(0)[thick] / whole[thick]).min())
