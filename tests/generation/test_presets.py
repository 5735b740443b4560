"""Cameras that other tools expect: where they stand, and the files that the tools read."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from spad.cameras import load_cameras
from spad.generation.presets import PRESETS
from spad.generation.results import write_views

SIXTHS = [30, 90, 150, 210, 270, 330]


def of_instantmesh(azimuth: float, elevation: float) -> list[float]:
    """Direction of a camera in InstantMesh's world, z up and the input view on +x, turned so that
    the input view sees the front, -y."""
    a, e = math.radians(azimuth), math.radians(elevation)
    x, y, z = math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)
    return [y, -x, z]


def of_lgm(azimuth: float) -> list[float]:
    """Direction of LGM's camera, y up and the front on +z as in glTF."""
    x, z = math.sin(math.radians(azimuth)), math.cos(math.radians(azimuth))
    return [x, -z, 0.0]


def of_mvgbench(azimuth: float) -> list[float]:
    """(0, -1, 0) turned counter-clockwise about z, as its script for Blender does."""
    a = math.radians(azimuth)
    return [math.sin(a), -math.cos(a), 0.0]


# The third rows of Wonder3D's 000_VIEW_RT.txt, which are directions of the cameras: its world is
# that of spad.
WONDER3D = {
    "front": [0, -1, 0],
    "front_right": [math.sqrt(0.5), -math.sqrt(0.5), 0],
    "right": [1, 0, 0],
    "back": [0, 1, 0],
    "left": [-1, 0, 0],
    "front_left": [-math.sqrt(0.5), -math.sqrt(0.5), 0],
}

DIRECTIONS = {
    "zero123plus-v1.1": [of_instantmesh(a, e) for a, e in zip(SIXTHS, [30, -20] * 3, strict=True)],
    "zero123plus-v1.2": [of_instantmesh(a, e) for a, e in zip(SIXTHS, [20, -10] * 3, strict=True)],
    "lgm": [of_lgm(a) for a in (0, 90, 180, 270)],
    # The object faces -y, so its left is +x.
    "hunyuan3d-2mv": [[0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]],
    "trellis": [of_instantmesh(a, 20) for a in (0, 90, 180, 270)],
    "mvgbench": [of_mvgbench(22.5 * view) for view in range(16)],
    "era3d": list(WONDER3D.values()),
    "wonder3d": list(WONDER3D.values()),
}


@pytest.mark.parametrize("name", PRESETS)
def test_cameras_stand_where_the_tool_has_them_and_look_at_the_object(name):
    cameras = PRESETS[name].orbit().cameras(8, 8)
    expected = torch.tensor(DIRECTIONS[name], dtype=torch.float32)
    torch.testing.assert_close(
        cameras.centers / cameras.radius[:, None], expected, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(cameras.world_from_cam[:, :3, 2], -expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_the_object_is_inside_the_images(name):
    orbit = PRESETS[name].orbit()
    seen = math.tan(math.asin(1 / orbit.radius[0])) / math.tan(math.radians(orbit.fov_deg[0] / 2))
    assert 0.75 < seen < 1


def test_lenses_of_a_tool_can_be_changed():
    orbit = PRESETS["lgm"].orbit(radius=5.0)
    assert (orbit.radius, orbit.fov_deg) == ((5.0,) * 4, (49.1,) * 4)
    assert PRESETS["wonder3d"].orbit(fov_deg=20.0).fov_deg == (20.0,) * 6


@pytest.fixture(params=PRESETS)
def written(request, tmp_path):
    """A preset and what is written for its tool: a square on white, of another red in each view."""
    preset = PRESETS[request.param]
    cameras = preset.orbit().cameras(64, 64)
    images = []
    for view in range(len(cameras)):
        image = Image.new("RGB", (64, 64), "white")
        image.paste((250 - 10 * view, 40, 40), (16, 16, 48, 48))
        images.append(image)
    write_views(tmp_path, images, cameras, {}, request.param)
    return preset, tmp_path / f"for-{request.param}", cameras


def test_files_are_as_the_tool_reads_them(written):
    preset, folder, _ = written
    files = preset.files
    paths = {p.relative_to(folder).as_posix() for p in folder.rglob("*.png")}
    assert paths == set(files.names)
    count = len(preset.from_front_deg)
    images = [Image.open(folder / name) for name in files.names]
    if files.columns is not None:
        (sheet,) = images
        side, rows = files.image_size, count // files.columns
        assert sheet.size == (files.columns * side, rows * side)
        corners = [(c * side, r * side) for r in range(rows) for c in range(files.columns)]
        images = [sheet.crop((x, y, x + side, y + side)) for x, y in corners]
    backgrounds = {"white": (255, 255, 255), "gray": (127, 127, 127), "transparent": 0}
    for view, image in enumerate(images):
        assert image.size == (files.image_size or 64,) * 2
        assert image.mode == ("RGBA" if files.background == "transparent" else "RGB")
        corner = image.getpixel((1, 1))
        corner = corner[3] if image.mode == "RGBA" else corner
        assert corner == backgrounds[files.background]
        red = image.getpixel((image.width // 2, image.height // 2))[0]
        assert abs(red - (250 - 10 * view)) <= 1, "the views are in another order"


def test_no_white_is_left_on_the_outline(written):
    preset, folder, _ = written
    if preset.files.background == "white":
        return
    with Image.open(folder / preset.files.names[0]) as image:
        pixels = np.asarray(image).reshape(-1, len(image.getbands()))
    if pixels.shape[1] == 4:
        pixels = pixels[pixels[:, 3] > 128]
    assert pixels[:, 1].max() <= 128


def test_mvgbench_gets_two_halves_with_cameras(tmp_path):
    cameras = PRESETS["mvgbench"].orbit().cameras(64, 64)
    images = [Image.new("RGB", (64, 64), "white") for _ in range(16)]
    write_views(tmp_path, images, cameras, {}, "mvgbench")
    for start, half in enumerate(("spad_even", "spad_odd")):
        loaded = load_cameras(tmp_path / "for-mvgbench" / half / "object/transforms_train.json")
        torch.testing.assert_close(loaded.cameras.centers, cameras.centers[start::2])
        assert loaded.image_paths == tuple(f"{view:03d}" for view in range(start, 16, 2))


def test_colored_backgrounds_are_refused(tmp_path):
    cameras = PRESETS["trellis"].orbit().cameras(16, 16)
    with pytest.raises(ValueError, match="0% of their border white"):
        write_views(tmp_path, [Image.new("RGB", (16, 16))] * 4, cameras, {}, "trellis")
