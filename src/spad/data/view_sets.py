"""Images of one object with cameras: in files, and in memory with alpha.

Images must have the size of their cameras. Alpha is that of the images; if all are opaque, it is
estimated from the white background, and purely white parts of an object count as background. A set
may have a single view, or the same image twice: the metrics define when they are undefined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from spad.cameras import Cameras
from spad.data.shards import Sample
from spad.images.alpha import estimate_alpha
from spad.images.modes import rgba_pixels
from spad.images.posed import check_size
from spad.images.reading import on_white, open_image, read_image

_MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False)
class ViewSet:
    """Images of one object from v cameras, in memory.

    Attributes:
        name: name of the object.
        prompt: prompt or caption of the object; None if unknown.
        images: (v, 3, h, w) float32 in [0, 1], on white.
        alpha: (v, h, w) float32 in [0, 1].
        cameras: the requested cameras.
        alpha_is_estimated: `alpha` was estimated from the white background.

    Raises: ValueError: inconsistent shapes, or values that are NaN or outside [0, 1].
    """

    name: str
    prompt: str | None
    images: Tensor
    alpha: Tensor
    cameras: Cameras
    alpha_is_estimated: bool = False

    def __post_init__(self) -> None:
        views, height, width = len(self.cameras), self.cameras.height, self.cameras.width
        for what, values, shape in (
            ("images", self.images, (views, 3, height, width)),
            ("alpha", self.alpha, (views, height, width)),
        ):
            if tuple(values.shape) != shape:
                raise ValueError(
                    f"{self.name}: expected {what} of shape {shape}, as its {views} cameras have, "
                    f"got {tuple(values.shape)}"
                )
            if values.dtype != torch.float32:
                raise ValueError(f"{self.name}: expected {what} in float32, got {values.dtype}")
            # True for NaN, too.
            wrong = ~((values >= 0) & (values <= 1)).flatten(1).all(1)
            if wrong.any():
                view = int(wrong.nonzero()[0])
                raise ValueError(
                    f"{self.name}: expected {what} in [0, 1], got NaN or numbers outside in view "
                    f"{view}"
                )

    def __len__(self) -> int:
        return len(self.cameras)


@dataclass(frozen=True)
class PosedImages:
    """Images of one object with their cameras: in files or a shard, read on request.

    Attributes:
        uid: id of the object, unique in its folder.
        captions: captions of the object, possibly none.
        cameras: v cameras.
        files: one image file per view, or the suffixes of the members of `sample`.
        sample: location in a shard; None if the images are files.
    """

    uid: str
    captions: tuple[str, ...]
    cameras: Cameras
    files: tuple[str, ...]
    sample: Sample | None = None

    @property
    def prompt(self) -> str | None:
        """The first caption, if there is one."""
        return self.captions[0] if self.captions else None

    def chosen(self, views: Sequence[int]) -> PosedImages:
        """A selection of the views."""
        files = tuple(self.files[view] for view in views)
        return replace(self, cameras=self.cameras[list(views)], files=files)

    def images(self) -> np.ndarray:
        """Images on white, uint8 (v, h, w, 3). Raises: ValueError: as `read`, except on alpha."""
        return np.stack([on_white(Image.fromarray(pixels)) for pixels in self._pixels()])

    def read(self, masks: Path | None = None) -> ViewSet:
        """Read the images with their alpha.

        Args:
            masks: folder of images with the same names, white where the object is, instead of
                alpha.

        Raises: ValueError: an image or mask is missing, unreadable or of another size; some have
            alpha and others not; or all are opaque and their background is not white.
        """
        images = np.stack(list(self._pixels()))
        if masks is not None:
            images[..., 3] = [self._mask(masks, Path(name).stem) for name in self.files]
        return set_from_images(self.uid, images, self.cameras, self.prompt)

    def _pixels(self) -> Iterator[np.ndarray]:
        """uint8 (h, w, 4) of every view."""
        members = {} if self.sample is None else self.sample.read(self.files)
        for name in self.files:
            if self.sample is None:
                place, pixels = name, np.asarray(read_image(Path(name)))
            else:
                place = f"{self.sample.shard}, {self.uid}, {name}"
                pixels = rgba_pixels(open_image(members[name], place))
            check_size(place, pixels, self.cameras)
            yield pixels

    def _mask(self, folder: Path, stem: str) -> np.ndarray:
        """The mask of one image, uint8 (h, w)."""
        path = next(filter(Path.is_file, (folder / f"{stem}{s}" for s in _MASK_SUFFIXES)), None)
        if path is None:
            raise ValueError(
                f"{folder}: expected a mask {stem}{{{','.join(_MASK_SUFFIXES)}}}, got none; masks "
                "have the names of their images"
            )
        mask = np.asarray(read_image(path))
        check_size(path, mask, self.cameras)
        # Transparent pixels are not part of the object, whatever their color.
        return np.minimum(mask[..., :3].max(-1), mask[..., 3])


def set_from_images(
    name: str, pixels: np.ndarray, cameras: Cameras, prompt: str | None = None
) -> ViewSet:
    """A view set from pixels, such as those of a pipeline.

    Args:
        pixels: uint8 (v, h, w, 3) on white, or (v, h, w, 4) with straight alpha.

    Raises: ValueError: another type or shape, images with alpha beside opaque ones, or opaque ones
        on another background than white.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (3, 4):
        raise ValueError(
            f"{name}: expected images as uint8 (views, height, width, 3 or 4), got "
            f"{pixels.dtype} {pixels.shape}"
        )
    values = torch.from_numpy(pixels).movedim(-1, 1).float() / 255
    if values.shape[1] == 3 or (values[:, 3] == 1).all():
        images = values[:, :3].contiguous()
        return ViewSet(name, prompt, images, estimate_alpha(images, name), cameras, True)
    alpha = values[:, 3].contiguous()
    opaque = (alpha == 1).flatten(1).all(1)
    if opaque.any():
        view = int(opaque.nonzero()[0])
        raise ValueError(
            f"{name}: expected alpha in every image or in none, got an opaque view {view} beside "
            "others with alpha"
        )
    images = alpha[:, None] * values[:, :3] + (1 - alpha[:, None])
    # Rounding may exceed white.
    return ViewSet(name, prompt, images.clamp(max=1), alpha, cameras)


def resized(view_set: ViewSet, longer_side: int) -> tuple[Tensor, Tensor, Cameras]:
    """Images, alpha and cameras, reduced to `longer_side` pixels if their longer side is longer.

    Pixels are averaged by area; on white, color and alpha may be averaged separately.
    """
    cameras = view_set.cameras
    longer = max(cameras.height, cameras.width)
    if longer <= longer_side:
        return view_set.images, view_set.alpha, cameras
    size = [max(1, round(n * longer_side / longer)) for n in (cameras.height, cameras.width)]
    images = F.interpolate(view_set.images, size, mode="area")
    alpha = F.interpolate(view_set.alpha[:, None], size, mode="area")[:, 0]
    return images, alpha, cameras.resized(*size)
