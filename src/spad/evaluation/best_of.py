"""The best of several sets of views of one prompt: the most consistent and most like the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from spad.cameras import Cameras
from spad.data.view_sets import ViewSet
from spad.evaluation.content_copying import content_copying
from spad.evaluation.photo_consistency import photo_consistency
from spad.evaluation.protocol import load_gallery
from spad.evaluation.reconstruction_quality import reconstruction_psnr, reconstruction_ssim
from spad.evaluation.silhouettes import silhouette_iou
from spad.images.alpha import WHITE_TOLERANCE
from spad.images.pixels import to_floats
from spad.images.reading import on_white
from spad.model.vocabulary import nearest_captions

# Metrics of consistency, and whether more is better. Copies of one view are consistent, too.
_CONSISTENCY = {
    "reconstruction_psnr": (reconstruction_psnr, True),
    "reconstruction_ssim": (reconstruction_ssim, True),
    "silhouette_iou": (silhouette_iou, True),
    "photo_consistency": (photo_consistency, True),
    "content_copying": (content_copying, False),
}
LIKENESS = "likeness"
# Several captions, as one may share the thing of the prompt and another its color.
_NEAREST = 5


def choose_best(
    prompt: str, cameras: Cameras, sets: Sequence[Sequence[Image.Image]]
) -> tuple[int, list[dict[str, float]]]:
    """Index of the best set, and the scores of each by name.

    Every score is compared with its mean over the sets, in standard deviations. The best set has
    the highest sum of two: the mean over the metrics of consistency, and the likeness to the
    prompt. That is the mean similarity to renders of the objects with the nearest captions of the
    evaluation's protocol, and is NaN where no caption has a word of the prompt.

    Args:
        sets: images from all cameras, of each set.
    """
    scores = [_scores(prompt, cameras, images) for images in sets]
    consistency = np.mean([_standing(scores, name) for name in _CONSISTENCY], axis=0)
    return int(np.argmax(consistency + _standing(scores, LIKENESS))), scores


def _scores(prompt: str, cameras: Cameras, images: Sequence[Image.Image]) -> dict[str, float]:
    pixels = to_floats(np.stack([on_white(image) for image in images]))
    # As in an evaluation: what is not white is object, also if a poor set has no white border.
    alpha = ((1 - pixels).amax(1) > WHITE_TOLERANCE).float()
    views = ViewSet(prompt, prompt, pixels, alpha, cameras, alpha_is_estimated=True)
    scores = {name: float(metric(views)) for name, (metric, _) in _CONSISTENCY.items()}
    return scores | {LIKENESS: _likeness(prompt, pixels)}


def _likeness(prompt: str, pixels: torch.Tensor) -> float:
    gallery = load_gallery()
    nearest = nearest_captions(prompt, gallery.captions, count=_NEAREST)
    if not nearest:
        return math.nan
    similarity = gallery.similarity(pixels)
    return float(similarity[[gallery.captions.index(caption) for caption in nearest]].mean())


def _standing(scores: Sequence[dict[str, float]], name: str) -> np.ndarray:
    """How many standard deviations each set is better than the mean; 0 where that is undefined."""
    values = np.array([one[name] for one in scores])
    known = np.isfinite(values)
    if not known.any() or (spread := values[known].std()) == 0:
        return np.zeros(len(values))
    is_more_better = _CONSISTENCY.get(name, (None, True))[1]
    sign = 1.0 if is_more_better else -1.0
    standing = sign * (values - values[known].mean()) / spread
    # A set of which a metric makes nothing is no better than the worst.
    return np.where(known, standing, standing[known].min())
