"""Laws of models made from views: closed, like the object, honest about the views."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from made_views import SIZE, ring, table, views_of, write_views
from spad.cameras import Cameras
from spad.cli import BAD_INPUT, main
from spad.data.view_sets import ViewSet
from spad.files import RECORD
from spad.geometry.focus import object_ball
from spad.meshes.mesh import load_object
from spad.reconstruction.config import ReconstructConfig
from spad.reconstruction.hull_field import cuts_off, hull_distance, outline_distance
from spad.reconstruction.mesh_extraction import extract_mesh, is_watertight
from spad.reconstruction.model_views import draw_model, on_white
from spad.reconstruction.reconstruct import reconstruct, run_reconstruct, spread_out
from spad.reconstruction.scores import HELD_OUT
from spad.reconstruction.surface import FitSettings, draw_surface, fit_surface


@pytest.fixture(scope="module")
def table_object(tmp_path_factory):
    return table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def table_views(table_object) -> ViewSet:
    return views_of(table_object, ring())


@pytest.fixture(scope="module")
def model(table_views):
    return reconstruct(table_views, faces=3000, texture_size=128)


@pytest.fixture
def table_folder(table_views, tmp_path):
    folder = tmp_path / "views"
    write_views(folder, table_views)
    return folder


def test_a_model_is_closed_and_like_its_object_from_other_sides(model, table_object):
    assert is_watertight(model.mesh.vertices, model.mesh.faces)
    others = Cameras.orbit([0.0, 10.0, 45.0], [22.0, 140.0, 260.0], height=SIZE, width=SIZE)
    true = views_of(table_object, others)
    images, alpha = on_white(draw_model(model.mesh, others))
    overlap = torch.minimum(alpha, true.alpha).sum() / torch.maximum(alpha, true.alpha).sum()
    assert float(overlap) > 0.9
    assert float((images - true.images).square().mean()) < 10**-2


def test_a_sheet_stays_thin(tmp_path):
    trimesh.creation.box((1.4, 0.02, 1.0)).export(tmp_path / "sheet.stl")
    sheet = views_of(load_object(tmp_path / "sheet.stl"), ring())
    vertices = reconstruct(sheet, faces=1000, texture_size=64, cells=48).mesh.vertices
    middle = vertices[np.abs(vertices[:, [0, 2]]).max(1) < 0.3]
    # As wide as a cell and a half, each way from its middle.
    assert np.quantile(np.abs(middle[:, 1]), 0.9) < 0.06


def test_cells_are_narrower_for_a_thin_object(tmp_path):
    cells = []
    for size, sides in ((64, (0.1, 0.1, 1.4)), (64, (1, 1, 1.4)), (128, (1, 1, 1.4))):
        trimesh.creation.box(sides).export(tmp_path / "box.stl")
        views = views_of(load_object(tmp_path / "box.stl"), ring().resized(size, size))
        images = (views.images - 1 + views.alpha[:, None]).clamp(0, 1)
        ball, settings = object_ball(views.cameras), FitSettings(coarse_steps=1, fine_steps=1)
        surface = fit_surface(images, views.alpha, views.cameras, ball, settings=settings)
        cells.append(max(surface.grid.shape))
    thin, thick, thick_in_more_pixels = cells
    assert thin > 1.4 * thick
    assert thick_in_more_pixels < 1.3 * thick


def test_the_fine_grid_has_the_hull_that_all_its_points_give(table_views):
    images = (table_views.images - 1 + table_views.alpha[:, None]).clamp(0, 1)
    alpha, cameras = table_views.alpha, table_views.cameras
    settings = FitSettings(coarse_steps=1, fine_steps=1)
    surface = fit_surface(images, alpha, cameras, object_ball(cameras), 72, settings)
    points, cell = surface.grid.points(), surface.grid.cell
    exact = hull_distance(points, outline_distance(alpha), cameras, cuts_off(alpha)) / cell
    near = exact.abs() < 5
    assert 0.1 < float(near.float().mean()) < 0.6
    assert torch.allclose(surface.hull[near], exact[near], atol=1e-4)
    assert torch.equal(surface.hull[~near] > 0, exact[~near] > 0)
    assert float(surface.hull[~near].abs().min()) > 4.5


def test_a_tail_that_one_view_sees_from_its_edge_stays(tmp_path):
    body = trimesh.creation.icosphere(2, 0.5)
    # In a plane with the first camera, before and below the body, and thinner than a pixel.
    place = trimesh.transformations.translation_matrix([0.75, 0, -0.35])
    tail = trimesh.creation.box((0.5, 0.002, 0.5), place)
    trimesh.util.concatenate([body, tail]).export(tmp_path / "fish.stl")
    fish = load_object(tmp_path / "fish.stl")
    views = views_of(fish, ring())
    images = (views.images - 1 + views.alpha[:, None]).clamp(0, 1)
    surface = fit_surface(images, views.alpha, views.cameras, object_ball(views.cameras), 48)
    others = Cameras.orbit(20.0, [75.0, 105.0], height=SIZE, width=SIZE)
    true = views_of(fish, others).alpha
    alpha = draw_surface(surface, others)[:, 3]
    assert float(torch.minimum(alpha, true).sum() / true.sum()) > 0.95


def test_the_side_that_an_object_stands_on_is_flat(tmp_path):
    trimesh.creation.box((1.2, 1.2, 0.8)).export(tmp_path / "box.stl")
    views = views_of(load_object(tmp_path / "box.stl"), ring())
    images = (views.images - 1 + views.alpha[:, None]).clamp(0, 1)
    ball = object_ball(views.cameras)
    lowest = []
    for unseen in (FitSettings.unseen, 1.0):
        settings = FitSettings(unseen=unseen)
        surface = fit_surface(images, views.alpha, views.cameras, ball, 48, settings)
        lowest.append(float(extract_mesh(surface, 2000).vertices[:, 2].min()))
    true = float(load_object(tmp_path / "box.stl").vertices[:, 2].min())
    assert true - lowest[0] < 0.7 * (true - lowest[1])


def test_a_model_says_how_well_it_agrees(model):
    assert len(model.scores.views) == 8
    assert model.scores.mean_iou() > 0.93
    assert model.scores.mean_psnr() > 20
    assert not model.scores.disagreeing
    assert model.notes == ()


def test_the_same_views_make_the_same_model(table_views):
    first, again = (
        reconstruct(table_views, faces=1000, texture_size=64, cells=24) for _ in range(2)
    )
    assert np.array_equal(first.mesh.vertices, again.mesh.vertices)
    assert np.array_equal(first.mesh.texture, again.mesh.texture)


def test_polish_makes_flat_what_carving_leaves_rough(table_views):
    noise = torch.randn(table_views.images.shape, generator=torch.Generator().manual_seed(0))
    alpha, cameras = table_views.alpha, table_views.cameras
    noisy = (table_views.images - 1 + alpha[:, None] + 0.2 * noise * alpha[:, None]).clamp(0, 1)
    bends = []
    for polish in (10.0, 1.0):
        settings = FitSettings(polish=polish)
        surface = fit_surface(noisy, alpha, cameras, object_ball(cameras), 32, settings)
        closed = extract_mesh(surface, 3000)
        mesh = trimesh.Trimesh(closed.vertices, closed.faces)
        bends.append(np.median(mesh.face_adjacency_angles))
    assert bends[0] < 0.8 * bends[1]


def test_views_that_a_model_drew_make_a_smooth_surface(table_views, tmp_path, monkeypatch):
    noise = torch.randn(table_views.images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (table_views.images + 0.2 * table_views.alpha[:, None] * noise).clamp(0, 1)
    write_views(tmp_path / "views", replace(table_views, images=noisy))
    config = ReconstructConfig(tmp_path / "views", faces=3000, texture_size=64, cells=32)

    def made(name, **settings):
        output = tmp_path / f"{name}.stl"
        mesh = run_reconstruct(replace(config, output=output, **settings))[0].mesh
        return trimesh.Trimesh(mesh.vertices, mesh.faces)

    rendered = made("rendered")
    record = tmp_path / "views" / RECORD
    for foreign in ("not JSON", '{"model": "pinhole"}'):
        record.write_text(foreign)
        assert np.array_equal(made(f"beside {len(foreign)}").vertices, rendered.vertices)
    record.write_text('{"prompts": ["a table"], "model": "mini"}')
    drawn = made("drawn")
    assert np.array_equal(made("as drawn", smoothness=0.5).vertices, drawn.vertices)
    assert np.array_equal(made("as rendered", smoothness=0.3).vertices, rendered.vertices)
    monkeypatch.setattr(sys.modules[reconstruct.__module__], "_ROUNDS", 0)
    unfiltered = made("unfiltered")
    angles = [mesh.face_adjacency_angles for mesh in (drawn, unfiltered, rendered)]
    # The filter takes bumps away, which are few; smoothness is in all of the surface.
    assert angles[0].mean() < 0.95 * angles[1].mean()
    assert np.median(angles[1]) < 0.95 * np.median(angles[2])
    with pytest.raises(ValueError, match="expected --smoothness or --network, got both"):
        replace(config, smoothness=1.0, network=tmp_path)


def test_held_out_views_are_scored_and_not_used(table_views):
    result = reconstruct(table_views, faces=2000, texture_size=128, hold_out=2, cells=32)
    uses = [score.use for score in result.scores.views]
    assert uses.count(HELD_OUT) == 2
    assert 0.8 < result.scores.mean_iou(HELD_OUT) <= 1


def test_of_many_cameras_those_far_apart_are_used():
    azimuth = np.concatenate([np.linspace(0, 20, 30), [90, 180, 270]])
    cameras = Cameras.orbit(10.0, azimuth.tolist())
    assert spread_out(cameras, 4) == [0, 30, 31, 32]
    assert spread_out(cameras, 33) == list(range(33))


def test_the_command_writes_a_model_and_a_turntable(table_folder, tmp_path, capsys):
    output, turn = tmp_path / "out" / "model.glb", tmp_path / "turn.webp"
    command = ["reconstruct", str(table_folder), "--output", str(output), "--faces", "600"]
    command += ["--cells", "32", "--turntable", str(turn), "--texture-size", "128"]
    command += ["--splat", str(tmp_path / "splats.ply")]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert str(output) in told
    assert "the model agrees with the views" in told
    assert "the splats agree with the views" in told
    assert len(trimesh.load(tmp_path / "splats.ply").vertices) <= 600
    mesh = trimesh.load_mesh(output)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight
    assert len(mesh.faces) <= 600
    with Image.open(turn) as animation:
        assert animation.n_frames == 36
    assert main(command) == BAD_INPUT
    assert "use --overwrite" in capsys.readouterr().err


def test_masks_may_be_given(table_views, tmp_path):
    gray = torch.where(table_views.alpha[:, None] > 0, table_views.images, 0.5)
    opaque = replace(table_views, images=gray, alpha=torch.ones_like(table_views.alpha))
    write_views(tmp_path / "views", opaque)
    config = ReconstructConfig(
        tmp_path / "views",
        tmp_path / "a.stl",
        masks=tmp_path / "masks",
        faces=1000,
        texture_size=64,
        cells=32,
    )
    with pytest.raises(ValueError, match="border white"):
        run_reconstruct(replace(config, masks=None))
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="expected a mask 000"):
        run_reconstruct(config)
    for view, alpha in enumerate(table_views.alpha):
        mask = Image.fromarray((alpha.numpy() * 255).astype(np.uint8))
        mask.save(tmp_path / "masks" / f"{view:03d}.png")
    result, files = run_reconstruct(config)
    assert files == [tmp_path / "a.stl"]
    assert result.scores.mean_iou() > 0.9


def test_light_is_divided_out_only_where_it_is_known(table_views, tmp_path):
    write_views(tmp_path / "ours", table_views, renderer="embree")
    write_views(tmp_path / "others", table_views)
    quick = {"faces": 1000, "texture_size": 64, "cells": 32, "delight": True}
    result, _ = run_reconstruct(ReconstructConfig(tmp_path / "ours", tmp_path / "a.glb", **quick))
    assert result.mesh.is_lit
    with pytest.raises(ValueError, match="leave --delight out"):
        run_reconstruct(ReconstructConfig(tmp_path / "others", tmp_path / "b.glb", **quick))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "model.fbx"}, "output to end in .glb"),
        ({"splat": "model.splat"}, "splat to end in .ply"),
        ({"turntable": "turn.mp4"}, "turntable to end in .webp or .gif"),
        ({"faces": 10}, "faces of at least 100"),
        ({"cells": 5000}, "cells of at least 24 and at most 512"),
        ({"texture_size": 1}, "texture_size of at least 64"),
        ({"hold_out": -1}, "hold_out of at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, tmp_path):
    paths = {k: tmp_path / v for k, v in settings.items() if isinstance(v, str)}
    with pytest.raises(ValueError, match=message):
        ReconstructConfig(tmp_path, **(settings | paths))
