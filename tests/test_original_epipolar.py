"""The release's masks, against those recorded from it and against their own laws."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spad.cameras import Cameras
from spad.original_epipolar import flat_resize, line_ends, original_mask, original_mask_of

FOV_RAD = 0.702769935131073
# Sets for which the release is defined; its README says what is undefined in the others.
DEFINED = [
    "ortho4",
    "infer8",
    "rand2a",
    "rand2b",
    "rand3",
    "epipole_inside",
    "near_top",
    "near_top_both",
    "near_top_and_bottom",
]
UNDEFINED = [
    "identical2",
    "identical_mod360",
    "opposite2_equator",
    "opposite2_antipodal",
    "top_exact_nan",
]


def release_cameras(polar_deg, azimuth_deg, size: int = 32) -> Cameras:
    elevation = [90 - polar for polar in polar_deg]
    return Cameras.orbit(
        elevation, list(azimuth_deg), radius=3.5, fov_rad=FOV_RAD, height=size, width=size
    )


def recorded(shared_dir, name: str) -> tuple[Cameras, dict, np.ndarray, list]:
    folder = shared_dir / "golden"
    facts = json.loads((folder / f"geom_{name}.json").read_text(encoding="utf-8"))
    arrays = np.load(folder / f"geom_{name}.npz")
    mask = np.unpackbits(arrays["mask_packed"], axis=-1).astype(bool)
    cameras = release_cameras(facts["elevations_deg"], facts["azimuths_deg"])
    return cameras, arrays, mask, facts["pairs"]


def rows_that_differ(mask: np.ndarray, other: np.ndarray, num_views: int) -> np.ndarray:
    """(v_query, n, v_key): whether a token's row within one view differs."""
    return (mask != other).reshape(num_views, -1, num_views, mask.shape[0] // num_views).any(-1)


def near_a_rounding_border(arrays, pairs, num_views: int) -> np.ndarray:
    """(v_query, n, v_key): whether an end of the line lies within 1e-3 of where it rounds."""
    shifted = np.stack([arrays["points_one"], arrays["points_two"]]) - 0.5
    close = (np.abs(shifted - np.round(shifted)) < 1e-3).any(axis=(0, -1))
    result = np.zeros((num_views, close.shape[-1], num_views), dtype=bool)
    for (query, key), rows in zip(pairs, close, strict=True):
        result[query, :, key] = rows
    return result


@pytest.mark.parametrize("name", DEFINED)
def test_masks_equal_the_recorded_ones(shared_dir, name):
    cameras, arrays, mask, pairs = recorded(shared_dir, name)
    differ = rows_that_differ(original_mask_of(cameras).numpy(), mask, len(cameras))
    assert not (differ & ~near_a_rounding_border(arrays, pairs, len(cameras))).any()
    assert differ.sum() <= 3, "a handful, among thousands of rows"


def test_line_ends_equal_the_recorded_ones(shared_dir):
    cameras, arrays, _, pairs = recorded(shared_dir, "rand3")
    ends = line_ends(cameras.world_from_cam, cameras.intrinsics, 32)
    queries, keys = torch.tensor(pairs).T
    expected = torch.from_numpy(np.stack([arrays["points_one"], arrays["points_two"]], axis=-2))
    torch.testing.assert_close(ends[queries, keys].float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dilate", [False, True])
@pytest.mark.parametrize("size", [32, 16, 8])
def test_masks_of_other_sizes_equal_the_recorded_ones(shared_dir, size, dilate):
    folder = shared_dir / "golden"
    facts = json.loads((folder / "geom_masks_sizes.json").read_text(encoding="utf-8"))
    arrays = np.load(folder / "geom_masks_sizes.npz")
    for name, pair in facts["pairs_deg"].items():
        polar, azimuth = zip(pair["src"], pair["tgt"], strict=True)
        mask = original_mask_of(release_cameras(polar, azimuth, size), size, dilate).numpy()
        expected = np.unpackbits(arrays[f"{name}_s{size}_dil{int(dilate)}"], axis=-1)
        assert (mask[: size**2, size**2 :] == expected).all(), name


@pytest.mark.parametrize("name", UNDEFINED)
def test_where_the_release_is_undefined_a_token_still_sees_its_view(shared_dir, name):
    cameras, _, _, _ = recorded(shared_dir, name)
    mask = original_mask_of(cameras)
    assert mask[:1024, :1024].all() and mask[1024:, 1024:].all()


@pytest.mark.parametrize("name", [*DEFINED, "identical2"])
def test_empty_rows_are_those_the_line_cache_of_the_release_would_fill(shared_dir, name):
    path = shared_dir / "golden" / f"geom_{name}_cached.npz"
    if not path.exists():
        pytest.skip("not recorded with the cache")
    cameras, _, _, _ = recorded(shared_dir, name)
    num_views = len(cameras)
    rows = original_mask_of(cameras).view(num_views, 1024, num_views, 1024).any(-1)
    query, pixel, key = (~rows).nonzero().T
    found = torch.stack([query, key, pixel], dim=-1).tolist()
    assert sorted(found) == sorted(np.load(path)["diff_rows"].tolist())


def test_coarser_masks_are_a_nearest_resize_of_the_flattened_matrix():
    cameras = release_cameras([45, 80, 100], [0, 130, 250])
    finest = original_mask_of(cameras)
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
    both = original_mask(poses, intrinsics)
    assert torch.equal(both[0], original_mask_of(first))
    assert torch.equal(both[1], original_mask_of(second))


def test_identical_cameras_see_nothing_of_each_other():
    mask = original_mask_of(release_cameras([60, 60], [20, 380]))
    assert mask[:1024, :1024].all() and not mask[:1024, 1024:].any()


def test_grids_whose_cells_are_no_multiple_of_eight():
    mask = original_mask_of(release_cameras([45, 80], [0, 130], size=6), size=6)
    assert mask.shape == (72, 72) and mask[:36, 36:].any()


def test_pictures_must_be_square():
    cameras = Cameras.evenly_round(2, height=32, width=64)
    with pytest.raises(ValueError, match="expected square pictures"):
        original_mask_of(cameras)
