"""Negative controls: corrupt good sets in known ways to test the metrics.

A metric is credible if true renders score near its best, and worse the more they are corrupted in a
way that it should detect. `controls_table` shows this for any folder of renders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from spad.data.view_sets import ViewSet
from spad.evaluation.metrics import METRICS, Metric
from spad.geometry.focus import angles_between, object_ball

_SEED = 0
# Scores in decibels, degrees and percent.
_ONE_DIGIT = (
    "reconstruction_psnr",
    "camera_error_deg",
    "split_psnr",
    "split_chamfer",
    "split_depth",
)


@dataclass(frozen=True)
class Corruption:
    """A way to corrupt a set of views.

    Attributes:
        corrupt: (set, another set of as many views, severity) -> corrupted set.
        severities: from mild to severe.
        caught_by: metrics that must get worse with every severity.
        summary: meaning of the severity.
    """

    name: str
    corrupt: Callable[[ViewSet, ViewSet, float], ViewSet]
    severities: tuple[float, ...]
    caught_by: tuple[str, ...]
    summary: str


def copied(view_set: ViewSet, other: ViewSet, share: float) -> ViewSet:
    """Replace a share of the views by view 0."""
    return _replaced(view_set, dict.fromkeys(_chosen(view_set, share), 0))


def flipped(view_set: ViewSet, other: ViewSet, share: float) -> ViewSet:
    """Replace a share of the views by the view of the farthest camera, from behind."""
    farthest = angles_between(view_set.cameras).argmax(1).tolist()
    return _replaced(view_set, {view: farthest[view] for view in _chosen(view_set, share)})


def mirrored(view_set: ViewSet, other: ViewSet, share: float) -> ViewSet:
    """Mirror a share of the views left to right."""
    images, alpha = view_set.images.clone(), view_set.alpha.clone()
    views = _chosen(view_set, share)
    images[views], alpha[views] = images[views].flip(-1), alpha[views].flip(-1)
    return replace(view_set, images=images, alpha=alpha)


def shuffled(view_set: ViewSet, other: ViewSet, share: float) -> ViewSet:
    """Permute a share of the views, at least two, so that none keeps its camera."""
    generator = torch.Generator().manual_seed(_SEED)
    count = max(2, round(share * len(view_set)))
    views = torch.randperm(len(view_set), generator=generator)[:count].tolist()
    return _replaced(view_set, dict(zip(views, views[1:] + views[:1], strict=True)))


def wrong_camera(view_set: ViewSet, other: ViewSet, angle_deg: float) -> ViewSet:
    """Rotate one camera about the object's vertical axis by an angle."""
    center = object_ball(view_set.cameras).center
    cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    turn[:3, 3] = center - turn[:3, :3] @ center
    view = len(view_set) // 2
    poses = view_set.cameras.world_from_cam.clone()
    poses[view] = view_set.cameras[view].transformed(turn).world_from_cam[0]
    return replace(view_set, cameras=replace(view_set.cameras, world_from_cam=poses))


def noisy(view_set: ViewSet, other: ViewSet, sigma: float) -> ViewSet:
    """Add independent Gaussian noise to the object's colors in every view."""
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(view_set.images.shape, generator=generator) * sigma
    images = view_set.images + noise * view_set.alpha[:, None]
    return replace(view_set, images=images.clamp(0, 1))


def blurred(view_set: ViewSet, other: ViewSet, sigma: float) -> ViewSet:
    """Blur images and masks by a Gaussian; `sigma` in pixels of a 128-pixel image."""
    sigma = sigma * max(view_set.cameras.height, view_set.cameras.width) / 128
    layers = torch.cat([view_set.images, view_set.alpha[:, None]], dim=1)
    smooth = _smoothed(layers, sigma).clamp(0, 1)
    return replace(view_set, images=smooth[:, :3].contiguous(), alpha=smooth[:, 3].contiguous())


def mixed(view_set: ViewSet, other: ViewSet, share: float) -> ViewSet:
    """Replace a share of the views by those of another object.

    Raises: ValueError: the other set has images of another size, or fewer views.
    """
    if other.images.shape[2:] != view_set.images.shape[2:] or len(other) < len(view_set):
        raise ValueError(
            f"expected another set of at least {len(view_set)} views of the same size, got "
            f"{tuple(other.images.shape)}"
        )
    images, alpha = view_set.images.clone(), view_set.alpha.clone()
    views = _chosen(view_set, share)
    images[views], alpha[views] = other.images[views], other.alpha[views]
    return replace(view_set, images=images, alpha=alpha)


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption(
        "copied",
        copied,
        (0.25, 0.5, 1.0),
        ("content_copying",),
        "share of views replaced by view 0",
    ),
    Corruption(
        "flipped",
        flipped,
        (0.1, 0.2, 0.4),
        ("reconstruction_psnr", "camera_error_deg"),
        "share of views from behind",
    ),
    Corruption(
        "mirrored",
        mirrored,
        (0.1, 0.2, 0.5),
        ("reconstruction_psnr", "silhouette_iou"),
        "share of views mirrored",
    ),
    Corruption(
        "shuffled",
        shuffled,
        (0.2, 0.4, 0.6),
        ("reconstruction_psnr", "tsed", "silhouette_iou", "camera_error_deg"),
        "share of views permuted",
    ),
    Corruption(
        "wrong camera",
        wrong_camera,
        (15.0, 45.0, 90.0),
        ("reconstruction_psnr", "silhouette_iou"),
        "one camera off by degrees",
    ),
    Corruption(
        "noisy",
        noisy,
        (0.05, 0.1, 0.2),
        ("reconstruction_psnr", "reconstruction_ssim", "photo_consistency"),
        "sigma of noise, white is 1",
    ),
    Corruption(
        "blurred",
        blurred,
        (1.0, 2.0, 4.0),
        ("reconstruction_ssim", "tsed"),
        "sigma in pixels of 128",
    ),
    Corruption(
        "mixed",
        mixed,
        (0.1, 0.2, 0.35),
        ("reconstruction_psnr", "silhouette_iou", "photo_consistency"),
        "share of views of another object",
    ),
)


