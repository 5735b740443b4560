"""Text alignment by retrieval: the rank of the true caption among many.

Without reading text and without a network, captions are ranked by the similarity of the views to
renders of the captions' objects.

The similarity of two views is the cosine of two descriptors. A descriptor consists of features of
the image on white at 32 x 32 pixels: colors of 16 x 16 cells, a histogram of the colors that are
not white, and coverage and edge directions of cells of 4 x 4 pixels. A linear discriminant analysis
of captioned renders, none of a held-out object, then weights features that distinguish captions,
and drops those that distinguish only views or objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spad.data.view_sets import ViewSet
from spad.evaluation.report import Column

_SIDE, _CELL = 32, 4
_COLOR_LEVELS = 5
_ORIENTATIONS = 6
# A pixel with a channel this far below white counts fully as object.
_SURELY_COVERED = 0.1
# Weights that give the parts of a descriptor about the same standard deviation.
_COLOR_WEIGHT, _HISTOGRAM_WEIGHT, _EDGE_WEIGHT = 0.3, 3.0, 0.5

RETRIEVAL_COLUMNS = (
    Column("retrieval_rank", False, 1.0, "rank of the true caption among all"),
    Column("retrieval_top1", True, 1.0, "share of objects whose caption ranks first"),
    Column("retrieval_top10", True, 1.0, "share of objects whose caption is among the first ten"),
)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Descriptors of renders of captioned objects.

    Attributes:
        captions: c different captions.
        views: (c, v, d) unit descriptors of v renders of each object.
        mean: (f,) mean features of the images that the analysis was fitted to.
        projection: (f, d) from an image's features to a descriptor.
    """

    captions: tuple[str, ...]
    views: Tensor
    mean: Tensor
    projection: Tensor

    def describe(self, images: Tensor) -> Tensor:
        """(v, d) unit descriptors of images (v, 3, h, w) in [0, 1] on white."""
        return _unit((image_features(images) - self.mean) @ self.projection)

    def similarity(self, images: Tensor) -> Tensor:
        """(c,) similarity of a set of views to each caption's object, in [-1, 1].

        Each view is compared with the most similar render, whatever its side: captions do not say
        where an object faces.
        """
        cosines = torch.einsum("vd,cwd->cvw", self.describe(images), self.views)
        return cosines.amax(2).mean(1)

    def rank(self, images: Tensor, caption: str) -> int | None:
        """Rank of `caption` among all captions, from 1; None if it is not one of them.

        Ties rank before it, so that views equally similar to all rank last.
        """
        if caption not in self.captions:
            return None
        similarity = self.similarity(images)
        return int((similarity >= similarity[self.captions.index(caption)]).sum())

    def save(self, path: Path) -> None:
        """Write a .safetensors file in half precision."""
        tensors = {"views": self.views, "mean": self.mean, "projection": self.projection}
        halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
        save_file(halves, path, metadata={"captions": "\n".join(self.captions)})

    @classmethod
    def load(cls, path: Path) -> Gallery:
        """Read a file of `save`. Raises: ValueError: it is something else."""
        try:
            with safe_open(path, framework="pt") as file:
                captions = tuple(file.metadata()["captions"].split("\n"))
                views, mean, projection = (
                    file.get_tensor(name).float() for name in ("views", "mean", "projection")
                )
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a gallery of captions ({error})") from error
        return cls(captions, views, mean, projection)

    def with_objects(self, captions: Sequence[str], images: Sequence[Tensor]) -> Gallery:
        """A gallery of other captions and images (v, 3, h, w) of their objects.

        Raises: ValueError: equal captions, or different numbers of views.
        """
        if len(set(captions)) < len(captions):
            raise ValueError("expected different captions, got one twice")
        counts = sorted({len(views) for views in images})
        if len(counts) != 1:
            raise ValueError(f"expected equal numbers of views, got {counts}")
        views = torch.stack([self.describe(one) for one in images])
        return Gallery(tuple(captions), views, self.mean, self.projection)


