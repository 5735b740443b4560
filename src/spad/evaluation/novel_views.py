"""Novel views from one image, against renders of the object from the same cameras."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spad.data.view_sets import PosedImages, ViewSet, resized
from spad.evaluation.psnr_ssim import LARGEST_PSNR, psnr, ssim
from spad.evaluation.report import Column

NOVEL_COLUMNS = (
    Column(
        "novel_psnr", True, LARGEST_PSNR, "PSNR of novel views against renders, all pixels, in dB"
    ),
    Column("novel_ssim", True, 1.0, "SSIM of novel views and renders, all pixels"),
    Column("novel_psnr_masked", True, LARGEST_PSNR, "PSNR inside the union of both masks, in dB"),
    Column("novel_ssim_masked", True, 1.0, "SSIM inside the union of both masks"),
    Column("novel_iou", True, 1.0, "IoU of the masks of novel views and renders"),
    Column(
        "novel_gain_db", True, None, "masked PSNR above that of repeating the input image, in dB"
    ),
)


@dataclass(frozen=True, eq=False)
class NovelViews:
    """Views that a model generated from one image, with the renders from the same cameras.

    Attributes:
        truth: renders; view 0 is the input image.
        generated: views of the model; view 0 is not scored.

    Raises: ValueError: they differ in number or size, or there is only one view.
    """

    truth: ViewSet
    generated: ViewSet

    def __post_init__(self) -> None:
        if self.truth.images.shape != self.generated.images.shape:
            raise ValueError(
                f"{self.truth.name}: expected views like the renders, "
                f"{tuple(self.truth.images.shape)}, got {tuple(self.generated.images.shape)}"
            )
        if len(self.truth) < 2:
            raise ValueError(f"{self.truth.name}: expected 2 views or more, got 1")

    def masks(self) -> tuple[Tensor, Tensor]:
        """Masks (v - 1, h, w) of the novel views: of the renders, and of the generated views."""
        return self.truth.alpha[1:] > 0.5, self.generated.alpha[1:] > 0.5


def score_novel_views(views: NovelViews) -> dict[str, float]:
    """Scores by column, means over the novel views.

    Masked scores use the union of both masks, since outside both all is white. `novel_gain_db` is
    the masked PSNR minus that of repeating the input image in every view: a model that ignores the
    cameras scores 0.
    """
    truth, generated = views.truth.images[1:], views.generated.images[1:]
    true_mask, own_mask = views.masks()
    either = true_mask | own_mask
    given = views.truth.images[:1].expand_as(truth)
    given_mask = (views.truth.alpha[:1] > 0.5).expand_as(true_mask)
    masked = psnr(truth, generated, either)
    copied = psnr(truth, given, true_mask | given_mask)
    overlap = (true_mask & own_mask).sum((1, 2)) / either.sum((1, 2)).clamp_min(1)
    scores = {
        "novel_psnr": psnr(truth, generated),
        "novel_ssim": ssim(truth, generated),
        "novel_psnr_masked": masked,
        "novel_ssim_masked": ssim(truth, generated, either),
        "novel_iou": overlap,
        "novel_gain_db": masked - copied,
    }
    return {name: float(values.mean()) for name, values in scores.items()}


def read_truth(views: PosedImages, chosen: list[int], size: int) -> ViewSet:
    """Chosen renders of an object as a set, at most `size` pixels wide.

    Raises: ValueError: the renders are not square or cannot be read.
    """
    cameras = views.cameras
    if cameras.height != cameras.width:
        raise ValueError(
            f"{views.uid}: expected square renders for novel views, got "
            f"{cameras.width}x{cameras.height}"
        )
    return _at_most(views.chosen(chosen).read(), size)


def match_size(generated: ViewSet, truth: ViewSet) -> NovelViews:
    """Generated views at the size of the renders, which may be smaller."""
    return NovelViews(truth, _at_most(generated, truth.cameras.height))


def _at_most(whole: ViewSet, size: int) -> ViewSet:
    images, alpha, cameras = resized(whole, size)
    return ViewSet(
        whole.name, whole.prompt, images.clamp(0, 1), alpha, cameras, whole.alpha_is_estimated
    )
