"""The numbers that judge a set of views without ground truth, other networks or downloads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from spad.evaluation.sets import ViewSet


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


def _later(view_set: ViewSet) -> float:
    return math.nan


METRICS: tuple[Metric, ...] = (
    Metric("reconstruction_psnr", _later, True, math.inf, "held-out views, rebuilt; dB"),
    Metric("reconstruction_ssim", _later, True, 1.0, "held-out views, rebuilt"),
    Metric("tsed", _later, True, 1.0, "pairs whose matched features lie on epipolar lines"),
    Metric("silhouette_iou", _later, True, 1.0, "masks against their visual hull"),
    Metric("photo_consistency", _later, True, 1.0, "pixels that other views explain"),
    Metric("copying", _later, False, 0.0, "likeness of views that should differ"),
    Metric("camera_error_deg", _later, False, 0.0, "camera that explains a view best; degrees"),
)
