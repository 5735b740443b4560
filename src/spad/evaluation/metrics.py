"""The numbers that judge a set of views without ground truth, other networks or downloads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from spad.data.view_sets import ViewSet
from spad.evaluation.camera_error import camera_error_deg
from spad.evaluation.copying import copying
from spad.evaluation.photo_consistency import photo_consistency
from spad.evaluation.rebuilt import reconstruction_psnr, reconstruction_ssim
from spad.evaluation.silhouettes import silhouette_iou
from spad.evaluation.tsed import tsed


@dataclass(frozen=True)
class Metric:
    """One number of a set.

    Attributes:
        name: as it stands in reports.
        function: NaN where the metric is undefined; its docstring says when.
        higher_is_better: else lower is.
        best: the value of a perfect set; infinity if there is no bound.
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
        "each view against what the others foretell of it, in its mask; dB",
    ),
    Metric(
        "reconstruction_ssim",
        reconstruction_ssim,
        True,
        1.0,
        "each view against what the others foretell of it, in its mask",
    ),
    Metric("tsed", tsed, True, 1.0, "pairs of views whose matched features fit the cameras"),
    Metric("silhouette_iou", silhouette_iou, True, 1.0, "masks against their visual hull"),
    Metric(
        "photo_consistency",
        photo_consistency,
        True,
        1.0,
        "pixels whose colour two other views confirm at one point in space",
    ),
    Metric("copying", copying, False, 0.0, "likeness of views that should differ"),
    Metric(
        "camera_error_deg",
        camera_error_deg,
        False,
        0.0,
        "from the camera asked for to the one that explains a view best; degrees",
    ),
)
