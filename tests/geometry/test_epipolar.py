"""Laws of rays, Plücker coordinates and exact epipolar masks."""

import itertools
import json

import numpy as np
import pytest
import torch

from reference import sampled_epipolar_mask
from spad.cameras import Cameras, load_cameras
from spad.geometry import epipolar_mask, epipolar_mask_from_matrices, plucker, plucker_map
from spad.geometry.epipolar import NARROWEST_BAND
from spad.geometry.rays import pixel_grid, rays, scale_intrinsics

SIZE = dict(height=64, width=64)


def scattered(num_views: int, seed: int) -> Cameras:
    """Cameras anywhere in a small box, looking anywhere, with a principal point off the center."""
    generator = torch.Generator().manual_seed(seed)
    eyes = torch.rand(num_views, 3, generator=generator) - 0.5
    targets = torch.randn(num_views, 3, generator=generator)
    cameras = Cameras.look_at(eyes, targets, **SIZE)
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2, 2] += 10 * torch.rand(num_views, 2, generator=generator)
    return Cameras(cameras.world_from_cam, intrinsics, 64, 64)


RIGS = {
    "ring": Cameras.ring(4, elevation_deg=20.0, **SIZE),
    "opposite": Cameras.orbit([0.0, 0.0], [0.0, 180.0], **SIZE),
    "poles": Cameras.orbit([90.0, -90.0, 0.0], [0.0, 0.0, 30.0], **SIZE),
    "one place": Cameras.orbit([10.0, 10.0, 10.0], [5.0, 5.0, 5.0], radius=[3.5, 3.5, 2.0], **SIZE),
    "inside": scattered(4, seed=3),
}


@pytest.fixture(params=RIGS, ids=str)
def cameras(request) -> Cameras:
    return RIGS[request.param]


def test_rays_pass_through_pixel_centers(cameras):
    small = cameras.resized(8, 8)
    origins, directions = rays(small.world_from_cam, small.intrinsics, 8, 8)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(()))
    for view in range(len(cameras)):
        xy, depth = small[view].project((origins + 2.5 * directions)[view].reshape(-1, 3))
        assert (depth > 0).all()
        assert torch.allclose(xy[0], pixel_grid(8, 8, xy)[:, :2], atol=1e-4)


def test_plucker_moment_is_orthogonal_and_free_of_the_point(cameras):
    origins, directions = rays(cameras.world_from_cam, cameras.intrinsics, 64, 64)
    coordinates = plucker(origins, directions)
    d, m = coordinates.split(3, dim=-1)
    assert (d * m).sum(-1).abs().max() < 1e-5
    assert torch.allclose(plucker(origins + 3 * directions, directions), coordinates, atol=1e-5)
    assert torch.equal(plucker_map(cameras, 64, 64), coordinates.movedim(-1, -3))


def test_plucker_of_a_known_ray():
    origins, directions = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert plucker(origins, directions).tolist() == [[1, 0, 0, 0, 0, -2]]


