"""The views that figures show: images, cameras and depth maps in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from spad.cameras import Cameras
from spad.data.renders import find_views
from spad.images.posed import read_depth_maps


@dataclass(frozen=True, eq=False)
class ShownViews:
    """Views as figures show them, in memory.

    Attributes:
        cameras: v views.
        images: uint8 (v, h, w, 3), of the cameras' size.
        names: one per view, such as "view 3".
        depth: (v, h, w) z-depth in world units, infinite where there is nothing; or None.
    """

    cameras: Cameras
    images: np.ndarray
    names: tuple[str, ...]
    depth: Tensor | None = None

    def resized(self, longer_side: int) -> tuple[Cameras, np.ndarray]:
        """Cameras and images resized to a longer side of so many pixels."""
        cameras = self.cameras.fit(longer_side)
        size = (cameras.width, cameras.height)
        images = [
            np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS))
            for p in self.images
        ]
        return cameras, np.stack(images)

    def chosen(self, indices: Sequence[int]) -> ShownViews:
        """A selection of the views."""
        indices = list(indices)
        depth = None if self.depth is None else self.depth[indices]
        names = tuple(self.names[i] for i in indices)
        return ShownViews(self.cameras[indices], self.images[indices], names, depth)


def load_views(
    source: Path,
    folder: Path | None = None,
    depth: Path | None = None,
    depth_scale: float | None = None,
) -> ShownViews:
    """The views of a folder or camera file, with depth maps on request.

    Args:
        source, folder: as for `spad.data.renders.find_views`.
        depth, depth_scale: as for `spad.images.posed.read_depth_maps`.

    Raises: ValueError: what these raise, or an image is unreadable or of another size.
    """
    views = find_views(source, folder)
    cameras, maps = views.cameras, None
    if depth is not None:
        maps = read_depth_maps(depth, [Path(file) for file in views.files], cameras, depth_scale)
    names = tuple(f"view {view}" for view in range(len(cameras)))
    return ShownViews(cameras, views.images(), names, maps)
