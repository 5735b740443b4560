"""Novel views from one picture, against renders of the object from the same cameras."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spad.data.renders import ObjectViews
from spad.data.view_sets import SetFiles, ViewSet, resized
from spad.evaluation.psnr_ssim import LARGEST_PSNR, psnr, ssim
from spad.evaluation.report import Column

NOVEL_COLUMNS = (
    Column("novel_psnr", True, LARGEST_PSNR, "views not given against renders, all pixels; dB"),
    Column("novel_ssim", True, 1.0, "the same, structural similarity"),
    Column("novel_psnr_masked", True, LARGEST_PSNR, "PSNR where the object is in either; dB"),
    Column("novel_ssim_masked", True, 1.0, "structural similarity where the object is in either"),
    Column("novel_iou", True, 1.0, "outlines against the renders', intersection over union"),
    Column("novel_gain_db", True, None, "masked PSNR above that of showing the picture again; dB"),
)


@dataclass(frozen=True, eq=False)
class NovelViews:
    """What a model made of one picture, beside the truth.

    Attributes:
        truth: renders; view 0 is the one that was given.
        drawn: from the same cameras; view 0 is not judged.

    Raises: ValueError: they differ in views or size, or there is only the given view.
    """

    truth: ViewSet
    drawn: ViewSet

    def __post_init__(self) -> None:
        if self.truth.images.shape != self.drawn.images.shape:
            raise ValueError(
                f"{self.truth.name}: expected views as the truth has them, "
                f"{tuple(self.truth.images.shape)}, got {tuple(self.drawn.images.shape)}"
            )
        if len(self.truth) < 2:
            raise ValueError(f"{self.truth.name}: expected 2 views or more, got 1")

    def masks(self) -> tuple[Tensor, Tensor]:
        """(v - 1, h, w) where the object is in the truth, and where in what was drawn."""
        return self.truth.alpha[1:] > 0.5, self.drawn.alpha[1:] > 0.5


def score_novel_views(views: NovelViews) -> dict[str, float]:
    """The scores of the views that were not given, by name; means over them.

    The masked ones look at the pixels where the object is in either picture: outside both there is
    white on white, which any picture of a small object gets right. `novel_gain_db` is what the
    masked PSNR has more than that of showing the given picture again in every view, so a model that
    ignores its cameras gets 0.
    """
    truth, drawn = views.truth.images[1:], views.drawn.images[1:]
    true_mask, drawn_mask = views.masks()
    either = true_mask | drawn_mask
    given = views.truth.images[:1].expand_as(truth)
    given_mask = (views.truth.alpha[:1] > 0.5).expand_as(true_mask)
    masked = psnr(truth, drawn, either)
    copied = psnr(truth, given, true_mask | given_mask)
    overlap = (true_mask & drawn_mask).sum((1, 2)) / either.sum((1, 2)).clamp_min(1)
    scores = {
        "novel_psnr": psnr(truth, drawn),
        "novel_ssim": ssim(truth, drawn),
        "novel_psnr_masked": masked,
        "novel_ssim_masked": ssim(truth, drawn, either),
        "novel_iou": overlap,
        "novel_gain_db": masked - copied,
    }
    return {name: float(values.mean()) for name, values in scores.items()}


def read_truth(views: ObjectViews, chosen: list[int], size: int) -> ViewSet:
    """Some of an object's renders as a set, square and at most `size` pixels wide.

    Raises: ValueError: pictures that are not square, or that cannot be read.
    """
    cameras = views.cameras[chosen]
    if cameras.height != cameras.width:
        raise ValueError(
            f"{views.uid}: expected square renders for novel views, got "
            f"{cameras.width}x{cameras.height}"
        )
    of_object = views.image_paths if views.sample is None else views.suffixes
    pictures = tuple(of_object[view] for view in chosen)
    whole = SetFiles(views.uid, views.captions[0], cameras, pictures, views.sample).read()
    return _at_most(whole, size)


def matched(drawn: ViewSet, truth: ViewSet) -> NovelViews:
    """Both at the size of the truth, which may be smaller than what the model draws."""
    return NovelViews(truth, _at_most(drawn, truth.cameras.height))


def _at_most(whole: ViewSet, size: int) -> ViewSet:
    images, alpha, cameras = resized(whole, size)
    return ViewSet(
        whole.name, whole.prompt, images.clamp(0, 1), alpha, cameras, whole.alpha_is_estimated
    )
