"""Grids and turntables of views."""

import numpy as np
import pytest
from PIL import Image

from spad.images.grids import prompt_grid, save_turntable, view_grid


def plain_images(count: int, side: int = 16) -> list[Image.Image]:
    """Images of one color each, all different."""
    return [Image.new("RGB", (side, side), (10 * i, 255 - 10 * i, 60)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_turntable_has_every_view_by_azimuth_and_loops(tmp_path, count):
    path = tmp_path / "turntable.webp"
    views = plain_images(count)
    # From view 0 on: 350, 80, 170 ... degrees, given in reverse order after the first.
    azimuth = [350.0] + [350.0 + 60 * i for i in range(count - 1, 0, -1)]
    save_turntable(path, [views[0], *views[:0:-1]], azimuth)
    with Image.open(path) as animation:
        assert animation.n_frames == count
        assert count == 1 or animation.info["loop"] == 0
        for index, view in enumerate(views):
            animation.seek(index)
            frame = np.asarray(animation.convert("RGB"), dtype=int)
            assert np.abs(frame - np.asarray(view, dtype=int)).max() < 12


@pytest.mark.parametrize(
    "count, columns, rows", [(1, 1, 1), (4, 4, 1), (6, 6, 1), (8, 4, 2), (12, 4, 3), (40, 8, 5)]
)
def test_grid_fills_its_rows(count, columns, rows):
    grid = view_grid(plain_images(1) * count)
    assert grid.size == (columns * 18 - 2, rows * 18 - 2)


def test_grid_has_the_views_in_order():
    views = plain_images(8)
    grid = np.asarray(view_grid(views))
    for index, view in enumerate(views):
        row, column = divmod(index, 4)
        tile = grid[row * 18 : row * 18 + 16, column * 18 : column * 18 + 16]
        assert np.array_equal(tile, view)


def test_captions_have_one_line():
    one, two = (prompt_grid({text: plain_images(4, 64)}) for text in ("a b", "a \n\tb"))
    assert one.tobytes() == two.tobytes()


def test_prompt_grid_writes_captions_and_cuts_long_ones():
    short = np.asarray(prompt_grid({"hi": plain_images(4, 64)}))
    assert short[64:].min() < 100, "no ink below the views"
    long = prompt_grid({"word " * 200: plain_images(4, 64), "日本": plain_images(4, 64)})
    assert long.width == 4 * 66 - 2
