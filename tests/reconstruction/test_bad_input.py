"""Views that make no model, or not all of one: each is refused, or a sentence says so."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from made_views import SIZE, colored_ball, ring, table, views_of, write_views
from spad.cameras import Cameras
from spad.data.view_sets import ViewSet
from spad.meshes.mesh import load_object
from spad.reconstruction.config import ReconstructConfig
from spad.reconstruction.mesh_extraction import is_watertight
from spad.reconstruction.reconstruct import reconstruct, run_reconstruct, spread_out
from spad.reconstruction.scores import LEFT_OUT

QUICK = {"faces": 1000, "texture_size": 64, "cells": 32}


@pytest.fixture(scope="module")
def table_object(tmp_path_factory):
    return table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def table_views(table_object) -> ViewSet:
    return views_of(table_object, ring())


def chosen(views: ViewSet, numbers) -> ViewSet:
    return replace(
        views,
        images=views.images[numbers],
        alpha=views.alpha[numbers],
        cameras=views.cameras[numbers],
    )


def without_object(views: ViewSet) -> ViewSet:
    """View 3 is empty, as that of a white object on white is."""
    images, alpha = views.images.clone(), views.alpha.clone()
    images[3], alpha[3] = 1, 0
    return replace(views, images=images, alpha=alpha)


def scattered(views: ViewSet) -> ViewSet:
    """Each view shows a spot in another corner."""
    images, alpha = torch.ones_like(views.images), torch.zeros_like(views.alpha)
    for view in range(len(views)):
        row, column = 8 + 40 * (view % 2), 8 + 40 * (view // 2 % 2)
        alpha[view, row : row + 6, column : column + 6] = 1
    images -= 0.5 * alpha[:, None]
    return replace(views, images=images, alpha=alpha)


def with_wrong_camera(views: ViewSet) -> ViewSet:
    """View 2 is said to be seen from where view 4 is."""
    poses = views.cameras.world_from_cam.clone()
    poses[2] = poses[4]
    return replace(views, cameras=replace(views.cameras, world_from_cam=poses))


def looking_away(views: ViewSet) -> ViewSet:
    """The camera of view 5 looks back over its shoulder."""
    poses = views.cameras.world_from_cam.clone()
    poses[5, :3, [0, 2]] *= -1
    return replace(views, cameras=replace(views.cameras, world_from_cam=poses))


def partly_white(views: ViewSet) -> ViewSet:
    """On white and without alpha, the lower half of the object nearly as white."""
    images = views.images.clone()
    images[:, :, SIZE // 2 :] = 1 - 0.05 * views.alpha[:, None, SIZE // 2 :]
    alpha = (1 - images).amax(1).gt(0.1).float()
    return replace(views, images=images, alpha=alpha, alpha_is_estimated=True)


def wired(folder: Path) -> ViewSet:
    """A small ball with long wires, of a fifth of a cell."""
    parts = [trimesh.creation.icosphere(radius=0.15)]
    for axis in np.eye(3):
        turn = trimesh.geometry.align_vectors((0, 0, 1), axis)
        parts.append(trimesh.creation.cylinder(0.012, 1.9, transform=turn))
    trimesh.util.concatenate(parts).export(folder / "wired.stl")
    return views_of(load_object(folder / "wired.stl"), ring())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda views: chosen(views, [0, 1]), "expected 3 views or more, got 2"),
        (without_object, "got view 3 with nothing in it; a white object on white"),
        (scattered, "masks that no point in space agrees with"),
        (looking_away, "got camera 5 that looks away"),
    ],
)
def test_views_that_make_no_model_are_refused(table_views, spoil, message):
    with pytest.raises(ValueError, match=message):
        reconstruct(spoil(table_views))


@pytest.mark.parametrize(
    ("make", "note"),
    [
        ("wrong camera", "view 2 is left out: the others' outlines are filled"),
        ("partly white", "parts of view 0, .* are nearly white and were taken for background"),
        ("clipped", "the object is cut off at the border of view 0"),
        ("one side", "all views are from one side, within 42 degrees"),
        ("thin", "of the outlines' area is missing: parts thinner than a cell"),
        ("several parts", "the model has 2 separate parts"),
    ],
)
def test_what_views_leave_open_is_said(table_object, table_views, make, note, tmp_path):
    one_side = Cameras.orbit(20.0, [0.0, 15.0, 30.0, 45.0], height=SIZE, width=SIZE)
    views = {
        "wrong camera": lambda: with_wrong_camera(table_views),
        "partly white": lambda: partly_white(table_views),
        "clipped": lambda: views_of(table_object, ring(scale=0.55)),
        "one side": lambda: views_of(table_object, one_side),
        "thin": lambda: wired(tmp_path),
        "several parts": lambda: views_of(colored_ball(tmp_path, beside=True), ring()),
    }[make]()
    result = reconstruct(views, **QUICK)
    assert any(re.search(note, each) for each in result.notes), result.notes
    assert is_watertight(result.mesh.vertices, result.mesh.faces)
    left_out = [score.view for score in result.scores.views if score.use == LEFT_OUT]
    assert left_out == (["view 2"] if make == "wrong camera" else [])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("another size", r"003.png: expected 64x64 pixels .*, got 32x32"),
        ("not an image", r"003.png"),
        ("gone", r"003.png"),
        ("no masks and no white", "border white"),
        ("two objects", r"got 2 objects in .* \(one, two"),
        ("nothing", "expected views with cameras"),
    ],
)
def test_files_that_make_no_model_are_named(table_views, damage, message, tmp_path):
    folder = tmp_path / "views"
    third = folder / "images/003.png"
    if damage == "no masks and no white":
        gray = torch.where(table_views.alpha[:, None] > 0, table_views.images, 0.5)
        opaque = torch.ones_like(table_views.alpha)
        write_views(folder, replace(table_views, images=gray, alpha=opaque))
    elif damage == "two objects":
        write_views(folder / "one", table_views)
        shutil.copytree(folder / "one", folder / "two")
    elif damage == "nothing":
        folder.mkdir()
    else:
        write_views(folder, table_views)
    if damage == "another size":
        Image.open(third).resize((32, 32)).save(third)
    elif damage == "not an image":
        third.write_bytes(b"not an image")
    elif damage == "gone":
        third.unlink()
    with pytest.raises(ValueError, match=message):
        run_reconstruct(ReconstructConfig(folder, tmp_path / "model.glb"))


def test_any_origin_and_scale_will_do(table_object, table_views):
    """As structure from motion leaves them open."""
    cameras = ring(scale=25.0, center=(40.0, -7.0, 3.0))
    moved = reconstruct(replace(table_views, cameras=cameras), **QUICK)
    middle = (moved.mesh.vertices.max(0) + moved.mesh.vertices.min(0)) / 2
    size = moved.mesh.vertices.max(0) - moved.mesh.vertices.min(0)
    true = table_object.vertices.max(0) - table_object.vertices.min(0)
    assert middle == pytest.approx([40, -7, 3], abs=1.5)
    assert size == pytest.approx(25 * true, rel=0.15)
    assert moved.scores.mean_iou() > 0.9


def test_of_hundreds_of_views_a_few_from_all_sides_are_used_and_it_is_said(table_views, tmp_path):
    write_views(tmp_path / "views", table_views)
    record = tmp_path / "views/transforms.json"
    data = json.loads(record.read_text())
    # The same eight, many times over, as a film of a turning object shows them.
    frames = []
    for frame in data["frames"]:
        for number in range(63):
            path = frame["file_path"].replace(".png", f"-{number}.png")
            shutil.copy(tmp_path / "views" / frame["file_path"], tmp_path / "views" / path)
            frames.append(frame | {"file_path": path})
    data["frames"] = frames
    record.write_text(json.dumps(data))
    config = ReconstructConfig(tmp_path / "views", tmp_path / "m.obj", most_views=4, **QUICK)
    result, files = run_reconstruct(config)
    assert "4 of 504 views are used" in result.notes[0]
    assert [s.view for s in result.scores.views] == ["view 0", "view 126", "view 252", "view 378"]
    assert [path.suffix for path in files] == [".obj", ".mtl", ".jpg"]


def test_of_many_cameras_those_far_apart_are_used():
    azimuth = np.concatenate([np.linspace(0, 20, 30), [90, 180, 270]])
    cameras = Cameras.orbit(10.0, azimuth.tolist())
    assert spread_out(cameras, 4) == [0, 30, 31, 32]
    assert spread_out(cameras, 33) == list(range(33))
