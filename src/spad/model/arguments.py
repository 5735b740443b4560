"""Checks of the arguments with which a pipeline is called."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from spad.cameras import Cameras

logger = logging.getLogger(__name__)


def check_sampling(
    schedule: Mapping[str, Any],
    steps: int,
    scale: float,
    rescale: float,
    sigma: float,
    sets_per_prompt: int,
    output_type: str,
) -> None:
    """Check the numbers of a call; `schedule` is the scheduler's configuration.

    Raises: ValueError: one is out of range.
    """
    # Timesteps are shifted by the offset, so the last ones would leave the schedule.
    most = schedule["num_train_timesteps"] - schedule.get("steps_offset", 0)
    if not 1 <= steps <= most:
        raise ValueError(f"expected 1 to {most} steps, got {steps}")
    if not 0 <= scale <= 100:
        raise ValueError(f"expected a guidance_scale of 0 to 100, got {scale}; try 5")
    if not 0 <= rescale <= 1:
        raise ValueError(f"expected a guidance_rescale of 0 to 1, got {rescale}")
    if not sigma > 0:
        raise ValueError(f"expected a positive blob_sigma, got {sigma}; try 0.2 to 0.7")
    if sets_per_prompt < 1:
        raise ValueError(f"expected num_images_per_prompt of 1 or more, got {sets_per_prompt}")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"expected output_type pil, np, pt or latent, got {output_type!r}")


def check_callback_tensors(names: Sequence[str], known: Sequence[str]) -> None:
    """Raises: ValueError: a callback asks for a tensor that there is not."""
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(
            f"expected callback tensors among {', '.join(known)}, got {', '.join(sorted(unknown))}"
        )


def one_of(name: str, value: float | None, alias: str, other: float | None) -> float | None:
    """The value of an argument that has two names.

    Raises: ValueError: both are given.
    """
    if value is not None and other is not None:
        raise ValueError(f"expected {name} or its alias {alias}, got both")
    return other if value is None else value


def sized(cameras: Cameras, image_size: int, multiple: int, model: str) -> Cameras:
    """Cameras with an image size: that of the training images, if they have none.

    Args:
        image_size: side of the model's training images in pixels.
        multiple: number that heights and widths must be divisible by.
        model: name of the model, for a warning.

    Raises: ValueError: a height or width is not divisible.
    """
    if not cameras.has_own_size:
        return cameras.resized(image_size, image_size)
    for name, size in (("height", cameras.height), ("width", cameras.width)):
        if size % multiple:
            raise ValueError(
                f"expected an image {name} divisible by {multiple}, got {size}; "
                f"try {max(1, round(size / multiple)) * multiple}"
            )
    if (cameras.height, cameras.width) != (image_size, image_size):
        logger.warning(
            "%s was trained on images of %dx%d: at %dx%d expect repeated or broken objects",
            *(model, image_size, image_size, cameras.height, cameras.width),
        )
    return cameras
