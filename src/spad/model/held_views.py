"""Views of an object that are given rather than sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from spad.cameras import Cameras
from spad.images.pixels import fitted_image_tensor


@dataclass(frozen=True)
class HeldViews:
    """Latents of the views that are given.

    Attributes:
        is_held: (v,) bool.
        latents: (1, v, c, h, w) without noise; those of other views count for nothing.
    """

    is_held: Tensor
    latents: Tensor

    def put_into(self, latents: Tensor) -> Tensor:
        """Latents (b, v, c, h, w) with the held views in their places."""
        return torch.where(self.is_held[:, None, None, None], self.latents, latents)


def held_views(
    image: Image.Image | None,
    views: Mapping[int, Image.Image] | None,
    cameras: Cameras,
    encode: Callable[[Tensor], Tensor],
) -> HeldViews | None:
    """The views that are given for `cameras`; None if there are none.

    Args:
        image: the first view.
        views: images by index of their camera.
        encode: an image (3, h, w) in [-1, 1] -> latents (1, 1, c, h', w').

    Raises: ValueError: there is no such camera, it is no image, or view 0 is given twice.
    """
    given = dict(views or {})
    if image is not None and 0 in given:
        raise ValueError("expected an image or views[0], got both")
    if image is not None:
        given[0] = image
    if not given:
        return None
    for index, view in given.items():
        if index not in range(len(cameras)):
            raise ValueError(
                f"expected views among 0 to {len(cameras) - 1}, as there are {len(cameras)} "
                f"cameras, got {index!r}"
            )
        if not isinstance(view, Image.Image):
            raise ValueError(f"expected view {index} to be a PIL image, got {type(view)}")
    pixels = {i: fitted_image_tensor(v, cameras.height, cameras.width) for i, v in given.items()}
    encoded = {i: encode(p) for i, p in pixels.items()}
    nothing = torch.zeros_like(next(iter(encoded.values())))
    return HeldViews(
        torch.tensor([i in given for i in range(len(cameras))], device=nothing.device),
        torch.cat([encoded.get(i, nothing) for i in range(len(cameras))], dim=1),
    )
