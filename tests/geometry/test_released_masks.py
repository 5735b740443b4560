"""The release's masks: laws. `parity.py` compares them with those recorded from it."""

import pytest
import torch
from torch.nn import functional as F

from parity import DEFINED, DEGENERATE, Golden, release_cameras
from spad.cameras import Cameras
from spad.geometry.released_masks import (
    flat_resize,
    line_ends,
    released_mask,
    released_mask_from_matrices,
)

UNDEFINED = [*DEGENERATE, "top_exact_nan"]


@pytest.fixture(scope="module")
def golden(shared_dir) -> Golden:
    return Golden(shared_dir / "golden")


def test_line_ends_equal_the_recorded_ones(golden):
    cameras, arrays = golden.cameras("rand3"), golden.arrays("geom_rand3")
    ends = line_ends(cameras.world_from_cam, cameras.intrinsics, 32)
    queries, keys = torch.tensor(golden.facts("geom_rand3")["pairs"]).T
    expected = torch.stack([arrays["points_one"], arrays["points_two"]], dim=-2)
    torch.testing.assert_close(ends[queries, keys].float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", UNDEFINED)
def test_where_the_release_is_undefined_a_token_still_sees_its_view(golden, name):
    mask = released_mask(golden.cameras(name))
    assert mask[:1024, :1024].all() and mask[1024:, 1024:].all()


# rand2b was recorded without the cache alone.
CACHED = [*(set(DEFINED) - {"rand2b"}), "identical2", "opposite2_equator", "opposite2_antipodal"]


@pytest.mark.parametrize("name", sorted(CACHED))
def test_empty_rows_are_those_the_line_cache_of_the_release_would_fill(golden, name):
    cameras = golden.cameras(name)
    num_views = len(cameras)
    rows = released_mask(cameras).view(num_views, 1024, num_views, 1024).any(-1)
    query, pixel, key = (~rows).nonzero().T
    found = torch.stack([query, key, pixel], dim=-1).tolist()
    assert sorted(found) == sorted(golden.arrays(f"geom_{name}_cached")["diff_rows"].tolist())


@pytest.mark.parametrize("name", ["identical_mod360", "top_exact_nan"])
def test_where_the_release_sees_no_other_view(golden, name):
    """NaN there: every row between views is one that the cache would fill."""
    rows = golden.arrays(f"geom_{name}_cached")["diff_rows"]
    assert len(rows) == 2048 and not golden.mask(name)[:1024, 1024:].any()


def test_a_camera_straight_above_is_no_exception_here(golden):
    mask = released_mask(golden.cameras("top_exact_nan"))
    assert mask[:1024, 1024:].any(-1).float().mean() > 0.5


def test_coarser_masks_are_a_nearest_resize_of_the_flattened_matrix():
    cameras = release_cameras([45, 80, 100], [0, 130, 250])
    finest = released_mask(cameras)
    for tokens in (256, 64):
        side = 3 * tokens
        expected = F.interpolate(finest[None, None].to(torch.uint8), size=(side, side)).bool()
        assert torch.equal(flat_resize(finest, 3, tokens), expected[0, 0])


def test_flat_resize_wants_a_divisor():
    with pytest.raises(ValueError, match="expected tokens that divide 16"):
        flat_resize(torch.ones(32, 32, dtype=torch.bool), 2, 5)


def test_batches_are_masks_side_by_side():
    first, second = release_cameras([45, 80], [0, 130]), release_cameras([60, 100], [30, 75])
    poses = torch.stack([first.world_from_cam, second.world_from_cam])
    intrinsics = torch.stack([first.intrinsics, second.intrinsics])
    both = released_mask_from_matrices(poses, intrinsics)
    assert torch.equal(both[0], released_mask(first))
    assert torch.equal(both[1], released_mask(second))


def test_identical_cameras_see_nothing_of_each_other():
    mask = released_mask(release_cameras([60, 60], [20, 380]))
    assert mask[:1024, :1024].all() and not mask[:1024, 1024:].any()


def test_grids_whose_cells_are_no_multiple_of_eight():
    mask = released_mask(release_cameras([45, 80], [0, 130], size=6), size=6)
    assert mask.shape == (72, 72) and mask[:36, 36:].any()


def test_pictures_must_be_square():
    cameras = Cameras.ring(2, height=32, width=64)
    with pytest.raises(ValueError, match="expected square images"):
        released_mask(cameras)
