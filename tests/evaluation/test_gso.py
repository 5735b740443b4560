"""MVGBench's renders of scanned objects: a folder of their form is read, and others refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spad.cameras import Cameras
from spad.cli import main
from spad.evaluation import evaluate as command
from spad.evaluation.gso import gso_label, read_gso
from spad.evaluation.report import read_report

RENDERS = "gso100-spad-v4-elev000-amb1.0"
CAMERAS = Cameras.ring(4, 0.0, -90.0, height=64, width=64)


@pytest.fixture
def gso(tmp_path) -> Path:
    """Two objects of four views, as MVGBench's script for Blender writes them."""
    blender = CAMERAS.world_from_cam @ torch.diag(torch.tensor([1.0, -1, -1, 1]))
    for number, name in enumerate(("alarm", "backpack")):
        folder = tmp_path / "gso100" / name / RENDERS
        folder.mkdir(parents=True)
        for view in range(4):
            pixels = np.zeros((64, 64, 4), np.uint8)
            pixels[16:48, 10 + 5 * view : 40] = (200, 60 * number, 90, 255)
            Image.fromarray(pixels).save(folder / f"{view:03d}.png")
        frames = [
            {"file_path": f"./{view:03d}", "transform_matrix": pose.tolist()}
            for view, pose in enumerate(blender)
        ]
        about = {"obj_path": "model.obj", "camera_angle_x": 0.702769935131073, "object_size": 0.1}
        about |= {"obj_center": [0, 0, 0], "elevation": 0.0, "distance": 3.5, "frames": frames}
        (folder / "transforms.json").write_text(json.dumps(about, indent=2))
    return tmp_path / "gso100"


def test_objects_are_read_with_their_cameras_in_order(gso):
    views = read_gso(gso)
    assert [one.uid for one in views] == ["alarm", "backpack"]
    torch.testing.assert_close(
        views[0].cameras.world_from_cam, CAMERAS.world_from_cam, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(views[0].cameras.intrinsics, CAMERAS.intrinsics, atol=1e-3, rtol=0)
    assert [Path(name).name for name in views[1].files] == [f"{i:03d}.png" for i in range(4)]
    assert views[0].read().alpha[3].sum() == 32 * 15
    assert gso_label(views).startswith(f"GSO by MVGBench, {RENDERS}, ")


def another_name(gso: Path) -> None:
    (gso / "alarm" / RENDERS).rename(gso / "alarm/gso100-sv3d-v21-elev012-amb1.0")


def two_kinds(gso: Path) -> None:
    shutil.copytree(gso / "alarm" / RENDERS, gso / "alarm/other")


def one_view_less(gso: Path) -> None:
    path = gso / "backpack" / RENDERS / "transforms.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"frames": about["frames"][:3]}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (another_name, "expected renders of one kind"),
        (two_kinds, "of alarm; move the others elsewhere"),
        (one_view_less, "got 3 of backpack and 4 of alarm"),
        (lambda gso: (gso / "alarm" / RENDERS / "002.png").unlink(), "frames.2.: expected"),
        (lambda gso: [shutil.rmtree(each / RENDERS) for each in gso.iterdir()], "got none"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_other_folders_are_refused(gso, spoil, message):
    spoil(gso)
    with pytest.raises(ValueError, match=message):
        read_gso(gso)


def test_novel_views_are_generated_from_the_front(gso, tiny_pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "METRICS", ())
    output = tmp_path / "out"
    words = ["evaluate", "--model", str(tiny_pipeline_folder), "--gso", str(gso), "--steps", "1"]
    assert main([*words, "--output", str(output)]) == 0
    report = read_report(output)
    assert report.protocol.startswith("GSO by MVGBench")
    assert [(one.part, one.name) for one in report.objects] == [
        ("novel", "alarm"),
        ("novel", "backpack"),
    ]
    # Input and truth above, in their order; what was generated below.
    with Image.open(output / report.objects[0].image) as shown:
        front = np.asarray(shown.convert("RGB"))[:64, :64]
    assert (front[32, 12] < 250).any() and (front[32, 45] > 250).all()
    assert "| Zero-1-to-3 | 16.1 | 0.82 | 0.183 |" in (output / "report.md").read_text()
