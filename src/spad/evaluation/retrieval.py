"""Text alignment by retrieval: among many captions, where does the true one rank?

A set of views is compared with renders of captioned objects, no text is read and no network is
needed: the captions are ranked by how alike their object's renders and the views are.

How alike two views are is the cosine of two descriptors. A descriptor holds, of the picture on
white made 32 x 32 pixels small: its colours in 16 x 16 cells, a histogram of the colours that are
not white, how much of each cell of 4 x 4 pixels is covered, and which way edges run in each such
cell. A linear discriminant analysis over captioned renders, none of them of an object that is held
out, then weighs what tells captions apart and drops what tells only views or objects apart.
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
# A channel this far below white makes a pixel wholly part of the object.
_SURELY_COVERED = 0.1
# Of the parts of a descriptor, so that each has about the same deviation.
_COLOR_WEIGHT, _HISTOGRAM_WEIGHT, _EDGE_WEIGHT = 0.3, 3.0, 0.5

RETRIEVAL_COLUMNS = (
    Column("retrieval_rank", False, 1.0, "place of the true caption among all"),
    Column("retrieval_top1", True, 1.0, "share of objects whose caption comes first"),
    Column("retrieval_top10", True, 1.0, "share whose caption is among the first ten"),
)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Renders of captioned objects, as descriptors.

    Attributes:
        captions: c, all different.
        views: (c, v, d) unit descriptors of v renders of each object.
        mean: (f,) of all pictures the analysis was made of.
        projection: (f, d) from a picture's features to a descriptor.
    """

    captions: tuple[str, ...]
    views: Tensor
    mean: Tensor
    projection: Tensor

    def describe(self, images: Tensor) -> Tensor:
        """(v, d) unit descriptors of pictures (v, 3, h, w) in [0, 1] on white."""
        return _unit((picture_features(images) - self.mean) @ self.projection)

    def similarity(self, images: Tensor) -> Tensor:
        """(c,) likeness of a set of views to each caption's object, in [-1, 1].

        Each view counts by the render most like it, whatever side that shows: a caption says
        nothing of where an object faces.
        """
        cosines = torch.einsum("vd,cwd->cvw", self.describe(images), self.views)
        return cosines.amax(2).mean(1)

    def rank(self, images: Tensor, caption: str) -> int | None:
        """Place of `caption` among all captions, 1 for the first; None if it is not one of them.

        Captions as similar as it stand before it, so that views alike to all get the last place.
        """
        if caption not in self.captions:
            return None
        similarity = self.similarity(images)
        return int((similarity >= similarity[self.captions.index(caption)]).sum())

    def save(self, path: Path) -> None:
        """Write a .safetensors file, in half precision."""
        tensors = {"views": self.views, "mean": self.mean, "projection": self.projection}
        halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
        save_file(halves, path, metadata={"captions": "\n".join(self.captions)})

    @classmethod
    def load(cls, path: Path) -> Gallery:
        """Read what `save` wrote. Raises: ValueError: it is something else."""
        try:
            with safe_open(path, framework="pt") as file:
                captions = tuple(file.metadata()["captions"].split("\n"))
                views, mean, projection = (
                    file.get_tensor(name).float() for name in ("views", "mean", "projection")
                )
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a gallery of captions ({error})") from error
        return cls(captions, views, mean, projection)

    def of(self, captions: Sequence[str], pictures: Sequence[Tensor]) -> Gallery:
        """Other captions and pictures (v, 3, h, w) of their objects, described as these are.

        Raises: ValueError: captions that are not all different, or objects with different numbers
            of views.
        """
        if len(set(captions)) < len(captions):
            raise ValueError("expected captions that are all different, got one twice")
        counts = sorted({len(views) for views in pictures})
        if len(counts) != 1:
            raise ValueError(f"expected as many views of every object, got {counts}")
        views = torch.stack([self.describe(images) for images in pictures])
        return Gallery(tuple(captions), views, self.mean, self.projection)


def score_retrieval(gallery: Gallery, view_set: ViewSet) -> dict[str, float]:
    """Scores by column; none where the set's prompt is not among the captions."""
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
    """Mean (f,) and projection (f, d) that spread classes and gather what belongs to one.

    Args:
        features: (n, f).
        classes: (n,) whole numbers.
        shrinkage: times the mean variance within classes is added to that of every feature; large
            values trust the features, small ones the data.

    Source: Fisher's linear discriminant; the scatter within classes is shrunk towards a multiple of
    the identity (Friedman 1989).
    """
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    _, numbers, counts = classes.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), centred.shape[1], dtype=centred.dtype)
    means = sums.index_add(0, numbers, centred) / counts[:, None]
    deviations = centred - means[numbers]
    within = deviations.mT @ deviations / len(features)
    between = means.mT @ means / len(means)
    within += shrinkage * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
    variances, axes = torch.linalg.eigh(within)
    whitening = axes / variances.sqrt()
    _, directions = torch.linalg.eigh(whitening.mT @ between @ whitening)
    return mean.float(), (whitening @ directions.flip(1)[:, :dimensions]).float()


def picture_features(images: Tensor) -> Tensor:
    """(v, f) what a descriptor is made of, of pictures (v, 3, h, w) in [0, 1] on white."""
    small = _small(images)
    darkness = 1 - small
    covered = (darkness.amax(1) / _SURELY_COVERED).clamp(max=1)
    colors = F.avg_pool2d(darkness, 2).flatten(1) * _COLOR_WEIGHT
    histogram = _color_histogram(small, covered) * _HISTOGRAM_WEIGHT
    cells = F.avg_pool2d(covered[:, None], _CELL).flatten(1)
    edges = _edge_directions(small.mean(1)) * _EDGE_WEIGHT
    return torch.cat([colors, histogram, cells, edges], dim=1)


def _small(images: Tensor) -> Tensor:
    """Square pictures of 32 x 32; what is not square stands in the middle of white."""
    height, width = images.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    white = (left, side - width - left, top, side - height - top)
    square = F.pad(images.float(), white, value=1.0)
    return F.interpolate(square, (_SIDE, _SIDE), mode="area")


def _color_histogram(small: Tensor, covered: Tensor) -> Tensor:
    """(v, 125) square roots of the shares of colours; a pixel counts for the eight nearest."""
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
    """(v, 384) square roots of how strong edges of six directions are in each cell."""
    dy, dx = torch.gradient(gray, dim=(1, 2))
    direction = torch.atan2(dy, dx).remainder(torch.pi) / torch.pi * _ORIENTATIONS
    apart = (direction[:, None] - torch.arange(_ORIENTATIONS)[:, None, None]).abs()
    apart = torch.minimum(apart, _ORIENTATIONS - apart)
    strength = torch.hypot(dx, dy)[:, None] * (1 - apart).clamp_min(0)
    return (F.avg_pool2d(strength, _CELL) * _CELL**2).sqrt().flatten(1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-9)
