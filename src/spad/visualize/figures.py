"""The figures of `spad epipolar` as sheets: bands, mask matrices, Plücker maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from spad.geometry import PixelBands, pixel_bands, plucker_map
from spad.geometry.correspondence import (
    FOUND,
    HIDDEN,
    MISSING,
    Correspondences,
    corresponding_points,
)
from spad.images.sheet import Color, Mark, Panel, Shape, Sheet
from spad.visualize.views import ShownViews

# Okabe and Ito's colors, which the color-blind tell apart; without the two that fade on white.
COLORS: tuple[Color, ...] = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 51, 139),
    (230, 159, 0),
    (86, 180, 233),
    (120, 80, 200),
    (90, 90, 90),
)
BOTH, ONLY_FIRST, ONLY_SECOND = (70, 70, 70), COLORS[1], COLORS[0]
PANEL = 400
_MOST_COLUMNS = 4
_LARGEST_MATRIX = 1100
_SHAPES: dict[int, Shape] = {FOUND: "dot", HIDDEN: "circle", MISSING: "cross"}

T = TypeVar("T")


def band_sheet(
    views: ShownViews,
    view: int,
    xy: Tensor,
    band_width: float,
    near: float = 0.0,
    far: float = float("inf"),
) -> Sheet:
    """Pixels of one view, and in every other view their bands: one color for each pixel.

    With depth maps, the true corresponding points are marked on the bands as well.

    Args:
        xy: (n, 2) positions in pixels of the images.
        band_width: in pixels of the images.
        near, far: depths that the rays are cut to, world units.
    """
    cameras, images = views.resized(PANEL)
    scale = cameras.width / views.cameras.width
    bands = pixel_bands(cameras, view, xy * scale, near, far)
    true = None
    if views.depth is not None:
        true = corresponding_points(views.cameras, views.depth, view, xy)
    canvas = images.astype(np.float32)
    for index in range(len(xy)):
        color = np.array(COLORS[index % len(COLORS)], np.float32)
        alpha = _band_alpha(bands, index, band_width * scale / 2)
        canvas += alpha[..., None] * (color - canvas)
    drawn = canvas.round().astype(np.uint8)
    panels = []
    for other, name in enumerate(views.names):
        if other == view:
            marks = tuple(
                Mark(x, y, COLORS[i % len(COLORS)], "ring")
                for i, (x, y) in enumerate((xy * scale).tolist())
            )
            panels.append(Panel(drawn[other], f"{name}, source", marks))
        else:
            marks = () if true is None else _true_marks(true, other, scale)
            panels.append(Panel(drawn[other], name, marks))
    place = ", ".join(f"row {int(y)} column {int(x)}" for x, y in xy[:1].tolist())
    what, whose = (f"{len(xy)} pixels", "their") if len(xy) > 1 else (f"Pixel {place}", "its")
    legend: list[tuple[Shape | Color, str]] = []
    if true is not None:
        states = {
            _SHAPES.get(int(s))
            for s in true.state[:, torch.arange(len(views.names)) != view].flatten()
        }
        words: dict[Shape, str] = {
            "dot": "the same surface point, seen",
            "circle": "hidden behind something",
            "cross": "missing: a wrong camera or depth",
        }
        legend = [(shape, text) for shape, text in words.items() if shape in states]
    title = f"{what} of {views.names[view]}, and {whose} epipolar bands"
    return Sheet(in_rows(panels), title, legend=tuple(legend))


def mask_sheet(masks: dict[str, Tensor], names: Sequence[str]) -> Sheet:
    """Mask matrices, query tokens down and key tokens across, cut into views.

    Of two masks, a third panel shows where they differ.

    Args:
        masks: by name, one or two of bool (v h w, v h w).
        names: of the views.
    """
    labels = tuple(name.removeprefix("view ") for name in names)
    panels = [
        Panel(
            _matrix_image([(mask, BOTH)]),
            f"{name}, {float(mask.float().mean()):.1%} set",
            (),
            labels,
        )
        for name, mask in masks.items()
    ]
    legend: tuple = ((BOTH, "row may attend to column"),)
    if len(masks) == 2:
        (first, a), (second, b) = masks.items()
        parts = [(a & b, (205, 205, 205)), (a & ~b, ONLY_FIRST), (b & ~a, ONLY_SECOND)]
        # A view's block with itself is full in both.
        across_views = (a | b).sum() - len(a) ** 2 // len(names)
        differ = float((a ^ b).sum() / across_views.clamp(min=1))
        panels.append(
            Panel(_matrix_image(parts), f"{differ:.1%} differ, own views aside", (), labels)
        )
        legend += ((ONLY_FIRST, f"only {first}"), (ONLY_SECOND, f"only {second}"))
    tokens = len(next(iter(masks.values()))) // len(names)
    title = f"Epipolar masks of {len(names)} views, {tokens} tokens each"
    return Sheet((tuple(panels),), title, legend=legend)


def token_sheet(
    views: ShownViews, view: int, pixel: Tensor, cells: int, masks: dict[str, Tensor]
) -> Sheet:
    """The tokens that one pixel's token may attend to, by two masks, where they differ in color.

    Args:
        pixel: (2,) position in pixels of the image of `view`.
        cells: tokens along the longer side.
        masks: by name, two of bool (v h w, v h w).
    """
    _, images = views.resized(PANEL)
    grid = views.cameras.fit(cells)
    h, w = grid.height, grid.width
    column, row = (pixel * (w / views.cameras.width)).long().clamp(max=max(h, w) - 1).tolist()
    (first, a), (second, b) = (
        (name, mask[view * h * w + row * w + column].reshape(-1, h, w))
        for name, mask in masks.items()
    )
    parts = [(a & b, BOTH), (a & ~b, ONLY_FIRST), (b & ~a, ONLY_SECOND)]
    panels = []
    for other, name in enumerate(views.names):
        canvas = images[other].astype(np.float32)
        if other == view:
            source = torch.zeros(h, w, dtype=torch.bool)
            source[row, column] = True
            chosen = [(source, COLORS[3])]
        else:
            chosen = [(part[other], color) for part, color in parts]
        for cell_mask, color in chosen:
            pixels = _upsampled(cell_mask, canvas.shape[:2])
            canvas[pixels] += 0.62 * (np.array(color, np.float32) - canvas[pixels])
        title = f"{name}, source" if other == view else name
        panels.append(Panel(canvas.round().astype(np.uint8), title))
    legend = ((BOTH, "both masks"), (ONLY_FIRST, f"only {first}"), (ONLY_SECOND, f"only {second}"))
    title = f"Token row {row} column {column} of {views.names[view]}: what it may attend to"
    return Sheet(in_rows(panels), title, legend=legend)


def plucker_sheet(views: ShownViews) -> Sheet:
    """Ray direction and moment of every pixel, each with its x, y, z as red, green, blue."""
    cameras, images = views.resized(PANEL)
    rays = plucker_map(cameras, cameras.height, cameras.width)
    direction, moment = rays[:, :3], rays[:, 3:]
    largest = float(moment.abs().max())
    # Views of cameras at the origin have no moments at all.
    scaled = moment / largest if largest > 0 else moment
    colored = [
        ((value + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for value in (direction, scaled)
    ]
    rows = [
        tuple(
            Panel(panel, name if row == 0 else "")
            for panel, name in zip(row_images, views.names, strict=True)
        )
        for row, row_images in enumerate([images, *colored])
    ]
    return Sheet(
        tuple(rows),
        "Plücker coordinates of every pixel's ray; red x, green y, blue z",
        ("image", "direction d, ±1", f"moment o × d, ±{largest:.3g}"),
    )


def plucker_channels_sheet(views: ShownViews) -> Sheet:
    """The six Plücker channels one by one: blue below zero, white at zero, red above."""
    cameras, _ = views.resized(PANEL * 5 // 8)
    rays = plucker_map(cameras, cameras.height, cameras.width)
    largest = float(rays[:, 3:].abs().max())
    names = ["dx", "dy", "dz", "mx", "my", "mz"]
    rows = []
    for channel, _ in enumerate(names):
        scale = 1.0 if channel < 3 else max(largest, 1e-30)
        images = _diverging((rays[:, channel] / scale).numpy())
        rows.append(
            tuple(
                Panel(image, name if channel == 0 else "")
                for image, name in zip(images, views.names, strict=True)
            )
        )
    legend = ((_BLUE, f"-1 (m: {-largest:.3g})"), (_RED, f"+1 (m: {largest:.3g})"))
    return Sheet(tuple(rows), "The six Plücker channels", tuple(names), legend)


def in_rows(panels: Sequence[T]) -> tuple[tuple[T, ...], ...]:
    """Panels in rows of up to four, as even as they can be."""
    num_rows = -(-len(panels) // _MOST_COLUMNS)
    columns = -(-len(panels) // num_rows)
    return tuple(tuple(panels[i : i + columns]) for i in range(0, len(panels), columns))


_BLUE, _RED = (33, 102, 172), (178, 24, 43)


def _diverging(values: np.ndarray) -> np.ndarray:
    """Values in [-1, 1] as uint8 colors (..., 3): blue, white, red."""
    strength = np.abs(values)[..., None].clip(0, 1)
    end = np.where(values[..., None] < 0, np.array(_BLUE, np.float32), np.array(_RED, np.float32))
    return (255 + strength * (end - 255)).round().astype(np.uint8)


def _band_alpha(bands: PixelBands, index: int, half_width: float) -> np.ndarray:
    """Opacity of a band's color at every pixel: a pale band, its middle line, soft edges.

    None in the source pixel's own view.
    """
    distance = bands.distance_maps(index).numpy()
    band = 0.32 * np.clip(half_width + 0.5 - distance, 0, 1)
    line = 0.9 * np.clip(1.6 - distance, 0, 1)
    alpha = np.maximum(band, line)
    alpha[bands.view] = 0
    return alpha


def _true_marks(true: Correspondences, view: int, scale: float) -> tuple[Mark, ...]:
    marks = []
    for index, state in enumerate(true.state[:, view].tolist()):
        if state in _SHAPES:
            x, y = (true.xy[index, view] * scale).tolist()
            marks.append(Mark(x, y, COLORS[index % len(COLORS)], _SHAPES[state]))
    return tuple(marks)


def _matrix_image(parts: Sequence[tuple[Tensor, Color]]) -> np.ndarray:
    """Square bool matrices, each in its color on white; large ones are averaged down."""
    side = len(parts[0][0])
    block = -(-side // _LARGEST_MATRIX)
    zoom = max(1, 500 // side)
    canvas = np.full((side // block * zoom,) * 2 + (3,), 255, np.float32)
    for matrix, color in parts:
        end = side // block * block
        blocks = matrix[:end, :end].reshape(end // block, block, end // block, block)
        # Thin lines must stay visible where many tokens share a pixel.
        cover = (
            np.sqrt(blocks.float().mean((1, 3)).numpy())
            if block > 1
            else blocks[:, 0, :, 0].numpy()
        )
        cover = np.kron(cover, np.ones((zoom, zoom))) if zoom > 1 else cover
        canvas += cover[..., None].astype(np.float32) * (np.array(color, np.float32) - canvas)
    return canvas.clip(0, 255).round().astype(np.uint8)


def _upsampled(cells: Tensor, size: tuple[int, int]) -> np.ndarray:
    rows = np.arange(size[0]) * cells.shape[0] // size[0]
    columns = np.arange(size[1]) * cells.shape[1] // size[1]
    return cells.numpy()[rows[:, None], columns]
