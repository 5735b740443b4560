"""What the page sends and gets as JSON: cameras, images, requests."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Interval, MinLen
from PIL import Image

from spad.cameras import Cameras
from spad.settings import Count, GuidanceScale, Seed, checked

MOST_VIEWS = 64
LONGEST_SIDE = 1024
LONGEST_PROMPT = 1000


@dataclass(frozen=True)
@checked
class CameraFields:
    """`Cameras` as JSON; see there."""

    height: Annotated[int, Interval(ge=8, le=LONGEST_SIDE)]
    width: Annotated[int, Interval(ge=8, le=LONGEST_SIDE)]
    world_from_cam: list[list[list[float]]]
    intrinsics: list[list[list[float]]]

    def cameras(self) -> Cameras:
        """Raises: ValueError: too many, or what `Cameras` raises."""
        if len(self.world_from_cam) > MOST_VIEWS:
            got = len(self.world_from_cam)
            raise ValueError(f"expected up to {MOST_VIEWS} cameras, got {got}")
        poses, intrinsics = _matrices(self.world_from_cam), _matrices(self.intrinsics)
        return Cameras(poses, intrinsics, self.height, self.width)


@dataclass(frozen=True)
@checked
class DrawRequest:
    """Views to draw.

    Attributes:
        held: images, as `image_from_text` takes them, of views that are kept, by view as text.
    """

    prompt: str
    cameras: CameraFields
    seed: Seed = 0
    steps: Count | None = None
    guidance_scale: GuidanceScale | None = None
    held: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("expected a prompt, got an empty one; describe one object")
        if len(self.prompt) > LONGEST_PROMPT:
            got = len(self.prompt)
            raise ValueError(f"expected a prompt of up to {LONGEST_PROMPT} letters, got {got}")

    def held_images(self) -> dict[int, Image.Image]:
        """Kept images by view. Raises: ValueError: there is no such view, or a wrong image."""
        images, count = {}, len(self.cameras.world_from_cam)
        for view, text in self.held.items():
            if not view.isdigit() or int(view) >= count:
                raise ValueError(f"expected a held view below {count}, got {view[:20]!r}")
            size = (self.cameras.width, self.cameras.height)
            images[int(view)] = image_from_text(text, f"held view {view}", size)
        return images


@dataclass(frozen=True)
class ViewsRequest:
    """Finished views: to build a model of, to score or to save.

    Attributes:
        images: one per camera, as `image_from_text` takes them.
        run: the record that came with them.
    """

    cameras: CameraFields
    images: Annotated[list[str], MinLen(1)]
    prompt: str = ""
    run: dict[str, Any] = field(default_factory=dict)

    def views(self) -> list[Image.Image]:
        """The images. Raises: ValueError: one is wrong, or their number is."""
        count, got = len(self.cameras.world_from_cam), len(self.images)
        if count != got:
            raise ValueError(f"expected {count} images, as there are cameras, got {got}")
        size = (self.cameras.width, self.cameras.height)
        return [image_from_text(one, f"view {i}", size) for i, one in enumerate(self.images)]


@dataclass(frozen=True)
class FilesRequest:
    """Files that hold cameras: their contents in base64, by name."""

    files: dict[str, str]


@dataclass(frozen=True)
class ExportRequest:
    """Cameras to write for another program."""

    cameras: CameraFields
    format: str


def camera_fields(cameras: Cameras) -> dict[str, Any]:
    """`Cameras` as the page has them."""
    return {
        "height": cameras.height,
        "width": cameras.width,
        "world_from_cam": cameras.world_from_cam.tolist(),
        "intrinsics": cameras.intrinsics.tolist(),
    }


def image_text(image: Image.Image, kind: str = "PNG") -> str:
    """An image in base64: PNG, or a smaller WebP that is not exact."""
    memory = io.BytesIO()
    image.save(memory, kind, **({"quality": 82, "method": 0} if kind == "WEBP" else {}))
    return base64.b64encode(memory.getvalue()).decode()


def image_from_text(text: str, what: str, size: tuple[int, int]) -> Image.Image:
    """A PNG image in base64 of this size, (width, height), in RGB.

    Raises: ValueError: something else. Its size is looked at before it is decoded.
    """
    try:
        image = Image.open(io.BytesIO(bytes_from_text(text, what)), formats=("PNG",))
        if image.size != size:
            got = "x".join(map(str, image.size))
            raise ValueError(f"expected {what} of {size[0]}x{size[1]} pixels, got {got}")
        return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected {what} as a PNG image, got something else") from error


def bytes_from_text(text: str, what: str) -> bytes:
    """Raises: ValueError: this is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"expected {what} in base64, got something else") from error


def _matrices(values: Sequence) -> torch.Tensor:
    try:
        return torch.tensor(values, dtype=torch.float32)
    except (ValueError, TypeError) as error:
        raise ValueError("expected a list of matrices, got rows of unequal length") from error
