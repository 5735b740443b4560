"""How well a reconstructed model agrees with the views, in numbers and in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# What a view was used for: to make the model, not as it disagreed, or only to score the model.
FITTED, LEFT_OUT, HELD_OUT = "fitted", "left out", "held out"
# Below this, a view's outline is said to disagree; renders of the same shape reach 0.95.
_LOW_IOU = 0.85
# A view is said to be worse than the others if its error in decibels is so much larger.
_WORSE_DB = 6.0


@dataclass(frozen=True)
class ViewScore:
    """Agreement of the model with one view.

    Attributes:
        view: its name, such as "view 3".
        psnr: dB, over the pixels that are of the object in the view or in the model's image.
        silhouette_iou: intersection over union of the view's mask and the model's.
        side: where in the image most of what differs is: left, right, top, bottom or middle.
        use: `FITTED`, `LEFT_OUT` or `HELD_OUT`.
    """

    view: str
    psnr: float
    silhouette_iou: float
    side: str
    use: str = FITTED


@dataclass(frozen=True)
class Scores:
    """Agreement of the model with all views."""

    views: tuple[ViewScore, ...]

    def mean_psnr(self, use: str = FITTED) -> float:
        """dB, mean over the views of one use; NaN if there are none."""
        return _mean([score.psnr for score in self.views if score.use == use])

    def mean_iou(self, use: str = FITTED) -> float:
        """Mean silhouette IoU over the views of one use; NaN if there are none."""
        return _mean([score.silhouette_iou for score in self.views if score.use == use])

    @property
    def disagreeing(self) -> tuple[ViewScore, ...]:
        """Views whose outline or colors the model does not show, worst outline first."""
        fitted = [score.psnr for score in self.views if score.use == FITTED]
        usual = float(np.median(fitted)) if fitted else math.nan
        named = [
            score
            for score in self.views
            if score.use == LEFT_OUT
            or score.silhouette_iou < _LOW_IOU
            or score.psnr < usual - _WORSE_DB
        ]
        return tuple(sorted(named, key=lambda score: score.silhouette_iou))

    def __str__(self) -> str:
        agree = f"outlines {self.mean_iou():.3f}, colors {self.mean_psnr():.1f} dB"
        lines = [f"the model agrees with the views: {agree}"]
        if any(score.use == HELD_OUT for score in self.views):
            held = f"outlines {self.mean_iou(HELD_OUT):.3f}, "
            lines.append(f"views held out: {held}colors {self.mean_psnr(HELD_OUT):.1f} dB")
        lines += [
            f"{s.view} disagrees, most at its {s.side}: outline {s.silhouette_iou:.2f}, "
            f"colors {s.psnr:.1f} dB" + (", left out" if s.use == LEFT_OUT else "")
            for s in self.disagreeing
        ]
        return "\n".join(lines)


def score_views(
    drawn: Tensor,
    drawn_alpha: Tensor,
    images: Tensor,
    alpha: Tensor,
    names: Sequence[str],
    uses: Sequence[str],
) -> Scores:
    """Compare images of the model with the views.

    Args:
        drawn, images: (v, 3, h, w) sRGB on white, in [0, 1].
        drawn_alpha, alpha: (v, h, w).
        names, uses: of each view.
    """
    union = torch.maximum(drawn_alpha, alpha)
    common = torch.minimum(drawn_alpha, alpha)
    error = (drawn - images).square().mean(1) * union
    scores = []
    for view, (name, use) in enumerate(zip(names, uses, strict=True)):
        area = float(union[view].sum())
        mse = float(error[view].sum()) / max(area, 1e-6)
        iou = float(common[view].sum()) / area if area > 0 else 0.0
        psnr = min(-10 * math.log10(max(mse, 1e-5)), 50.0)
        scores.append(ViewScore(name, psnr, iou, _side(error[view], union[view]), use))
    return Scores(tuple(scores))


def _side(error: Tensor, union: Tensor) -> str:
    """Where the error's center lies from that of the object, in an image (h, w)."""
    height, width = error.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y]).to(error)

    def center(weight: Tensor) -> Tensor:
        return (place * weight).sum((1, 2)) / weight.sum().clamp(min=1e-9)

    spread = float(union.sum().clamp(min=1).sqrt())
    right, down = ((center(error) - center(union)) / spread).tolist()
    if max(abs(right), abs(down)) < 0.1:
        return "middle"
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "bottom" if down > 0 else "top"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