def seen_points(cameras: Cameras, grid: int, seed: int, near=0.0, far=6.0):
    """Random points on all rays: (query token, view, key token) of each view that sees one."""
    small = cameras.resized(grid, grid)
    origins, directions = (
        x.flatten(0, 2) for x in rays(small.world_from_cam, small.intrinsics, grid, grid)
    )
    tokens = len(origins)
    axes = small.world_from_cam[:, :3, 2].repeat_interleave(grid * grid, dim=0)
    along = (directions * axes).sum(-1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    depth = near + (far - near) * torch.rand(tokens, 1, generator=generator)
    xy, z = small.project(origins + directions * depth / along)
    seen = (z > 1e-4) & (xy >= 0).all(-1) & (xy < grid).all(-1)
    view, token = seen.nonzero(as_tuple=True)
    col, row = xy[view, token].long().unbind(-1)
    return token, view, row * grid + col


@pytest.mark.parametrize("grid", [5, 16])
def test_a_point_on_a_ray_is_in_the_band_of_every_view_that_sees_it(cameras, grid):
    mask = epipolar_mask(cameras, grid, grid, band_width=NARROWEST_BAND)
    count = 0
    for seed in range(10):
        query, view, key = seen_points(cameras, grid, seed)
        assert mask[query, view * grid * grid + key].all()
        count += len(query)
    assert count > 500


def test_depth_range_keeps_the_points_inside_it_and_drops_most_others():
    cameras = RIGS["ring"]
    near, far = 3.0, 4.0
    mask = epipolar_mask(cameras, 16, 16, band_width=NARROWEST_BAND, near=near, far=far)
    query, view, key = seen_points(cameras, 16, seed=0, near=near, far=far)
    assert mask[query, view * 256 + key].all()
    whole = epipolar_mask(cameras, 16, 16, band_width=NARROWEST_BAND)
    assert not (mask & ~whole).any()
    assert mask.sum() < 0.9 * whole.sum()


def test_equals_the_mask_found_by_walking_along_rays(cameras):
    # 2.11 rather than 2: on symmetric rigs many cells lie exactly one cell from a line.
    fast = epipolar_mask(cameras.to(dtype=torch.float64), 6, 6, band_width=2.11)
    slow = sampled_epipolar_mask(cameras, 6, 6, band_width=2.11)
    assert (fast != slow).float().mean() < 1e-3


@pytest.mark.parametrize("radius", [0.3, 1.0, 5.0])
def test_rays_cut_to_a_ball_equal_those_walked_inside_it(cameras, radius):
    fast = epipolar_mask(cameras.to(dtype=torch.float64), 6, 6, band_width=2.11, radius=radius)
    slow = sampled_epipolar_mask(cameras, 6, 6, band_width=2.11, radius=radius)
    # Steps of the walk are 0.6 % of the depth, which moves the ends a little.
    assert (fast != slow).float().mean() < 5e-3


def test_smaller_balls_see_less(cameras):
    sizes = (0.2, 1.0, 10.0, None)
    masks = [epipolar_mask(cameras, 12, 12, 2.11, radius=radius) for radius in sizes]
    for small, large in itertools.pairwise(masks):
        assert (small <= large).all()
    assert masks[0].sum() < masks[1].sum() < masks[-1].sum()


def test_moving_the_world_changes_no_mask(cameras):
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    motion = torch.eye(4)
    motion[:3, :3] = rotation * torch.linalg.det(rotation)
    motion[:3, 3] = torch.tensor([1.0, -2.0, 0.5])
    before = epipolar_mask(cameras, 12, 12, band_width=2.11)
    after = epipolar_mask(cameras.transformed(motion), 12, 12, band_width=2.11)
    # Rounding of float32 poses moves bands by about 1e-5 cells.
    assert (before != after).float().mean() < 1e-3


def test_own_view_is_all_visible_and_permuting_views_permutes_the_mask(cameras):
    mask = epipolar_mask(cameras, 6, 6).reshape(len(cameras), 36, len(cameras), 36)
    for view in range(len(cameras)):
        assert mask[view, :, view].all()
    order = torch.arange(len(cameras)).flip(0)
    permuted = epipolar_mask(cameras[order], 6, 6).reshape(mask.shape)
    assert torch.equal(permuted, mask[order][:, :, order])


def test_wider_bands_contain_narrower_ones(cameras):
    narrow, wide = epipolar_mask(cameras, 12, 12, 1.5), epipolar_mask(cameras, 12, 12, 3.0)
    assert not (narrow & ~wide).any()
    assert wide.sum() > narrow.sum()


def test_same_place_and_direction_see_a_disc_around_the_same_pixel():
    mask = epipolar_mask(RIGS["one place"], 16, 16, band_width=3.0).reshape(3, 256, 3, 256)
    cells = pixel_grid(16, 16, torch.zeros(()))[:, :2]
    disc = torch.cdist(cells, cells) <= 1.5
    assert (mask[0, :, 1] != disc).float().mean() < 1e-3


def test_nothing_behind_a_camera_is_seen():
    """Back to back, each camera's rays in front lie behind the other's picture."""
    eyes = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    cameras = Cameras.look_at(eyes, 2 * eyes, **SIZE)
    mask = epipolar_mask(cameras, 8, 8).reshape(2, 64, 2, 64)
    assert not mask[0, :, 1].any() and not mask[1, :, 0].any()


def test_batches_and_rectangles():
    poses = torch.stack([RIGS["ring"].world_from_cam, RIGS["inside"].world_from_cam])
    intrinsics = torch.stack([RIGS["ring"].intrinsics, RIGS["inside"].intrinsics])
    cells = scale_intrinsics(intrinsics, (64, 64), (6, 9))
    together = epipolar_mask_from_matrices(poses, cells, 6, 9)
    assert together.shape == (2, 4 * 54, 4 * 54)
    for index, name in enumerate(("ring", "inside")):
        assert torch.equal(together[index], epipolar_mask(RIGS[name], 6, 9))


@pytest.mark.parametrize(
    "change",
    [
        {"near": -1.0},
        {"radius": 0.0},
        {"near": 2.0, "far": 1.0},
        {"band_width": 1.0},
        {"band_width": np.nan},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        epipolar_mask(RIGS["ring"], 4, 4, **change)


def test_real_depth_maps_reproject_into_the_bands(shared_dir):
    """Renders of a real object: what two pictures both see lies on the epipolar band."""
    OpenEXR = pytest.importorskip("OpenEXR", reason="reads the sample's depth maps")
    folder = shared_dir / "samples" / "lynx"
    cameras = load_cameras(folder / "cameras.json", height=512, width=512).cameras
    description = json.loads((folder / "cameras.json").read_text())["cameras"]
    right = [i for i, view in enumerate(description) if not view["zero_translation"]]
    cameras, grid = cameras[right], 32
    mask = epipolar_mask(cameras, grid, grid).reshape(len(right), grid**2, len(right), grid**2)
    small = cameras.resized(grid, grid)
    inside = total = 0
    for view, number in enumerate(right):
        channels = OpenEXR.File(str(folder / "depths" / f"{number}.exr")).channels()
        depth = torch.from_numpy(np.asarray(next(iter(channels.values())).pixels, np.float32))
        depth = (depth if depth.ndim == 2 else depth[..., 0])[8::16, 8::16].reshape(-1) * 10
        points = small[view].unproject(pixel_grid(grid, grid, depth)[None, :, :2], depth[None])[0]
        xy, z = small.project(points)
        token = torch.arange(grid**2)
        for other in range(len(right)):
            seen = (depth < 100) & (z[other] > 0) & (xy[other] >= 0).all(-1)
            seen &= (xy[other] < grid).all(-1)
            col, row = xy[other][seen].long().unbind(-1)
            if other != view:
                inside += mask[view, token[seen], other, row * grid + col].sum().item()
                total += int(seen.sum())
    assert total > 1000
    # The sampled depth is that of a pixel next to the cell's center.
    assert inside / total > 0.999