def score_retrieval(gallery: Gallery, view_set: ViewSet) -> dict[str, float]:
    """Scores by column; empty if the set's prompt is not among the captions."""
    rank = gallery.rank(view_set.images, view_set.prompt or "")
    if rank is None:
        return {}
    return {
        "retrieval_rank": float(rank),
        "retrieval_top1": float(rank <= 1),
        "retrieval_top10": float(rank <= 10),
    }


def fit_discriminant(
    features: Tensor, classes: Tensor, dimensions: int = 64, shrinkage: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean (f,) and projection (f, d) of a linear discriminant analysis.

    Args:
        features: (n, f).
        classes: (n,) integers.
        shrinkage: this multiple of the mean variance within classes is added to the variance of
            every feature.

    Source: Fisher's linear discriminant; the scatter within classes is shrunk towards a multiple of
    the identity (Friedman 1989).
    """
    features = features.double()
    mean = features.mean(0)
    centered = features - mean
    _, numbers, counts = classes.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), centered.shape[1], dtype=centered.dtype)
    means = sums.index_add(0, numbers, centered) / counts[:, None]
    deviations = centered - means[numbers]
    within = deviations.mT @ deviations / len(features)
    between = means.mT @ means / len(means)
    within += shrinkage * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
    variances, axes = torch.linalg.eigh(within)
    whitening = axes / variances.sqrt()
    _, directions = torch.linalg.eigh(whitening.mT @ between @ whitening)
    return mean.float(), (whitening @ directions.flip(1)[:, :dimensions]).float()


def image_features(images: Tensor) -> Tensor:
    """Features (v, f) of images (v, 3, h, w) in [0, 1] on white."""
    small = _small(images)
    darkness = 1 - small
    covered = (darkness.amax(1) / _SURELY_COVERED).clamp(max=1)
    colors = F.avg_pool2d(darkness, 2).flatten(1) * _COLOR_WEIGHT
    histogram = _color_histogram(small, covered) * _HISTOGRAM_WEIGHT
    cells = F.avg_pool2d(covered[:, None], _CELL).flatten(1)
    edges = _edge_directions(small.mean(1)) * _EDGE_WEIGHT
    return torch.cat([colors, histogram, cells, edges], dim=1)


def _small(images: Tensor) -> Tensor:
    """Images padded with white to squares and resized to 32 x 32."""
    height, width = images.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    white = (left, side - width - left, top, side - height - top)
    square = F.pad(images.float(), white, value=1.0)
    return F.interpolate(square, (_SIDE, _SIDE), mode="area")


def _color_histogram(small: Tensor, covered: Tensor) -> Tensor:
    """(v, 125) square roots of color frequencies, with trilinear binning."""
    scaled = small.flatten(2) * (_COLOR_LEVELS - 1)
    low = scaled.floor().clamp(max=_COLOR_LEVELS - 2)
    above = scaled - low
    weights = covered.flatten(1)
    histogram = torch.zeros(len(small), _COLOR_LEVELS**3)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        level = (low + corner[:, None]).long()
        bin_of = (level[:, 0] * _COLOR_LEVELS + level[:, 1]) * _COLOR_LEVELS + level[:, 2]
        share = torch.where(corner[:, None] == 1, above, 1 - above).prod(1)
        histogram.scatter_add_(1, bin_of, weights * share)
    return (histogram / weights.sum(1, keepdim=True).clamp_min(1)).sqrt()


def _edge_directions(gray: Tensor) -> Tensor:
    """(v, 384) square roots of the edge strength in six directions in each cell."""
    dy, dx = torch.gradient(gray, dim=(1, 2))
    direction = torch.atan2(dy, dx).remainder(torch.pi) / torch.pi * _ORIENTATIONS
    apart = (direction[:, None] - torch.arange(_ORIENTATIONS)[:, None, None]).abs()
    apart = torch.minimum(apart, _ORIENTATIONS - apart)
    strength = torch.hypot(dx, dy)[:, None] * (1 - apart).clamp_min(0)
    return (F.avg_pool2d(strength, _CELL) * _CELL**2).sqrt().flatten(1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-9)
