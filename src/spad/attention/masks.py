"""Attention masks over the tokens of all views, as dense matrices or as tiles on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spad.geometry import epipolar_mask_from_matrices
from spad.geometry.epipolar import ray_segments
from spad.geometry.rays import pixel_grid

# Which of m tokens of one view may see which of w tokens of another: bool (m, w).
Tile = Callable[[Tensor, Tensor], Tensor]


class AttentionMask(ABC):
    """Allowed pairs of tokens among the views of b objects; b = 1 serves any number of objects.

    Attributes:
        num_objects, num_views, tokens: b, v and the tokens of a view.
    """

    num_objects: int
    num_views: int
    tokens: int

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def dense(self) -> Tensor:
        """Mask as a bool tensor (b, v * tokens, v * tokens), rows are queries; computed once."""
        return self.once("dense", self._make_dense)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Cached result of `make`; backends keep here what they derive from the mask."""
        if name not in self._kept:
            # bf16 cannot resolve half a pixel, so geometry runs without autocast.
            with torch.autocast(self.device.type, enabled=False):
                self._kept[name] = make()
        return self._kept[name]

    @abstractmethod
    def _make_dense(self) -> Tensor:
        """Compute the mask that `dense` returns."""

    @abstractmethod
    def tiles(self, index: int, view: int) -> list[Tile]:
        """Tile functions of one view of an object, one per key view: queries (m,), keys (w,)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device on which plans and matrices of the mask are computed."""


class DenseMask(AttentionMask):
    """Mask given as a bool tensor."""

    def __init__(self, mask: Tensor, num_views: int):
        """mask: bool (b, v * n, v * n)."""
        super().__init__()
        self._mask = mask
        self.num_objects, self.num_views = len(mask), num_views
        self.tokens = mask.shape[-1] // num_views

    def _make_dense(self) -> Tensor:
        return self._mask

    def tiles(self, index: int, view: int) -> list[Tile]:
        rows = self._mask[index].unflatten(0, (self.num_views, -1))[view]
        parts = rows.unflatten(1, (self.num_views, -1)).unbind(1)
        return [lambda queries, keys, part=part: part[queries][:, keys] for part in parts]

    @property
    def device(self) -> torch.device:
        return self._mask.device


class EpipolarMask(AttentionMask):
    """The `exact` epipolar mask of cameras, whole or as tiles; see `spad.geometry.epipolar_mask`.

    Args:
        world_from_cam: (b, v, 4, 4). intrinsics: (b, v, 3, 3), in cells of a height x width grid.
        band_width: in cells.
        radius: rays are cut to a ball about the origin that holds the object, in world units; None
            leaves them whole.
    """

    def __init__(
        self,
        world_from_cam: Tensor,
        intrinsics: Tensor,
        height: int,
        width: int,
        band_width: float,
        radius: float | None = None,
    ):
        super().__init__()
        self.world_from_cam, self.intrinsics = world_from_cam, intrinsics
        self.height, self.width = height, width
        self.band_width, self.radius = band_width, radius
        self.num_objects, self.num_views = world_from_cam.shape[:2]
        self.tokens = height * width

    @property
    def device(self) -> torch.device:
        return self.world_from_cam.device

    def _make_dense(self) -> Tensor:
        return epipolar_mask_from_matrices(
            self.world_from_cam,
            self.intrinsics,
            self.height,
            self.width,
            self.band_width,
            radius=self.radius,
        )

    def tiles(self, index: int, view: int) -> list[Tile]:
        pixels = pixel_grid(self.height, self.width, self.intrinsics)
        segments = ray_segments(
            self.world_from_cam[index],
            self.intrinsics[index],
            pixels,
            radius=self.radius,
            queries=slice(view, view + 1),
        )
        cells = pixels.T

        def tile(other: int, queries: Tensor, keys: Tensor) -> Tensor:
            if other == view:
                return torch.ones(len(queries), len(keys), dtype=torch.bool, device=cells.device)
            across, before, after = (s[0, other, queries] @ cells[:, keys] for s in segments)
            along = torch.maximum(before, after).clamp_(min=0)
            return across.square_().add_(along.square_()) <= (self.band_width / 2) ** 2

        return [
            lambda queries, keys, other=other: tile(other, queries, keys)
            for other in range(self.num_views)
        ]
