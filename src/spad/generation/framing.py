"""Sight of the object: warnings about cameras from which no good image of it can be generated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from spad.cameras import Cameras

OBJECT_RADIUS = 1.0
# Diameter of the object in pixels below which it is a speck.
_FEWEST_PIXELS = 8
_ADVICE = "the object is a sphere of radius 1 about the origin; move or scale the cameras to it"


def framing_warnings(cameras: Cameras) -> Iterator[str]:
    """What is wrong with the place of the object in the images, a sentence for each kind.

    A camera inside the object, images in which its center is not, and images of which it covers
    but a few pixels.
    """
    import torch

    is_inside = cameras.radius < OBJECT_RADIUS
    xy, depth = cameras.project(torch.zeros(3))
    size = xy.new_tensor([cameras.width, cameras.height])
    # NaN, behind the camera, is in no image.
    is_centered = ((xy >= 0) & (xy <= size)).all(-1)
    diameter = 2 * OBJECT_RADIUS * cameras.intrinsics[:, 0, 0] / depth
    if is_inside.any():
        yield f"{_of(is_inside)} inside the object: {_ADVICE}"
    if (misses := ~is_inside & ~is_centered).any():
        yield f"{_of(misses)} directed past the center of the object: {_ADVICE}"
    if (is_speck := ~is_inside & is_centered & (diameter < _FEWEST_PIXELS)).any():
        yield f"{_of(is_speck)} so far away that the object is a speck: {_ADVICE}"


def _of(chosen: Tensor) -> str:
    """ "camera 3 is", or "cameras 0, 1, 2 and 5 more are"."""
    views = [int(view) for view in chosen.nonzero()]
    named = ", ".join(map(str, views[:3]))
    more = f" and {len(views) - 3} more" if len(views) > 3 else ""
    return f"camera {named} is" if len(views) == 1 else f"cameras {named}{more} are"
