"""Checks of the rendered views of an object: blank, clipped, inconsistent and so on.

The thresholds were chosen by inspecting what they reject among 1,600 low-poly models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from spad.cameras import Cameras
from spad.geometry.correspondence import agreement_table, suspect_views
from spad.meshes.raycast import RenderBuffers

# Fractions of the image, of its border, and of the visible surface.
LEAST_COVERED = 0.004
MOST_BORDER_COVERED = 0.02
MOST_BACK_FACING = 0.9
# Of 255: alpha of the most opaque pixels, sRGB value of the brightest, range of colors.
LEAST_ALPHA = 128
LEAST_BRIGHTNESS = 16
LEAST_COLOR_SPREAD = 6
# Quantile of "most opaque" and "brightest", robust to single pixels.
NEARLY_ALL = 0.98
# Fraction of points that other views' depth maps confirm; correct cameras reach 0.95 or more.
LEAST_AGREEMENT = 0.8


def check_views(views: RenderBuffers, cameras: Cameras) -> dict[str, str]:
    """The checks of `spad.data.config.CHECKS` that an object fails, in that order, with reasons.

    Args:
        views: v views of one object.
        cameras: their v cameras.
    """
    if not views.rgba[..., 3].any():
        return {"blank": "no view shows anything"}
    return dict(_failures(views, cameras))


def _failures(views: RenderBuffers, cameras: Cameras) -> Iterator[tuple[str, str]]:
    alpha = views.rgba[..., 3]
    empty = np.flatnonzero(~alpha.any(axis=(1, 2)))
    if len(empty):
        yield "blank", f"nothing is visible in {_name_views(empty)}"
    solid = np.quantile(alpha[alpha > 0], NEARLY_ALL)
    if solid < LEAST_ALPHA:
        yield "transparent", f"its most opaque parts have an alpha of {solid / 255:.0%}"
    seen = alpha >= min(LEAST_ALPHA, solid)
    colors = views.rgba[..., :3][seen].astype(np.float32)
    brightest = np.quantile(colors.max(axis=-1), NEARLY_ALL)
    if brightest < LEAST_BRIGHTNESS:
        yield "black", f"its brightest parts have the value {brightest:.0f} of 255"
    covered = (alpha > 0).mean(axis=(1, 2)).max()
    if covered < LEAST_COVERED:
        yield "tiny", f"it covers {covered:.2%} of the view in which it is largest"
    border = _border(alpha > 0).mean(axis=1)
    if border.max() > MOST_BORDER_COVERED:
        cut = np.flatnonzero(border > MOST_BORDER_COVERED)
        yield "clipped", f"the image border cuts it off in {_name_views(cut)}"
    if views.back_facing is not None and views.mask.any():
        share = views.back_facing[views.mask].mean()
        if share > MOST_BACK_FACING:
            yield "inside-out", f"{share:.0%} of the visible surface faces away"
    spread = _color_spread(colors)
    if spread < LEAST_COLOR_SPREAD:
        yield "single-color", f"its colors, at equal brightness, differ by {spread:.0f} of 255"
    disagreement = _disagreement(views, cameras)
    if disagreement:
        yield "reprojection", disagreement


def _border(covered: np.ndarray) -> np.ndarray:
    """The border pixels (v, b) of images (v, h, w)."""
    edges = (covered[:, 0], covered[:, -1], covered[:, 1:-1, 0], covered[:, 1:-1, -1])
    return np.concatenate(edges, axis=1)


def _color_spread(colors: np.ndarray) -> float:
    """Largest range of a channel of colors (n, 3), 0 to 255, at equal brightness.

    White light changes only the brightness of a surface.
    """
    strength = colors.max(axis=-1, keepdims=True)
    bright = strength[:, 0] >= LEAST_BRIGHTNESS
    if not bright.any():
        return 0.0
    hues = colors[bright] / strength[bright] * 255
    low, high = np.quantile(hues, [1 - NEARLY_ALL, NEARLY_ALL], axis=0)
    return float((high - low).max())


def _disagreement(views: RenderBuffers, cameras: Cameras) -> str | None:
    """How the depth maps of the views contradict each other; None if they agree."""
    table = agreement_table(cameras, torch.from_numpy(views.depth))
    off_diagonal = 1 - torch.eye(len(cameras), dtype=torch.long)
    points, found = ((x * off_diagonal).sum(1) for x in (table.points, table.found))
    # A thin part seen edge-on falls between pixels: points of other views are missing in that view,
    # but its own points are found in others. Those of a wrong camera are not.
    own = found / points.clamp(min=1)
    suspects = [s.view for s in suspect_views(table) if own[s.view] < LEAST_AGREEMENT]
    if 0 < len(suspects) < len(cameras) / 2:
        return f"other depth maps contradict the surface of {_name_views(suspects)}"
    share = float(found.sum() / points.sum().clamp(min=1))
    if suspects or (share < LEAST_AGREEMENT and points.any()):
        return f"only {share:.0%} of the surface points are confirmed by other depth maps"
    return None


def _name_views(numbers: Iterable[int]) -> str:
    names = [str(int(number)) for number in numbers]
    if len(names) > 6:
        names = [*names[:5], f"{len(names) - 5} more"]
    return ("view " if len(names) == 1 else "views ") + ", ".join(names)
