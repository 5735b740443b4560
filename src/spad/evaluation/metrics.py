"""Metrics of a set of views that need no ground truth, no other networks and no downloads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from spad.data.view_sets import ViewSet
from spad.evaluation.camera_error import camera_error_deg
from spad.evaluation.content_copying import content_copying
from spad.evaluation.photo_consistency import photo_consistency
from spad.evaluation.reconstruction_quality import reconstruction_psnr, reconstruction_ssim
from spad.evaluation.silhouettes import silhouette_iou
from spad.evaluation.tsed import tsed


@dataclass(frozen=True)
class Metric:
    """A metric of a set of views.

    Attributes:
        name: name in reports.
        function: returns NaN where the metric is undefined; its docstring says when.
        best: value of a perfect set; infinity if unbounded.
        summary: one line.
    """

    name: str
    function: Callable[[ViewSet], float]
    higher_is_better: bool
    best: float
    summary: str


METRICS: tuple[Metric, ...] = (
    Metric(
        "reconstruction_psnr",
        reconstruction_psnr,
        True,
        math.inf,
        "PSNR of each view against its reconstruction from the other views, inside its mask, in dB",
    ),
    Metric(
        "reconstruction_ssim",
        reconstruction_ssim,
        True,
        1.0,
        "SSIM of each view and its reconstruction from the other views, inside its mask",
    ),
    Metric(
        "tsed", tsed, True, 1.0, "share of neighboring views whose matched features fit the cameras"
    ),
    Metric(
        "silhouette_iou",
        silhouette_iou,
        True,
        1.0,
        "IoU of masks and the mask of their visual hull",
    ),
    Metric(
        "photo_consistency",
        photo_consistency,
        True,
        1.0,
        "share of pixels whose color two other views confirm at one point in space",
    ),
    Metric(
        "content_copying", content_copying, False, 0.0, "similarity of views that should differ"
    ),
    Metric(
        "camera_error_deg",
        camera_error_deg,
        False,
        0.0,
        "angle between the requested camera and the one that best explains a view, in degrees",
    ),
)
