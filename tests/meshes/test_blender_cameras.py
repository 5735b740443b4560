"""Cameras go through Blender and back without a change."""

import json
import re
import subprocess

import pytest
import torch

from spad.cameras import Cameras, load_cameras, save_transforms
from spad.meshes.blender import SCRIPT, blender_command

CODE = SCRIPT.with_name("blender_cameras.py")


@pytest.fixture(scope="module")
def blender() -> list[str]:
    try:
        command = blender_command()
    except ModuleNotFoundError:
        pytest.skip("bpy is not installed, and SPAD_BLENDER names no Blender")
    return [str(CODE) if part == str(SCRIPT) else part for part in command]


def run(blender: list[str], *arguments: object) -> None:
    done = subprocess.run([*blender, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def off_center(cameras: Cameras) -> Cameras:
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2, 2] += torch.tensor([[3.25, -1.5], [0, 0], [-7, 2.125]])
    return Cameras(cameras.world_from_cam, intrinsics, cameras.height, cameras.width)


@pytest.mark.parametrize("height, width", [(40, 64), (64, 40)])
def test_cameras_are_the_same_after_blender_read_and_wrote_them(blender, tmp_path, height, width):
    cameras = Cameras.orbit([20, 90, -35], [10, 120, 250], [2, 3, 4], height=height, width=width)
    cameras = off_center(cameras)
    save_transforms(tmp_path / "transforms.json", cameras, [f"{view}.png" for view in range(3)])
    script = tmp_path / "through.py"
    script.write_text(
        "import sys, bpy\n"
        f"sys.path.insert(0, {str(CODE.parent)!r})\n"
        "bpy.ops.wm.read_factory_settings(use_empty=True)\n"
        "import blender_cameras as cameras\n"
        "cameras.register()\n"
        "source, once, twice = sys.argv[-3:]\n"
        "assert bpy.ops.import_scene.spad_cameras(filepath=source) == {'FINISHED'}\n"
        "assert bpy.ops.export_scene.spad_cameras(filepath=once) == {'FINISHED'}\n"
        "assert [m.camera.name for m in bpy.context.scene.timeline_markers] == [\n"
        "    'view 000', 'view 001', 'view 002']\n"
        "bpy.ops.wm.read_factory_settings(use_empty=True)\n"
        "cameras.read_cameras(once)\n"
        "bpy.context.scene.objects['view 001'].scale = (2, 2, 2)\n"
        "bpy.context.view_layer.update()\n"
        "cameras.write_cameras(twice)\n"
    )
    once, twice = tmp_path / "cameras.json", tmp_path / "again.json"
    program = [str(script) if part == str(CODE) else part for part in blender]
    run(program, tmp_path / "transforms.json", once, twice)
    for path in (once, twice):
        read = load_cameras(path).cameras
        assert (read.height, read.width) == (height, width)
        torch.testing.assert_close(read.world_from_cam, cameras.world_from_cam, atol=1e-5, rtol=0)
        torch.testing.assert_close(read.intrinsics, cameras.intrinsics, atol=1e-2, rtol=0)


def test_it_runs_without_a_window(blender, tmp_path):
    # The scene that Blender starts with has a camera.
    run(blender, "write", tmp_path / "cameras.json")
    (view,) = json.loads((tmp_path / "cameras.json").read_text())["cameras"]
    assert view["name"] == "Camera"
    assert len(load_cameras(tmp_path / "cameras.json").cameras) == 1
    run(blender, "read", tmp_path / "cameras.json", tmp_path / "new.blend")
    assert (tmp_path / "new.blend").stat().st_size > 0


def test_it_imports_nothing_of_spad():
    assert not re.findall(r"^(?:import|from) spad", CODE.read_text(encoding="utf-8"), re.MULTILINE)
