"""Laws of models made from views: closed, like the object, honest about the views."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from made_views import colored_ball, table, views_of
from spad.cameras import Cameras, save_transforms
from spad.cli import BAD_INPUT, main
from spad.data.view_sets import ViewSet
from spad.reconstruction.config import ReconstructConfig
from spad.reconstruction.mesh_extraction import is_watertight
from spad.reconstruction.model_views import draw_model, on_white
from spad.reconstruction.reconstruct import reconstruct, run_reconstruct, spread_out
from spad.reconstruction.scores import HELD_OUT, LEFT_OUT

SIZE = 64


def ring(count: int = 8, elevation=20.0, scale: float = 1.0, center=(0.0, 0.0, 0.0)) -> Cameras:
    azimuth = [360 * view / count for view in range(count)]
    return Cameras.orbit(
        elevation, azimuth, 3.5 * scale, height=SIZE, width=SIZE, target=list(center)
    )


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


def write_views(folder, views: ViewSet, **fields) -> None:
    (folder / "images").mkdir(parents=True)
    straight = (views.images - 1 + views.alpha[:, None]) / views.alpha[:, None].clamp(min=1e-3)
    rgba = torch.cat([straight.clamp(0, 1), views.alpha[:, None]], dim=1)
    names = [f"images/{view:03d}.png" for view in range(len(views))]
    for name, picture in zip(names, rgba.mul(255).round().byte().movedim(1, -1), strict=True):
        Image.fromarray(picture.numpy()).save(folder / name)
    save_transforms(folder / "transforms.json", views.cameras, names)
    record = json.loads((folder / "transforms.json").read_text()) | fields
    (folder / "transforms.json").write_text(json.dumps(record))


def test_a_model_is_closed_and_like_its_object_from_other_sides(model, table_object):
    assert is_watertight(model.mesh.vertices, model.mesh.faces)
    others = Cameras.orbit([0.0, 10.0, 45.0], [22.0, 140.0, 260.0], height=SIZE, width=SIZE)
    true = views_of(table_object, others)
    images, alpha = on_white(draw_model(model.mesh, others))
    overlap = torch.minimum(alpha, true.alpha).sum() / torch.maximum(alpha, true.alpha).sum()
    assert float(overlap) > 0.9
    assert float((images - true.images).square().mean()) < 10**-2


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


def test_any_origin_and_scale_will_do(table_object, model):
    center, scale = (40.0, -7.0, 3.0), 25.0
    cameras = ring(scale=scale, center=center)
    views = replace(views_of(table_object, ring()), cameras=cameras)
    moved = reconstruct(views, faces=3000, texture_size=128)
    size = moved.mesh.vertices.max(0) - moved.mesh.vertices.min(0)
    assert size == pytest.approx(
        25 * (model.mesh.vertices.max(0) - model.mesh.vertices.min(0)), rel=0.05
    )
    assert moved.scores.mean_iou() > 0.93


def test_held_out_views_are_scored_and_not_used(table_views):
    result = reconstruct(table_views, faces=2000, texture_size=128, hold_out=2, cells=32)
    uses = [score.use for score in result.scores.views]
    assert uses.count(HELD_OUT) == 2
    assert 0.8 < result.scores.mean_iou(HELD_OUT) <= 1


def test_a_view_with_a_wrong_camera_is_left_out_and_named(table_views):
    poses = table_views.cameras.world_from_cam.clone()
    poses[2] = poses[4]
    views = replace(table_views, cameras=replace(table_views.cameras, world_from_cam=poses))
    result = reconstruct(views, faces=1000, texture_size=64, cells=32)
    assert [s.view for s in result.scores.views if s.use == LEFT_OUT] == ["view 2"]
    assert "view 2 is left out" in result.notes[0]
    assert result.scores.mean_iou() > 0.9


def test_parts_that_do_not_touch_are_counted(tmp_path):
    pair = colored_ball(tmp_path, beside=True)
    result = reconstruct(views_of(pair, ring()), faces=1000, texture_size=64, cells=32)
    assert "the model has 2 separate parts" in result.notes


def test_views_from_one_side_are_said(table_object):
    cameras = Cameras.orbit(20.0, [0.0, 15.0, 30.0, 45.0], height=SIZE, width=SIZE)
    result = reconstruct(views_of(table_object, cameras), faces=2000, texture_size=128, cells=32)
    assert any("from one side" in note for note in result.notes)
    assert is_watertight(result.mesh.vertices, result.mesh.faces)


def test_a_cut_off_object_is_said(table_object):
    cameras = ring(scale=0.55)
    result = reconstruct(views_of(table_object, cameras), faces=2000, texture_size=128, cells=32)
    assert any("cut off at the border of view 0" in note for note in result.notes)
    assert is_watertight(result.mesh.vertices, result.mesh.faces)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda views: chosen(views, [0, 1]), "expected 3 views or more, got 2"),
        (lambda views: without_object(views, 3), "got view 3 with nothing in it"),
        (lambda views: scattered(views), "masks that no point in space agrees with"),
    ],
)
def test_views_that_make_no_model_are_refused(table_views, spoil, message):
    with pytest.raises(ValueError, match=message):
        reconstruct(spoil(table_views))


def chosen(views: ViewSet, numbers) -> ViewSet:
    return replace(
        views,
        images=views.images[numbers],
        alpha=views.alpha[numbers],
        cameras=views.cameras[numbers],
    )


def without_object(views: ViewSet, number: int) -> ViewSet:
    images, alpha = views.images.clone(), views.alpha.clone()
    images[number], alpha[number] = 1, 0
    return replace(views, images=images, alpha=alpha)


def scattered(views: ViewSet) -> ViewSet:
    """Each view shows a spot in another corner."""
    images, alpha = torch.ones_like(views.images), torch.zeros_like(views.alpha)
    for view in range(len(views)):
        row, column = 8 + 40 * (view % 2), 8 + 40 * (view // 2 % 2)
        alpha[view, row : row + 6, column : column + 6] = 1
    images -= 0.5 * alpha[:, None]
    return replace(views, images=images, alpha=alpha)


def test_of_many_cameras_those_far_apart_are_used():
    azimuth = np.concatenate([np.linspace(0, 20, 30), [90, 180, 270]])
    cameras = Cameras.orbit(10.0, azimuth.tolist())
    assert spread_out(cameras, 4) == [0, 30, 31, 32]
    assert spread_out(cameras, 33) == list(range(33))


def test_the_command_writes_a_model_and_a_turntable(table_folder, tmp_path, capsys):
    output, turn = tmp_path / "out" / "model.glb", tmp_path / "turn.webp"
    command = ["reconstruct", str(table_folder), "--output", str(output), "--faces", "2000"]
    command += ["--cells", "32", "--turntable", str(turn), "--texture-size", "128"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert str(output) in told
    assert "the model agrees with the views" in told
    mesh = trimesh.load_mesh(output)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight
    assert len(mesh.faces) <= 2000
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


def test_of_many_views_only_some_are_read(table_folder, tmp_path):
    config = ReconstructConfig(
        table_folder, tmp_path / "m.obj", faces=1000, texture_size=64, cells=32, most_views=4
    )
    result, files = run_reconstruct(config)
    assert [score.view for score in result.scores.views] == ["view 0", "view 2", "view 4", "view 6"]
    assert [path.suffix for path in files] == [".obj", ".mtl", ".jpg"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "model.fbx"}, "output to end in .glb"),
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


def test_several_objects_are_not_mixed(table_views, tmp_path):
    for name in ("one", "two"):
        write_views(tmp_path / "all" / name, table_views)
    with pytest.raises(ValueError, match=r"got 2 objects .* \(one, two"):
        run_reconstruct(ReconstructConfig(tmp_path / "all", tmp_path / "m.glb"))
