"""What can be wrong with the renders of an object, told from its pictures and cameras alone.

The thresholds were set by looking at what they reject among 1,600 low-poly models.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from spad.cameras import Cameras
from spad.geometry.correspondence import agreement_table, suspect_views
from spad.meshes.raycast import RenderBuffers

# Shares of the picture, of its border, and of the surface that is seen.
LEAST_COVERED = 0.004
MOST_BORDER_COVERED = 0.02
MOST_BACK_FACING = 0.9
# Of 255: alpha of the most solid pixels, sRGB value of the brightest, spread of colours.
LEAST_ALPHA = 128
LEAST_BRIGHTNESS = 16
LEAST_COLOR_SPREAD = 6
# What counts as "most solid" and "brightest", so that single pixels decide nothing.
NEARLY_ALL = 0.98
# Points that the depth maps of all pairs of views confirm; right cameras reach 0.95 and more.
LEAST_AGREEMENT = 0.8


def check_views(views: RenderBuffers, cameras: Cameras) -> dict[str, str]:
    """The checks of `spad.data.config.CHECKS` that an object fails, in that order, and why.

    Args:
        views: v pictures of one object, with geometry.
        cameras: the v cameras they were asked for.
    """
    if not views.rgba[..., 3].any():
        return {"blank": "nothing is to be seen in any view"}
    return dict(_failures(views, cameras))


def _failures(views: RenderBuffers, cameras: Cameras) -> Iterator[tuple[str, str]]:
    alpha = views.rgba[..., 3]
    empty = np.flatnonzero(~alpha.any(axis=(1, 2)))
    if len(empty):
        yield "blank", f"nothing is to be seen in {_name_views(empty)}"
    solid = np.quantile(alpha[alpha > 0], NEARLY_ALL)
    if solid < LEAST_ALPHA:
        yield "transparent", f"its most solid parts hide {solid / 255:.0%} of what is behind them"
    seen = alpha >= min(LEAST_ALPHA, solid)
    colors = views.rgba[..., :3][seen].astype(np.float32)
    brightest = np.quantile(colors.max(axis=-1), NEARLY_ALL)
    if brightest < LEAST_BRIGHTNESS:
        yield "black", f"its brightest parts have the value {brightest:.0f} of 255"
    covered = (alpha > 0).mean(axis=(1, 2)).max()
    if covered < LEAST_COVERED:
        yield "tiny", f"it covers {covered:.2%} of the picture that shows most of it"
    border = _border(alpha > 0).mean(axis=1)
    if border.max() > MOST_BORDER_COVERED:
        cut = np.flatnonzero(border > MOST_BORDER_COVERED)
        yield "clipped", f"the edge of the picture cuts it off in {_name_views(cut)}"
    if views.back_facing is not None and views.mask.any():
        share = views.back_facing[views.mask].mean()
        if share > MOST_BACK_FACING:
            yield "inside-out", f"{share:.0%} of the surface that is seen faces away"
    spread = _color_spread(colors)
    if spread < LEAST_COLOR_SPREAD:
        yield (
            "single-color",
            f"apart from light and shadow its colours differ by {spread:.0f} of 255",
        )
    disagreement = _disagreement(views, cameras)
    if disagreement:
        yield "reprojection", disagreement


def _border(covered: np.ndarray) -> np.ndarray:
    """(v, b): the pixels along the four edges of pictures (v, h, w)."""
    edges = (covered[:, 0], covered[:, -1], covered[:, 1:-1, 0], covered[:, 1:-1, -1])
    return np.concatenate(edges, axis=1)


def _color_spread(colors: np.ndarray) -> float:
    """How far colours (n, 3) in 0…255 differ once each is made as bright as the brightest.

    White light changes the brightness of a surface and nothing else, so what is left is its own.
    """
    strength = colors.max(axis=-1, keepdims=True)
    bright = strength[:, 0] >= LEAST_BRIGHTNESS
    if not bright.any():
        return 0.0
    hues = colors[bright] / strength[bright] * 255
    low, high = np.quantile(hues, [1 - NEARLY_ALL, NEARLY_ALL], axis=0)
    return float((high - low).max())


def _disagreement(views: RenderBuffers, cameras: Cameras) -> str | None:
    """What the depth maps of the views say against each other, if anything."""
    table = agreement_table(cameras, torch.from_numpy(views.depth))
    off_diagonal = 1 - torch.eye(len(cameras), dtype=torch.long)
    points, found = ((x * off_diagonal).sum(1) for x in (table.points, table.found))
    # A blade seen edge-on falls between the pixels: others' points are missing in that view, yet
    # its own are found in theirs. Those of a wrong camera are not.
    own = found / points.clamp(min=1)
    suspects = [s.view for s in suspect_views(table) if own[s.view] < LEAST_AGREEMENT]
    if 0 < len(suspects) < len(cameras) / 2:
        return f"other views see past the surface of {_name_views(suspects)}"
    share = float(found.sum() / points.sum().clamp(min=1))
    if suspects or (share < LEAST_AGREEMENT and points.any()):
        return f"depth maps confirm {share:.0%} of each other's surface"
    return None


def _name_views(numbers) -> str:
    names = [str(int(number)) for number in numbers]
    if len(names) > 6:
        names = [*names[:5], f"{len(names) - 5} more"]
    return ("view " if len(names) == 1 else "views ") + ", ".join(names)
