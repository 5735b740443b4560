"""Laws of samples along rays and of their composition."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from spad.reconstruction import volume_rendering
from spad.reconstruction.volume_rendering import (
    Grid,
    TableMix,
    composite,
    interpolation,
    occupied_blocks,
    samples_along,
)


def some_grid() -> Grid:
    return Grid(torch.tensor([-1.0, -0.8, -0.5]), 0.1, (21, 17, 11))


def test_points_of_a_grid_are_where_its_index_says():
    grid = some_grid()
    flat = torch.tensor([0, 1, 21, 21 * 17, len(grid) - 1])
    assert grid.index(flat).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [20, 16, 10]]
    assert (grid.index(flat) * torch.tensor(grid.strides)).sum(1).tolist() == flat.tolist()
    assert grid.flat(grid.index(flat)).tolist() == flat.tolist()
    volume = grid.volume(grid.points()[:, 0])
    assert torch.allclose(volume[3, 5], -1 + 0.1 * torch.arange(21))


def test_interpolation_gives_back_what_is_linear():
    grid = some_grid()
    slope, points = torch.tensor([1.0, -2.0, 3.0]), grid.points()
    place = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * (
        torch.tensor(grid.shape) - 1.001
    )
    rows, weights = interpolation(place, grid)
    found = ((points @ slope)[rows] * weights).sum(1)
    assert torch.allclose(found, (grid.low + grid.cell * place) @ slope, atol=1e-5)


@pytest.mark.parametrize("has_scipy", [True, False])
def test_a_mix_of_rows_is_its_slow_twin_in_value_and_gradient(has_scipy, monkeypatch):
    if not has_scipy:
        monkeypatch.setattr(volume_rendering, "csc_array", None)
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(40, 4, generator=generator, dtype=torch.float64).requires_grad_()
    rows = torch.randint(0, 40, (30, 8), generator=generator)
    weights = torch.rand(30, 8, generator=generator, dtype=torch.float64)
    upstream = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    fast = TableMix.apply(table, rows, weights)
    (fast_gradient,) = torch.autograd.grad((fast * upstream).sum(), table)
    slow = (table[rows] * weights[..., None]).sum(1)
    (slow_gradient,) = torch.autograd.grad((slow * upstream).sum(), table)
    assert torch.allclose(fast, slow)
    assert torch.allclose(fast_gradient, slow_gradient)


@pytest.mark.parametrize("direction", [(1.0, 0.0, 0.0), (0.3, -0.9, 0.4), (0.0, 0.0, -1.0)])
def test_samples_come_in_order_and_miss_no_occupied_point(direction):
    grid = some_grid()
    near = grid.points().norm(dim=1) < 0.35
    blocks = occupied_blocks(grid.volume(near))
    way = F.normalize(torch.tensor(direction), dim=0)
    across = torch.linalg.qr(torch.cat([way[:, None], torch.eye(3)], 1))[0][:, 1:3]
    shift = torch.rand(50, 2, generator=torch.Generator().manual_seed(2)) - 0.5
    origins = -3 * way + shift @ across.T
    jitter = torch.rand(50, generator=torch.Generator().manual_seed(3))
    ray, place = samples_along(origins, way.expand(50, 3), grid, blocks, jitter, 0.8)
    assert (ray.diff() >= 0).all()
    world = grid.low + grid.cell * place
    along = world @ way
    same = ray[1:] == ray[:-1]
    assert (along.diff()[same] > 0).all()
    # A dense march: what lies well inside has a sample within a step.
    dense = origins[:, None] + torch.linspace(2, 4, 201)[:, None] * way
    for index in range(50):
        inside = dense[index][dense[index].norm(dim=1) < 0.25]
        if len(inside):
            assert float(torch.cdist(inside, world[ray == index]).amin(1).max()) < 0.8 * 0.1


def slow_composite(values, ray, rays, sharpness):
    """Front to back, one sample after the other."""
    out = torch.zeros(rays, 4, dtype=values.dtype)
    for number in range(rays):
        chosen = (ray == number).nonzero()[:, 0].tolist()
        passing = torch.ones((), dtype=values.dtype)
        for first, second in itertools.pairwise(chosen):
            before, after = (torch.sigmoid(sharpness * values[i, 0]) for i in (first, second))
            stopped = ((before - after) / before).clamp(min=0)
            color = (values[first, 1:] + values[second, 1:]) / 2
            out[number] += passing * stopped * torch.cat([color, torch.ones_like(color[:1])])
            passing = passing * (1 - stopped)
    return out


def test_composition_is_its_slow_twin_in_value_and_gradient():
    generator = torch.Generator().manual_seed(4)
    ray = torch.tensor([0] * 7 + [2] + [3] * 12 + [4] * 5)
    values = torch.randn(len(ray), 4, generator=generator, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    fast, slow = (each(values, ray, 6, 3.0) for each in (composite, slow_composite))
    assert torch.allclose(fast, slow)
    assert (fast[[1, 2, 5]] == 0).all()
    fast_gradient, slow_gradient = (
        torch.autograd.grad((each * upstream).sum(), values)[0] for each in (fast, slow)
    )
    assert slow_gradient.abs().amax(0).gt(0.1).all()
    assert torch.allclose(fast_gradient, slow_gradient)


def test_nothing_is_composed_of_no_samples():
    nothing = torch.zeros(0, 4, requires_grad=True)
    drawn = composite(nothing, torch.zeros(0, dtype=torch.long), 3, 2.0)
    assert drawn.tolist() == [[0.0] * 4] * 3
    assert torch.autograd.grad(drawn.sum(), nothing)[0].shape == (0, 4)


@pytest.mark.parametrize("nearest", [-0.4, 0.0, 0.1, 0.5])
def test_a_ray_past_a_ball_is_covered_by_its_smallest_distance(nearest):
    along = torch.linspace(-4, 4, 801)
    distance = (along**2 + (3 + nearest) ** 2).sqrt() - 3
    values = F.pad(distance[:, None], (0, 3), value=0.25)
    drawn = composite(values, torch.zeros(len(along), dtype=torch.long), 1, 5.0)[0]
    expected = 1 / (1 + math.exp(5 * nearest))
    assert abs(float(drawn[3]) - expected) < 0.01
    assert torch.allclose(drawn[:3], 0.25 * drawn[3])
