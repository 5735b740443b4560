"""Split consistency: do two halves of the views give the same 3D model?

Every second view makes one model, the others another, and the two are compared: their surfaces, and
renders of both from the same cameras. It needs no ground truth.

Source: MVGBench (Xie et al. 2025), section 3. Differs: models are our textured meshes (hull, signed
distance grid, texture) in place of Gaussian splats, so that a CPU suffices; the cameras of the
renders lie halfway between views of the two halves; a half of which no model can be made scores
worst and is counted, and is not skipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras
from spad.data.view_sets import ViewSet, resized
from spad.evaluation.metrics import Metric
from spad.evaluation.psnr_ssim import psnr, ssim
from spad.geometry.focus import Ball, object_ball

if TYPE_CHECKING:
    from spad.reconstruction.textured_mesh import TexturedMesh

# A model needs three views.
FEWEST_VIEWS = 6
_PACKAGES = ("scipy", "skimage", "fast_simplification", "manifold3d", "xatlas", "embreex")
# The object's radius, as a share of that of the ball that the cameras look at: 1 in renders of
# `spad render`.
_OBJECT = 1 / 1.2
_SIDE, _FACES, _TEXTURE, _POINTS = 128, 5_000, 256, 60_000


@dataclass(frozen=True)
class SplitScores:
    """How much two models differ that were made of one half of the views each.

    Attributes:
        chamfer: mean distance of the surfaces to each other, both directions, in hundredths of the
            object's radius; at most 100.
        depth: mean difference of depth in the renders, over pixels where either model is, in the
            same unit; a pixel with only one model counts 100, which is also the most.
        psnr: of the renders of one model against the other's, all pixels, in dB.
        ssim: of the same renders.
        failed: 1 if one half or both made no model; the others are then worst: 100, 100, 0 and 0.
    """

    chamfer: float
    depth: float
    psnr: float
    ssim: float
    failed: float = 0.0


_UNDEFINED = SplitScores(*[math.nan] * 5)
_FAILED = SplitScores(100.0, 100.0, 0.0, 0.0, 1.0)


@lru_cache(maxsize=2)
def split_scores(view_set: ViewSet) -> SplitScores:
    """Scores of the two halves of a set; cached for several metrics.

    Views 0, 2, 4 … make one model, the others another; no view is left out, however badly it fits.
    NaN: fewer than 6 views.
    Cannot see: what the object is; sets in which all views are wrong alike, such as copies of one
    view, which make the same body of revolution twice. Blur raises it.
    Cost: about 15 s for 12 views of 128 on one CPU core. Needs the extra `mesh`.

    Raises: ModuleNotFoundError: a package of the extra is missing.
    """
    if len(view_set) < FEWEST_VIEWS:
        return _UNDEFINED
    from spad.evaluation.shape import compare_shapes, surface_points
    from spad.reconstruction.model_views import draw_model, on_white

    images, alpha, cameras = resized(view_set, _SIDE)
    ball = object_ball(cameras)
    colors = (images - 1 + alpha[:, None]).clamp(0, 1)
    halves = [_model(colors[half::2], alpha[half::2], cameras[half::2], ball) for half in (0, 1)]
    models = [model for model in halves if model is not None]
    if len(models) < 2:
        return _FAILED
    unit = _OBJECT * ball.radius / 100
    one, other = (surface_points(m.vertices, m.faces, _POINTS) for m in models)
    between = cameras_between(cameras, ball)
    renders = [draw_model(model, between) for model in models]
    (image, _), (other_image, _) = map(on_white, renders)
    return SplitScores(
        min(compare_shapes(one, other).chamfer / unit, 100.0),
        _depth_error(renders[0].depth, renders[1].depth, 100 * unit) / unit,
        float(psnr(image, other_image).mean()),
        float(ssim(image, other_image).mean()),
    )


def check_split_packages() -> None:
    """Raises: ModuleNotFoundError: a package that the scores need is missing."""
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"expected {name}, which models need", name=name)


def cameras_between(cameras: Cameras, ball: Ball, side: int = _SIDE) -> Cameras:
    """For every view a camera halfway between it and the nearest view of the other half.

    They look at the ball's center from the views' median distance, and see the whole ball.
    """
    offsets = cameras.centers - ball.center
    distance = float(offsets.norm(dim=1).median())
    directions = F.normalize(offsets, dim=1)
    number = torch.arange(len(cameras))
    is_other = (number[:, None] - number) % 2 == 1
    nearest = torch.where(is_other, directions @ directions.T, -torch.inf).argmax(1)
    halfway = directions + directions[nearest]
    # Between opposite views there is no halfway.
    halfway = torch.where(halfway.norm(dim=1, keepdim=True) > 1e-3, halfway, directions)
    eyes = ball.center + distance * F.normalize(halfway, dim=1)
    fov = 2 * math.asin(min(ball.radius / distance, 0.95))
    return Cameras.look_at(eyes, ball.center, fov_rad=fov, height=side, width=side)


def _model(colors: Tensor, alpha: Tensor, cameras: Cameras, ball: Ball) -> TexturedMesh | None:
    """A textured mesh of views; None if their masks agree on no shape."""
    from spad.reconstruction.mesh_extraction import extract_mesh
    from spad.reconstruction.surface import fit_surface
    from spad.reconstruction.texture import texture_mesh

    try:
        closed = extract_mesh(fit_surface(colors, alpha, cameras, ball), _FACES)
    except ValueError:
        # What both raise if nothing is left; it is a result here.
        return None
    return texture_mesh(closed, colors, alpha, cameras, _TEXTURE)


def _depth_error(one: np.ndarray, other: np.ndarray, most: float) -> float:
    """Mean difference of depths (v, h, w), over pixels where one is finite; each at most `most`."""
    is_one, is_other = np.isfinite(one), np.isfinite(other)
    difference = np.full(one.shape, most)
    both = is_one & is_other
    difference[both] = np.abs(one[both] - other[both]).clip(max=most)
    return float(difference[is_one | is_other].mean())


def _metric(name: str, higher_is_better: bool, best: float, summary: str) -> Metric:
    return Metric(
        f"split_{name}",
        lambda view_set: getattr(split_scores(view_set), name),
        higher_is_better,
        best,
        summary,
    )


SPLIT_METRICS = (
    _metric(
        "chamfer",
        False,
        0.0,
        "distance of the surfaces of models of two halves of the views, in % of the object's "
        "radius",
    ),
    _metric("depth", False, 0.0, "difference of depth of these models in renders, in the same %"),
    _metric("psnr", True, math.inf, "PSNR of renders of these models (cPSNR), all pixels, in dB"),
    _metric("ssim", True, 1.0, "SSIM of renders of these models (cSSIM), all pixels"),
    _metric("failed", False, 0.0, "share of sets of which one half makes no model"),
)
