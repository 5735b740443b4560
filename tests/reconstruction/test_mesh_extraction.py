"""Laws of meshes made of signed-distance grids: closed, facing out, of the size asked for."""

import math

import numpy as np
import pytest
import torch

from spad.reconstruction.mesh_extraction import extract_mesh, is_watertight
from spad.reconstruction.surface import DistanceGrid
from spad.reconstruction.volume_rendering import Grid


def grid_of(distance_of, cells: int = 40, low: float = -1.2) -> DistanceGrid:
    """A grid of a function of points (n, 3), world, to distances (n,), world."""
    cell = -2 * low / (cells - 1)
    grid = Grid(torch.full((3,), low), cell, (cells, cells, cells))
    distance = distance_of(grid.points()) / cell
    return DistanceGrid(grid, distance, torch.zeros(len(grid), 3), distance)


def ball(center=(0.0, 0.0, 0.0), radius: float = 0.8):
    return lambda points: (points - torch.tensor(center)).norm(dim=1) - radius


def volume(mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].astype(np.float64).transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("num_faces", [400, 2000, 100_000])
def test_a_ball_becomes_a_closed_mesh_that_faces_out(num_faces):
    mesh = extract_mesh(grid_of(ball()), num_faces)
    assert is_watertight(mesh.vertices, mesh.faces)
    assert len(mesh.faces) <= num_faces
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.02)
    outward = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert (mesh.normals * outward).sum(1).min() > 0.9
    assert mesh.num_parts == 1


def test_the_filter_takes_bumps_away_and_leaves_the_shape():
    def bumpy(points):
        bumps = torch.rand(len(points), generator=torch.Generator().manual_seed(0)) - 0.5
        return ball()(points) + 0.05 * bumps

    raw, even = (extract_mesh(grid_of(bumpy), 100_000, rounds) for rounds in (0, 100))
    assert is_watertight(even.vertices, even.faces)
    radii = [np.linalg.norm(mesh.vertices, axis=1) for mesh in (raw, even)]
    assert radii[1].std() < 0.4 * radii[0].std()
    assert radii[1].mean() == pytest.approx(0.8, abs=0.005)
    assert volume(even) == pytest.approx(volume(raw), rel=0.01)
    # What is as thick as a few cells stays as long as it was.
    thin = grid_of(lambda points: ((points / torch.tensor([0.15, 0.15, 0.9])).norm(dim=1) - 1) / 4)
    lengths = [np.ptp(extract_mesh(thin, 100_000, rounds).vertices[:, 2]) for rounds in (0, 100)]
    assert lengths[1] > 0.95 * lengths[0]


def test_axes_are_not_mixed_up():
    mesh = extract_mesh(grid_of(ball((0.3, -0.2, 0.1), 0.5)), 2000)
    middle = (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2
    assert middle == pytest.approx([0.3, -0.2, 0.1], abs=0.02)


def test_hollows_are_filled_and_specks_dropped():
    def shell_and_speck(points):
        shell = torch.maximum(ball()(points), -ball(radius=0.4)(points))
        return torch.minimum(shell, ball((1.0, 1.0, 1.0), 0.07)(points))

    mesh = extract_mesh(grid_of(shell_and_speck), 4000)
    assert mesh.num_parts == 1
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.02)


def test_parts_stay_apart():
    def two(points):
        return torch.minimum(ball((-0.6, 0, 0), 0.4)(points), ball((0.6, 0, 0), 0.4)(points))

    mesh = extract_mesh(grid_of(two), 2000)
    assert mesh.num_parts == 2
    assert is_watertight(mesh.vertices, mesh.faces)


def test_noise_is_closed_too():
    noise = torch.randn(24**3, generator=torch.Generator().manual_seed(0))
    surface = grid_of(lambda points: noise, cells=24)
    for num_faces in (500, 3000, 100_000):
        mesh = extract_mesh(surface, num_faces)
        assert is_watertight(mesh.vertices, mesh.faces)


def test_what_leaves_the_grid_is_closed_at_its_border():
    mesh = extract_mesh(grid_of(lambda points: points[:, 2] - 0.1, cells=12), 5000)
    assert is_watertight(mesh.vertices, mesh.faces)
    assert volume(mesh) > 0


def test_an_empty_shape_is_refused():
    with pytest.raises(ValueError, match="got an empty one"):
        extract_mesh(grid_of(lambda points: torch.ones(len(points))), 100)


def test_an_open_or_doubled_mesh_is_not_watertight():
    mesh = extract_mesh(grid_of(ball(), cells=12), 10_000)
    assert is_watertight(mesh.vertices, mesh.faces)
    assert not is_watertight(mesh.vertices, mesh.faces[1:])
    assert not is_watertight(mesh.vertices, np.concatenate([mesh.faces, mesh.faces[:2]]))
    assert not is_watertight(mesh.vertices, np.concatenate([mesh.faces[1:], mesh.faces[:1, ::-1]]))
