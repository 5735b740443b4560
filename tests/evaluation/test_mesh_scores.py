"""Laws of scores of 3D models against references, and `spad evaluate MODEL --reference FILE`."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from spad.cli import main
from spad.evaluation.mesh_scores import in_one_frame, judging_cameras, score_meshes
from spad.evaluation.reference_meshes import MESH_COLUMNS, MeshPair
from spad.evaluation.report import read_report


def write_seat(path: Path, back: float = 1.0, move=(0.0, 0.0, 0.0), scale: float = 1.0) -> Path:
    """A chair without legs: a red seat, a blue back."""
    seat, upright = trimesh.creation.box((1, 1, 0.3)), trimesh.creation.box((0.2, 1, back))
    upright.apply_translation((-0.4, 0, back / 2))
    seat.visual.vertex_colors, upright.visual.vertex_colors = [200, 40, 40, 255], [40, 60, 200, 255]
    mesh = trimesh.util.concatenate([seat, upright])
    mesh.apply_translation(move)
    mesh.apply_scale(scale)
    path.parent.mkdir(exist_ok=True)
    mesh.export(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """References in meters, far off; models of the same chair, and of one with half its back."""
    folder = tmp_path_factory.mktemp("meshes")
    placed = {"move": (9.0, -4.0, 2.0), "scale": 30.0}
    for name in ("same", "shorter"):
        write_seat(folder / f"true/{name}.ply", **placed)
    write_seat(folder / "made/same.ply", **placed)
    write_seat(folder / "made/shorter.ply", back=0.5, **placed)
    return folder


def test_better_models_score_better(files, tmp_path, capsys):
    command = ["evaluate", str(files / "made"), "--reference", str(files / "true")]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "chamfer ↓" in capsys.readouterr().out
    report = read_report(tmp_path / "out")
    same, shorter = report.objects
    assert (same.name, shorter.name) == ("same", "shorter")
    assert (tmp_path / "out" / same.image).is_file()
    for column in MESH_COLUMNS:
        gain = same.scores[column.name] - shorter.scores[column.name]
        assert gain > 0 if column.higher_is_better else gain < 0
    assert same.scores["mesh_psnr"] > 50
    assert same.scores["chamfer"] < 0.01
    assert same.scores["mesh_iou"] == pytest.approx(1, abs=0.01)


def test_a_model_may_lie_where_renders_have_it(files, tmp_path):
    true = files / "true/same.ply"
    _, reference = in_one_frame(MeshPair(true, true))
    rendered = trimesh.Trimesh(reference.vertices, reference.faces, process=False)
    rendered.export(tmp_path / "rendered.stl")
    scores, images = score_meshes(MeshPair(tmp_path / "rendered.stl", true))
    assert scores["chamfer"] < 0.01
    assert scores["mesh_iou"] == pytest.approx(1, abs=0.01)
    assert images.shape == (2 * len(judging_cameras()), 3, 128, 128)


@pytest.mark.parametrize(
    ("model", "reference", "message"),
    [
        ("made/same.ply", None, "expected --reference FILE"),
        ("made", None, "expected --reference FILE"),
        (None, "true", "expected a 3D model, or a folder of them, with --reference"),
        ("made", "true/same.ply", "two model files or two folders"),
        ("made", "other", "none of same.ply"),
        ("empty", "true", "got none in"),
        ("made/same.ply", "other/tower.ply", "boxes that overlap by"),
        ("made/same.ply", "true/nothing.glb", "no such file"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(
    files, model, reference, message, tmp_path, capsys
):
    write_seat(files / "other/tower.ply", move=(0, 0, 500))
    (files / "empty").mkdir(exist_ok=True)
    given = [] if model is None else [str(files / model)]
    given += ["--model", "mini"] if model is None else []
    given += [] if reference is None else ["--reference", str(files / reference)]
    try:
        code = main(["evaluate", *given, "--output", str(tmp_path / "out")])
    # So the parser answers settings that contradict each other.
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_judging_cameras_see_the_object_from_all_around():
    cameras = judging_cameras()
    x, y, _ = cameras.centers.numpy().T
    azimuth = np.sort(np.degrees(np.arctan2(y, x)))
    assert np.diff(azimuth).max() < 75
