"""Damaged camera files: read, or refused in one line that names the file."""

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damaged, damaged_json
from spad.cameras import Cameras, load_cameras, save_colmap, save_transforms, to_blender

FUZZ = settings(max_examples=25, deadline=None)
CAMERAS = Cameras.orbit([20, -35], [10, 250], [2, 4], height=40, width=64)
NAMES = ["a.png", "b c.png"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Contents of camera files by name."""
    folder = tmp_path_factory.mktemp("whole")
    save_transforms(folder / "transforms.json", CAMERAS, NAMES)
    save_colmap(folder, CAMERAS, NAMES)
    matrices, fovs, _ = to_blender(CAMERAS)
    views = [
        {"matrix_world": m, "fov_rad": f, "image": name}
        for m, f, name in zip(matrices.tolist(), fovs.tolist(), NAMES, strict=True)
    ]
    (folder / "cameras.json").write_text(json.dumps({"height": 4, "width": 6, "cameras": views}))
    lens = struct.pack("<QIiQQ4d", 1, 1, 1, 8, 6, 9, 10, 4, 3)
    (folder / "cameras.bin").write_bytes(lens)
    pose = struct.pack("<I7dI", 1, 1, 0, 0, 0, 0, 0, 2, 1)
    points = struct.pack("<Qddq", 1, 0.5, 0.5, -1)
    (folder / "images.bin").write_bytes(struct.pack("<Q", 1) + pose + b"a.png\0" + points)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@FUZZ
@given(st.data())
@pytest.mark.parametrize(
    "name",
    ["transforms.json", "cameras.json", "cameras.txt", "images.txt", "cameras.bin", "images.bin"],
)
def test_what_is_read_is_cameras(whole, tmp_path_factory, name, data):
    content = whole[name]
    if name.endswith(".json") and data.draw(st.booleans()):
        content = damaged_json(data, content.decode()).encode()
    else:
        content = damaged(data, content)
    folder = tmp_path_factory.mktemp("damaged")
    for other, bytes_ in whole.items():
        if other.endswith(name[-4:]):
            (folder / other).write_bytes(bytes_)
    (folder / name).write_bytes(content)
    try:
        loaded = load_cameras(folder / name)
    except ValueError as error:
        assert str(error).startswith(str(folder)) and "\n" not in str(error)
    else:
        assert isinstance(loaded.cameras, Cameras)
        assert len(loaded.image_paths) in (0, len(loaded.cameras))