def score_controls(
    sets: Sequence[ViewSet],
    metrics: Sequence[Metric] = METRICS,
    controls: Sequence[Corruption] = CORRUPTIONS,
) -> dict[tuple[str, float], dict[str, list[float]]]:
    """Scores of all sets by metric, by (corruption, severity); ("truth", 0) is without corruption.

    Each set is mixed with the next one.

    Raises: ValueError: fewer than 2 sets, or sets of different image size or number of views.
    """
    if len(sets) < 2:
        raise ValueError(f"expected at least 2 sets to mix with each other, got {len(sets)}")
    total = len(sets) * (1 + sum(len(control.severities) for control in controls))
    with tqdm(total=total, desc="scoring", unit="set") as bar:

        def score(view_sets: Sequence[ViewSet]) -> dict[str, list[float]]:
            table = {metric.name: [] for metric in metrics}
            for view_set in view_sets:
                for metric in metrics:
                    table[metric.name].append(metric.function(view_set))
                bar.update()
            return table

        scores = {("truth", 0.0): score(sets)}
        for control in controls:
            for severity in control.severities:
                pairs = zip(sets, [*sets[1:], sets[0]], strict=True)
                corrupted = [control.corrupt(one, other, severity) for one, other in pairs]
                scores[control.name, severity] = score(corrupted)
    return scores


def controls_table(
    scores: Mapping[tuple[str, float], Mapping[str, Sequence[float]]],
    metrics: Sequence[Metric] = METRICS,
) -> str:
    """Markdown table of the result of `score_controls`.

    A cell is the mean over the sets, and in brackets the share of sets that score worse than
    uncorrupted; bold where the metric should detect the corruption. Sets for which a metric is
    undefined are ignored in its cells.
    """
    truth = scores["truth", 0.0]
    lines = [
        "| control | " + " | ".join(metric.name for metric in metrics) + " |",
        "|---|" + "---|" * len(metrics),
        "| none | " + " | ".join(_mean_text(truth[m.name], m.name) for m in metrics) + " |",
    ]
    for control in CORRUPTIONS:
        for severity in control.severities:
            if (control.name, severity) not in scores:
                continue
            cells = []
            for metric in metrics:
                values = scores[control.name, severity][metric.name]
                text = _mean_text(values, metric.name)
                pairs = list(zip(values, truth[metric.name], strict=True))
                pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
                sign = 1 if metric.higher_is_better else -1
                worse = sum(sign * (own - true) < -1e-6 for own, true in pairs)
                text += f" ({worse / len(pairs):.0%})" if pairs else ""
                cells.append(f"**{text}**" if metric.name in control.caught_by else text)
            label = f"{control.name} {severity:g}"
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean_text(values: Sequence[float], name: str) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    digits = 1 if name in _ONE_DIGIT else 2
    return f"{sum(known) / len(known):.{digits}f}"


def _chosen(view_set: ViewSet, share: float) -> list[int]:
    """A share of the views after view 0, at least one, evenly spread."""
    rest = len(view_set) - 1
    count = min(rest, max(1, round(share * rest)))
    return [1 + number * rest // count for number in range(count)]


def _replaced(view_set: ViewSet, source: Mapping[int, int]) -> ViewSet:
    """The set with some views replaced by others: view -> source view."""
    order = [source.get(view, view) for view in range(len(view_set))]
    return replace(view_set, images=view_set.images[order], alpha=view_set.alpha[order])


def _smoothed(layers: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1.0)
    window = torch.exp(-offsets.square() / (2 * sigma**2))
    window = window / window.sum()
    count = layers.shape[1]
    layers = F.pad(layers, (reach,) * 4, mode="replicate")
    layers = F.conv2d(layers, window.view(1, 1, 1, -1).expand(count, 1, 1, -1), groups=count)
    return F.conv2d(layers, window.view(1, 1, -1, 1).expand(count, 1, -1, 1), groups=count)
