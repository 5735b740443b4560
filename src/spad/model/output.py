"""Images that a pipeline gives: from latents, in the formats of diffusers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from spad.images.grids import image_html, view_grid


@dataclass
class SPADOutput(BaseOutput):
    """Images of every prompt from every camera.

    Attributes:
        images: `images[i][j]` shows image set i from camera j. Sets are in the order of the
            prompts, those of one prompt side by side. With `output_type` "np" (b, v, h, w, 3) and
            with "pt" (b, v, 3, h, w), both in [0, 1]; with "latent" the latents.
        latents: scaled latents (b, v, c, h, w).
    """

    images: list[list[Image.Image]]
    latents: Tensor

    def _repr_html_(self) -> str | None:
        """The images in a notebook, one row per set; None, for text, if they are no images."""
        if not isinstance(self.images, list):
            return None
        return "".join(f"<div>{image_html(view_grid(views))}</div>" for views in self.images)


def pil_images(pixels: Tensor) -> list[Image.Image]:
    """Images (v, 3, h, w), nominally in [-1, 1], as PIL images."""
    levels = pixels.add(1).mul(127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(view) for view in levels.movedim(1, -1).cpu().numpy()]


def formatted(latents: Tensor, output_type: str, decode: Callable[[Tensor], Tensor]) -> Any:
    """Latents (b, v, c, h, w) in one of the formats of `SPADOutput`.

    Args:
        decode: (v, c, h, w) -> images (v, 3, h', w'), nominally in [-1, 1].
    """
    if output_type == "latent":
        return latents
    if output_type == "pil":
        return [pil_images(decode(one)) for one in latents]
    images = torch.stack([decode(one) for one in latents]).add(1).div(2).clamp(0, 1)
    return images if output_type == "pt" else images.movedim(2, -1).cpu().numpy()
