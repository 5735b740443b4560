"""Camera files: round trips, what other programs write, and one clear line for every bad file."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from spad.cameras import (
    Cameras,
    from_blender,
    load_cameras,
    load_colmap,
    load_transforms,
    save_blender,
    save_colmap,
    save_transforms,
    to_blender,
)
from spad.cameras.formats import cameras_record

NAMES = ("images/000.png", "images/a name with blanks.png", "images/002.png")


def cameras_of(kind):
    """Three views at mixed places, a pole among them, 40 high and 64 wide."""
    cameras = Cameras.orbit([20, 90, -35], [10, 120, 250], [2, 3, 4], height=40, width=64)
    if kind == "shared":
        return cameras
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2, 2] += torch.tensor([[3.25, -1.5], [0, 0], [-7, 2.125]])
    intrinsics[1, 0, 0] = intrinsics[1, 1, 1] = 51.0
    if kind == "uneven pixels":
        intrinsics[2, 1, 1] = 77.5
    return Cameras(cameras.world_from_cam, intrinsics, 40, 64)


def assert_same(got, expected, atol=0.0):
    assert (got.height, got.width) == (expected.height, expected.width)
    assert_close(got.world_from_cam, expected.world_from_cam, atol=atol, rtol=0)
    assert_close(got.intrinsics, expected.intrinsics, atol=atol, rtol=0)


def write_image(path, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


@pytest.mark.parametrize("kind", ["shared", "off-center", "uneven pixels"])
def test_transforms_round_trip_exactly(tmp_path, kind):
    cameras = cameras_of(kind)
    save_transforms(tmp_path / "transforms.json", cameras, NAMES)
    for path in (tmp_path / "transforms.json", tmp_path):
        loaded = load_cameras(path)
        assert_same(loaded.cameras, cameras)
        assert loaded.image_paths == NAMES


@pytest.mark.parametrize("kind", ["shared", "off-center", "uneven pixels"])
def test_colmap_round_trip(tmp_path, kind):
    cameras = cameras_of(kind)
    save_colmap(tmp_path / "sparse" / "0", cameras, NAMES)
    for path in (tmp_path, tmp_path / "sparse" / "0", tmp_path / "sparse" / "0" / "images.txt"):
        loaded = load_cameras(path)
        assert_same(loaded.cameras, cameras, atol=1e-6)
        assert loaded.image_paths == NAMES


@pytest.mark.parametrize("kind", ["shared", "off-center"])
def test_blender_round_trip(kind):
    cameras = cameras_of(kind)
    matrix_world, fov_rad, shift = to_blender(cameras)
    got = from_blender(matrix_world, fov_rad, 40, 64, shift[:, 0], shift[:, 1])
    assert_same(got, cameras, atol=2e-5)


@pytest.mark.parametrize("kind", ["shared", "off-center"])
def test_blender_file_round_trip(tmp_path, kind):
    cameras = cameras_of(kind)
    save_blender(tmp_path / "cameras.json", cameras, NAMES)
    loaded = load_cameras(tmp_path)
    assert_same(loaded.cameras, cameras, atol=2e-5)
    assert loaded.image_paths == NAMES


@pytest.mark.parametrize("seed", range(3))
def test_colmap_quaternions_hold_any_rotation(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(50, 3, 3, generator=generator, dtype=torch.float64))[0]
    # Half turns have w = 0, where naive conversions break.
    half_turns = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]).diag_embed().double()
    rotations = torch.cat([q * torch.linalg.det(q)[:, None, None], half_turns])
    poses = torch.eye(4).repeat(len(rotations), 1, 1)
    poses[:, :3, :3] = rotations.float()
    intrinsics = torch.eye(3).repeat(len(rotations), 1, 1)
    cameras = Cameras(poses, intrinsics, 8, 8)
    save_colmap(tmp_path, cameras, [f"{i}.png" for i in range(len(cameras))])
    assert_same(load_colmap(tmp_path).cameras, cameras, atol=1e-6)


def test_saved_transforms_are_what_nerfstudio_reads(tmp_path):
    cameras = Cameras.orbit(0, [0, 90], radius=2, fov_rad=math.pi / 2, height=40, width=64)
    save_transforms(
        tmp_path / "t.json", cameras, ["a.png", Path("b") / "c.png"], mask_path=[1, "m"]
    )
    data = json.loads((tmp_path / "t.json").read_text())
    assert data["camera_model"] == "PINHOLE" and (data["w"], data["h"]) == (64, 40)
    assert [data[k] for k in ("fl_x", "fl_y", "cx", "cy")] == pytest.approx([32, 32, 32, 20])
    assert [frame["file_path"] for frame in data["frames"]] == ["a.png", "b/c.png"]
    assert [frame["mask_path"] for frame in data["frames"]] == [1, "m"]
    # On +x looking at the origin: right is +y, up is +z, back is +x.
    expected = [[0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert np.allclose(data["frames"][0]["transform_matrix"], expected, atol=1e-6)


def test_saved_colmap_is_camera_from_world_with_an_empty_second_line(tmp_path):
    save_colmap(tmp_path, Cameras.orbit(0, [0, 180], radius=2), ["a.png", "b.png"])
    lines = (tmp_path / "images.txt").read_text().split("\n")
    images = [line for line in lines if not line.startswith("#")]
    assert images[0].split()[8:] == ["1", "a.png"] and images[1] == "" and images[3] == ""
    assert np.allclose([float(word) for word in images[0].split()[5:8]], [0, 0, 2], atol=1e-6)
    lenses = (tmp_path / "cameras.txt").read_text().split("\n")
    assert [line.split()[:4] for line in lenses if line[:1].isdigit()] == [
        ["1", "PINHOLE", "256", "256"]
    ]
    assert (tmp_path / "points3D.txt").is_file()


def test_blender_shift_moves_the_frame_right_and_up():
    plain = from_blender(to_blender(Cameras.orbit(0, 0))[0], 0.7, 100, 200)
    moved = from_blender(to_blender(Cameras.orbit(0, 0))[0], 0.7, 100, 200, 0.1, 0.05)
    # What the frame moves towards, the picture moves away from: 20 pixels left, 10 down.
    shift = moved.project(torch.zeros(3))[0] - plain.project(torch.zeros(3))[0]
    assert_close(shift, torch.tensor([[-20.0, 10.0]]), atol=1e-4, rtol=0)


FRAME = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}


def write_json(path, data):
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_nerf_synthetic_files_need_only_an_angle(tmp_path):
    data = {"camera_angle_x": math.pi / 2, "frames": [FRAME | {"file_path": "train/r_0"}]}
    path = write_json(tmp_path / "transforms_train.json", data)
    with pytest.raises(ValueError, match="expected h and w or a readable image, .* give height"):
        load_cameras(path)
    given = load_cameras(path, height=50, width=100).cameras
    assert_close(given.intrinsics[0], torch.tensor([[50.0, 0, 50], [0, 50, 25], [0, 0, 1]]))
    write_image(tmp_path / "train" / "r_0.png", 30, 60)
    assert (load_cameras(path).cameras.height, load_cameras(path).cameras.width) == (30, 60)


def test_size_comes_from_the_image_too(tmp_path):
    path = write_json(tmp_path / "t.json", {"fl_x": 9, "frames": [FRAME | {"file_path": "b.jpg"}]})
    write_image(tmp_path / "b.jpg", 33, 44)
    assert (load_transforms(path).cameras.height, load_transforms(path).cameras.width) == (33, 44)
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="a readable image"):
        load_transforms(path)


def test_a_frames_own_value_wins_over_the_shared_one(tmp_path):
    data = {
        "fl_x": 10.0,
        "fl_y": 12.0,
        "camera_angle_x": 1.0,
        "w": 8,
        "h": 6.0,
        "k1": 0.0,
        "frames": [FRAME, FRAME | {"fl_x": 20, "cx": 1.5}],
    }
    intrinsics = load_transforms(write_json(tmp_path / "t.json", data)).cameras.intrinsics
    expected = torch.tensor([[[10.0, 0, 4], [0, 12, 3]], [[20, 0, 1.5], [0, 12, 3]]])
    assert_close(intrinsics[:, :2], expected)


def test_free_poses_need_no_picture_names(tmp_path):
    frame = {"transform_matrix": FRAME["transform_matrix"]}
    path = write_json(tmp_path / "t.json", {"fl_x": 9, "w": 8, "h": 8, "frames": [frame]})
    assert load_cameras(path).image_paths == ()


LENS = {"fl_x": 9.0, "w": 8, "h": 8}
GOOD = LENS | {"frames": [FRAME, FRAME]}


def far_pose(distance):
    pose = np.eye(4)
    pose[0, 3] = distance
    return pose.tolist()


def bad_frame(**fields):
    return LENS | {"frames": [FRAME, FRAME | fields]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected an object, got"),
        ({}, "'frames' .nerfstudio. or 'cameras' .Blender., got neither"),
        (GOOD | {"fl_x": 1e30}, "focal lengths from .* for camera 0, got"),
        (GOOD | {"fl_x": 1e-30}, "focal lengths from .* for camera 0, got"),
        (GOOD | {"cx": 1e9}, "principal point of camera 0 within"),
        (GOOD | {"w": 10**9, "h": 1}, "width of at most 1000000 pixels"),
        (GOOD | {"w": 1e300}, "width of at most 1000000 pixels"),
        (bad_frame(transform_matrix=far_pose(1e30)), "pose of camera 1 within 1e.07 units"),
        (bad_frame(transform_matrix=far_pose(1e300)), "expected .* pose of camera 1"),
        (GOOD | {"frames": []}, "a list 'frames' with at least 1 entry"),
        (GOOD | {"frames": {"a": 1}}, "a list 'frames' with at least 1 entry"),
        (GOOD | {"frames": [FRAME, 3]}, r"frames\[1\]: expected an object, got 3"),
        (GOOD | {"camera_model": "OPENCV_FISHEYE"}, "perspective camera_model.*undistort"),
        (GOOD | {"is_fisheye": True}, "got a fisheye; undistort"),
        (GOOD | {"k1": 0.1}, "no lens distortion, got k1 = 0.1; undistort the images first"),
        (GOOD | {"k1": "none"}, "expected k1 to be a finite number, got 'none'"),
        (bad_frame(p2=0.1), r"frames\[1\]: expected no lens distortion, got p2"),
        (bad_frame(distortion_params=[0, 1]), r"distortion_params\[1\] = 1"),
        (bad_frame(distortion_params=3), "expected a list distortion_params"),
        (bad_frame(w=9), "images of one size, got 8x8 of view 0 and 9x8 of view 1"),
        (bad_frame(w=0), "whole positive h and w"),
        (bad_frame(h=7.5), "whole positive h and w"),
        (bad_frame(fl_x="9"), r"frames\[1\]: expected fl_x to be a finite number, got '9'"),
        (bad_frame(fl_x=True), "fl_x to be a finite number, got True"),
        (bad_frame(fl_x=None), "fl_x to be a finite number, got None"),
        (bad_frame(fl_x=math.nan), "frames\\[1\\].fl_x to be finite, got NaN"),
        (bad_frame(fl_x=10**400), "fl_x to be a finite number, got 1000"),
        (bad_frame(fl_x=-9), "focal lengths above 0 pixels for camera 1"),
        (bad_frame(fl_y=0), "focal lengths above 0 pixels for camera 1"),
        (bad_frame(camera_angle_x=40), "camera_angle_x between 0 and pi radians, got 40"),
        (bad_frame(transform_matrix=None), "4 rows of 4 numbers, got None"),
        (bad_frame(transform_matrix=[[1, 0, 0, 0]] * 3), "4 rows of 4 numbers"),
        (bad_frame(transform_matrix=[["a"] * 4] * 4), "transform_matrix to be a finite number"),
        (bad_frame(transform_matrix=np.diag([2, 2, 2, 1]).tolist()), "camera 1, got one scaled"),
        (bad_frame(transform_matrix=np.diag([-1, 1, 1, 1]).tolist()), "camera 1, got a mirrored"),
        (bad_frame(file_path=7), r"frames\[1\]: expected file_path to be text, got 7"),
        ({"w": 8, "h": 8, "frames": [FRAME]}, "expected fl_x or camera_angle_x, got neither"),
        ({"fl_x": 9, "w": 8, "frames": [FRAME]}, "expected h to be a finite number, got none"),
        ({"cameras": [{"fov_rad": 1}]}, r"cameras\[0\]: expected matrix_world to be 4 rows"),
        (
            {"cameras": [{"matrix_world": np.eye(4).tolist()}]},
            r"cameras\[0\]: expected fov_rad to be a finite number, got none",
        ),
        (
            {"cameras": [{"matrix_world": np.eye(4).tolist(), "fov_rad": 1}]},
            "expected height and width or a readable image",
        ),
        (
            {
                "height": 8,
                "width": 8,
                "cameras": [{"matrix_world": np.eye(4).tolist(), "fov_rad": 50}],
            },
            "between 0 and pi radians, got 50; if these are degrees",
        ),
    ],
)
def test_malformed_json_is_refused_in_one_line_naming_the_file(tmp_path, data, message):
    path = write_json(tmp_path / "poses.json", data)
    assert_refused(lambda: load_cameras(path), path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON, got none"),
        (b'{"frames": [\n{]}', "expected JSON, got other text in line 2"),
        (b"\xff\xfe\x00", "text in UTF-8"),
        (b"[" * 200_000, "expected JSON"),
        (b'{"frames": ' + b"9" * 5000 + b"}", "expected (JSON|a list 'frames')"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, content, message):
    path = tmp_path / "poses.json"
    path.write_bytes(content)
    assert_refused(lambda: load_cameras(path), path, message)


@pytest.mark.parametrize(("name", "kind"), [("photo.PNG", "image"), ("turn.mp4", "video")])
def test_an_image_in_the_place_of_cameras_is_refused_saying_what_to_give(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=f"expected cameras, got one {kind}; give the folder"):
        load_cameras(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    path = tmp_path / "nothing.json"
    assert_refused(lambda: load_cameras(path), path, "expected a readable file, got No such file")


def assert_refused(call, path, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 400


LENS_LINE = "1 PINHOLE 8 6 9 10 4 3"
IMAGE_LINE = "1 1 0 0 0 0 0 2 1 a.png"


def write_colmap(folder, lenses=(LENS_LINE,), images=(IMAGE_LINE, "")):
    folder.mkdir(exist_ok=True)
    (folder / "cameras.txt").write_text("\n".join(["# a comment", *lenses, ""]), encoding="utf-8")
    (folder / "images.txt").write_text("\n".join(["# a comment", *images, ""]), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("lens", "expected"),
    [
        ("1 PINHOLE 8 6 9 10 4 3", [9, 10, 4, 3]),
        ("1 SIMPLE_PINHOLE 8 6 9 4 3", [9, 9, 4, 3]),
        ("1 SIMPLE_RADIAL 8 6 9 4 3 0", [9, 9, 4, 3]),
        ("1 RADIAL 8 6 9 4 3 0 0.0", [9, 9, 4, 3]),
        ("1 OPENCV 8 6 9 10 4 3 0 0 0 0", [9, 10, 4, 3]),
    ],
)
def test_colmap_lenses_without_distortion_are_pinholes(tmp_path, lens, expected):
    cameras = load_colmap(write_colmap(tmp_path, [lens])).cameras
    (fx, _, cx), (_, fy, cy), _ = cameras.intrinsics[0].tolist()
    assert [fx, fy, cx, cy] == expected and (cameras.height, cameras.width) == (6, 8)


def test_colmap_images_with_points_names_with_blanks_and_windows_lines(tmp_path):
    images = ["7 2 0 0 0 0 0 2 1 my photo 1.png\r", "1.5 2.5 -1 3 4 12\r", "", IMAGE_LINE, ""]
    loaded = load_colmap(write_colmap(tmp_path, images=images))
    assert loaded.image_paths == ("my photo 1.png", "a.png")
    assert_close(loaded.cameras.centers, torch.tensor([[0.0, 0, -2], [0, 0, -2]]))


@pytest.mark.parametrize(
    ("lenses", "images", "file", "message"),
    [
        (["1 OPENCV 8 6 9 10 4 3 0.1 0 0 0"], None, "cameras.txt", "no lens distortion.*undistort"),
        (["1 OPENCV_FISHEYE 8 6 9 9 4 3 0 0 0 0"], None, "cameras.txt", "a perspective model"),
        (["1 PINHOLE 8 6 9 10 4"], None, "cameras.txt, line 2", "4 PARAMS of PINHOLE, got 3"),
        (["1 PINHOLE 8 6 9 10 4 x"], None, "cameras.txt", "finite numbers PARAMS"),
        (["1 PINHOLE 8 0 9 10 4 3"], None, "cameras.txt", "whole positive WIDTH HEIGHT"),
        (["1 PINHOLE 8"], None, "cameras.txt", "CAMERA_ID MODEL WIDTH HEIGHT PARAMS"),
        (["1 PINHOLE 8 6 -9 10 4 3"], None, "images.txt", "focal lengths above 0"),
        (["2 PINHOLE 8 6 9 10 4 3"], None, "images.txt, line 2", "a CAMERA_ID of cameras.txt"),
        (None, [], "images.txt", "at least 1 image"),
        (None, ["1 1 0 0 0 0 0 2 1", ""], "images.txt, line 2", "QW QX QY QZ TX TY TZ"),
        (None, ["1 0 0 0 0 0 0 2 1 a.png", ""], "images.txt", "a quaternion .* got zeros"),
        (None, ["1 nan 0 0 0 0 0 2 1 a.png", ""], "images.txt", "finite numbers QW QX QY QZ"),
        (None, [IMAGE_LINE, IMAGE_LINE], "images.txt, line 3", "the 2D points .* or an empty line"),
        (
            [LENS_LINE, "2 PINHOLE 9 6 9 10 4 3"],
            [IMAGE_LINE, "", "2 1 0 0 0 0 0 2 2 b.png", ""],
            "images.txt",
            "images of one size, got 8x6 of view 0 and 9x6 of view 1",
        ),
    ],
)
def test_malformed_colmap_is_refused_naming_file_and_line(tmp_path, lenses, images, file, message):
    lenses = [LENS_LINE] if lenses is None else lenses
    images = [IMAGE_LINE, ""] if images is None else images
    write_colmap(tmp_path, lenses, images)
    assert_refused(lambda: load_cameras(tmp_path), tmp_path / file, message)


def test_folders_without_cameras_are_refused(tmp_path):
    assert_refused(lambda: load_cameras(tmp_path), tmp_path, "transforms.json, .* or COLMAP")
    (tmp_path / "transforms_test.json").write_text("{}")
    message = "transforms_train.json, got 'transforms_test.json'; name the file"
    assert_refused(lambda: load_cameras(tmp_path), tmp_path, message)


# Numbers of camera models in binary files, https://colmap.github.io/cameras.html.
BINARY_MODELS = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 1,
    "OPENCV": 4,
    "OPENCV_FISHEYE": 5,
    "RATIONAL": 77,
}
BINARY_LENS = (1, "PINHOLE", 8, 6, 9.0, 10.0, 4.0, 3.0)
BINARY_IMAGE = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 1, "a.png")


def write_binary_colmap(folder, lenses=(BINARY_LENS,), images=(BINARY_IMAGE,)):
    """A binary model in which every image has as many 2D points as its index."""
    folder.mkdir(parents=True, exist_ok=True)
    data = struct.pack("<Q", len(lenses))
    for number, model, width, height, *params in lenses:
        data += struct.pack("<IiQQ", number, BINARY_MODELS[model], width, height)
        data += struct.pack(f"<{len(params)}d", *params)
    (folder / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(images))
    for index, (*pose, lens, name) in enumerate(images):
        data += struct.pack("<I7dI", index + 1, *pose, lens) + name.encode() + b"\0"
        data += struct.pack("<Q", index) + struct.pack("<ddq", 1.5, 2.5, -1) * index
    (folder / "images.bin").write_bytes(data)
    return folder


@pytest.mark.parametrize("place", ["sparse/0", "sparse", ".", "colmap/sparse/0"])
def test_binary_colmap_models_say_what_text_says(tmp_path, place):
    cameras = cameras_of("off-center")
    save_colmap(tmp_path / "text", cameras, NAMES)
    of_text = load_cameras(tmp_path / "text")
    lenses, images = [], []
    for line in (tmp_path / "text" / "cameras.txt").read_text().splitlines()[1:]:
        number, model, *words = line.split()
        width, height, *params = map(float, words)
        lenses.append((int(number), model, int(width), int(height), *params))
    for line in (tmp_path / "text" / "images.txt").read_text().splitlines()[2::2]:
        words = line.split(maxsplit=9)
        images.append((*map(float, words[1:8]), int(words[8]), words[9]))
    folder = write_binary_colmap(tmp_path / "project" / place, lenses, images)
    for path in (tmp_path / "project", folder, folder / "images.bin"):
        loaded = load_cameras(path)
        assert_same(loaded.cameras, of_text.cameras)
        assert loaded.image_paths == of_text.image_paths


@pytest.mark.parametrize(
    ("lenses", "images", "file", "message"),
    [
        ([(1, "OPENCV_FISHEYE", 8, 6)], None, "cameras", "perspective .* got OPENCV_FISHEYE"),
        ([(1, "RATIONAL", 8, 6)], None, "cameras", "perspective .* got model 77"),
        ([(1, "OPENCV", 8, 6, 9, 9, 4, 3, 0.1, 0, 0, 0)], None, "cameras", "no lens distortion"),
        ([(1, "PINHOLE", 0, 6, 9, 9, 4, 3)], None, "cameras", "whole positive WIDTH HEIGHT"),
        ([(1, "PINHOLE", 8, 6, math.inf, 9, 4, 3)], None, "cameras", "finite numbers PARAMS"),
        ([(1, "PINHOLE", 8, 6, 1e30, 9, 4, 3)], None, "images", "expected focal lengths from"),
        ([BINARY_LENS, BINARY_LENS], None, "cameras", "every CAMERA_ID once"),
        (None, [], "images", "at least 1 image"),
        (None, [(*BINARY_IMAGE[:6], math.nan, 1, "a")], "images", "finite numbers QW QX QY QZ"),
        (None, [(0.0, *BINARY_IMAGE[1:])], "images", "a quaternion .* got zeros"),
        (None, [(*BINARY_IMAGE[:7], 2, "a")], "images", "a CAMERA_ID of cameras.bin, got 2"),
        (None, [(*BINARY_IMAGE[:6], 1e30, 1, "a")], "images", "within 1e.07 units of the origin"),
        (None, [BINARY_IMAGE, BINARY_IMAGE], "images", "every image once, got 'a.png' again"),
        (None, [(*BINARY_IMAGE[:8], "a" * 5000)], "images", "the name of an image, got no end"),
    ],
)
def test_malformed_binary_colmap_is_refused_naming_the_file(
    tmp_path, lenses, images, file, message
):
    write_binary_colmap(
        tmp_path, lenses or [BINARY_LENS], [BINARY_IMAGE] if images is None else images
    )
    assert_refused(lambda: load_cameras(tmp_path), tmp_path / f"{file}.bin", message)


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin"])
def test_binary_colmap_of_another_length_is_refused(tmp_path, file):
    path = write_binary_colmap(tmp_path) / file
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert_refused(lambda: load_cameras(tmp_path), path, "expected")
    path.write_bytes(struct.pack("<Q", 2**64 - 1) + whole[8:])
    assert_refused(lambda: load_cameras(tmp_path), path, "cut short")
    path.write_bytes(whole + b"\0")
    assert_refused(lambda: load_cameras(tmp_path), path, "1 bytes behind it")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_files_written_on_windows_read_alike(tmp_path, mark):
    write_colmap(tmp_path / "colmap", images=[IMAGE_LINE.replace("a.png", "b\\a.png"), ""])
    save_transforms(tmp_path / "nerf" / "transforms.json", cameras_of("shared")[0], ["b/a.png"])
    blender = {"matrix_world": np.eye(4).tolist(), "fov_rad": 1, "image": "b\\a.png"}
    (tmp_path / "blender").mkdir()
    write_json(
        tmp_path / "blender" / "cameras.json", {"height": 8, "width": 8, "cameras": [blender]}
    )
    for path in tmp_path.rglob("*.*"):
        text = path.read_bytes().replace(b"b/a", rb"b\\a").replace(b"\n", b"\r\n")
        path.write_bytes(mark + text)
    for name in ("colmap", "nerf", "blender"):
        assert load_cameras(tmp_path / name).image_paths == ("b/a.png",)


def test_nerf_synthetic_folders_are_their_training_views(tmp_path):
    data = {"camera_angle_x": 1.0, "frames": [FRAME | {"file_path": "./train/r_0"}]}
    write_json(tmp_path / "transforms_train.json", data)
    write_json(tmp_path / "transforms_test.json", {})
    write_image(tmp_path / "train" / "r_0.png", 30, 60)
    assert load_cameras(tmp_path).image_paths == ("./train/r_0",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path, c: save_transforms(path, c, ["a.png"]), "3 image paths, .* got 1"),
        (lambda path, c: save_transforms(path, c, "abc"), "3 image paths, .* got 1 path"),
        (lambda path, c: save_transforms(path, c, NAMES, depth=[1]), "3 values of depth"),
        (lambda path, c: save_transforms(path, c, NAMES, w=[1, 2, 3]), "extra fields other than"),
        (lambda path, c: save_transforms(path, c, NAMES, x=[{1}, 2, 3]), "text, numbers and lists"),
        (lambda path, c: save_colmap(path, c, ["a\nb", "c", "d"]), "names without line breaks"),
        (lambda path, c: save_colmap(path, c, ["a ", "c", "d"]), "names without line breaks"),
        (lambda path, c: to_blender(cameras_of("uneven pixels")), "square pixels .* in camera 2"),
        (lambda path, c: from_blender(torch.eye(3), 0.7, 8, 8), r"matrix_world of shape \(views"),
        (lambda path, c: from_blender([["x"]], 0.7, 8, 8), "matrix_world to be numbers"),
        (lambda path, c: from_blender(torch.eye(4), [0.7, 0.8], 8, 8), "1 values of fov_rad"),
        (lambda path, c: from_blender(torch.eye(4) * 2, 0.7, 8, 8), "last row of the pose"),
    ],
)
def test_wrong_arguments_leave_nothing_behind(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "out", cameras_of("shared"))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_files(tmp_path, monkeypatch):
    save_colmap(tmp_path, cameras_of("shared"), NAMES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_text

    def fill_the_disk(path, *args, **kwargs):
        if "points3D" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_colmap(tmp_path, cameras_of("off-center"), NAMES)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture(scope="module")
def lynx_folder(shared_dir):
    return shared_dir / "samples" / "lynx"


@pytest.fixture(scope="module")
def lynx(lynx_folder):
    return load_cameras(lynx_folder / "cameras.json")


def test_the_sample_reads_with_sizes_from_its_pictures(lynx):
    cameras = lynx.cameras
    assert (len(cameras), cameras.height, cameras.width) == (12, 512, 512)
    assert lynx.image_paths[11] == "images/11.png"
    # View 6 lost its translation when it was made; reading it is not an error.
    expected = torch.full((12,), 3.5)
    expected[6] = 0
    assert_close(cameras.radius, expected, atol=1e-5, rtol=0)
    assert cameras.azimuth_deg.isfinite().all()


@pytest.mark.parametrize("other", [1, 3, 9, 11])
def test_the_samples_depth_reprojects_onto_the_other_silhouettes(lynx, lynx_folder, other):
    def depth_of(view):
        channels = OpenEXR.File(str(lynx_folder / "depths" / f"{view}.exr")).channels()
        pixels = next(iter(channels.values())).pixels.astype(np.float32)
        return torch.from_numpy(10 * pixels.reshape(512, 512, -1)[..., 0])

    def alpha_of(view):
        return torch.from_numpy(np.array(Image.open(lynx_folder / lynx.image_paths[view]))[..., 3])

    cameras = lynx.cameras[[0, other]]
    rows, columns = (alpha_of(0) == 255).nonzero().unbind(-1)
    xy = torch.stack([columns, rows], dim=-1) + 0.5
    points = cameras[0].unproject(xy[None], depth_of(0)[rows, columns][None])[0]
    (seen_xy,), (seen_depth,) = (value[1:] for value in cameras.project(points))
    column, row = seen_xy.floor().long().clamp(0, 511).unbind(-1)
    on_silhouette = alpha_of(other)[row, column] > 0
    assert on_silhouette.float().mean() > 0.999
    # No surface seen by view 0 can lie nearer to the other camera than what that one sees (within
    # one pixel, as depth jumps at edges).
    nearest = -torch.nn.functional.max_pool2d(-depth_of(other)[None], 3, stride=1, padding=1)[0]
    not_in_front = seen_depth > nearest[row, column] - 0.02
    assert not_in_front.float().mean() > 0.96


@pytest.mark.parametrize("count, is_listed", [(1, True), (9, True), (10, False)])
def test_few_views_say_what_nerfstudio_evaluates_with(tmp_path, count, is_listed):
    names = [f"images/{view:03d}.png" for view in range(count)]
    save_transforms(tmp_path / "transforms.json", Cameras.ring(count), names)
    data = json.loads((tmp_path / "transforms.json").read_text())
    splits = {name: data.get(f"{name}_filenames") for name in ("train", "val", "test")}
    expected = {"train": names, "val": names[:1], "test": names[:1]}
    assert splits == (expected if is_listed else dict.fromkeys(splits))
    assert load_cameras(tmp_path / "transforms.json").image_paths == tuple(names)


def test_cameras_of_a_record_are_the_same_to_the_last_bit(tmp_path):
    cameras = Cameras.orbit([12.3, -45.6], [1.1, 200.7], radius=[2.2, 3.3], height=64, width=96)
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"seed": 0, "cameras": cameras_record(cameras)}))
    loaded = load_cameras(path).cameras
    assert torch.equal(loaded.world_from_cam, cameras.world_from_cam)
    assert torch.equal(loaded.intrinsics, cameras.intrinsics)
    assert (loaded.height, loaded.width) == (64, 96)
    path.write_text(json.dumps({"cameras": {**cameras_record(cameras), "intrinsics": [[1]]}}))
    with pytest.raises(ValueError, match=r"run.json: cameras: expected intrinsics\[0\]\[0\]"):
        load_cameras(path)
