"""Depth maps: of all channels, layers and parts of a file the one that is depth, or a clear no."""

import numpy as np
import pytest
from PIL import Image

from spad.images.depth_maps import depth_channel, read_depth_map

DEPTH = np.linspace(1, 2, 12, dtype="f4").reshape(3, 4)
OTHER = np.full((3, 4), 9, "f4")

# Channels of a file, the depth first.
CHANNELS = {
    "Z": "Z R G B A",
    "Z of a layer": "ViewLayer.Depth.Z ViewLayer.Combined.R ViewLayer.Combined.G",
    "Z beside others of the name": "V.Depth.Z V.Denoising Depth.Z V.Mist.Z V.Normal.Z V.Normal.X",
    "Z beside axes": "A.Z Position.X Position.Y Position.Z",
    "Z before depth": "Z depth",
    "lower case": "z r g b",
    "depth": "depth R G B",
    "Depth": "Depth R G B",
    "layer.depth": "beauty.depth beauty.R beauty.G",
    "depth.V": "Depth.V Image.R Image.G Image.B",
    "depth.R": "depth.R depth.G depth.B Image.R Image.G",
    "V": "V",
    "Y": "Y A",
    "any one": "distance",
}


def write(path, parts: list[dict[str, np.ndarray]], names=None) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    made = []
    for number, channels in enumerate(parts):
        made.append(OpenEXR.Part({}, channels, (names or [f"part{number}"] * 9)[number]))
    OpenEXR.File(made).write(str(path))


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_depth_of_exr_files_is_known_by_its_name(tmp_path, name, backwards):
    channels = CHANNELS[name].split(" ")
    if name == "Z beside others of the name":
        channels = ["V.Depth.Z", "V.Denoising Depth.Z", "V.Mist.Z", "V.Normal.Z", "V.Normal.X"]
    values = {c: OTHER if i else DEPTH for i, c in enumerate(channels)}
    if name == "depth.R":
        values |= {"depth.G": DEPTH, "depth.B": DEPTH}
    if backwards:
        values = dict(reversed(values.items()))
    assert depth_channel(list(values)) == channels[0]
    write(tmp_path / "d.exr", [values])
    assert np.array_equal(read_depth_map(tmp_path / "d.exr"), DEPTH)


@pytest.mark.parametrize("channel", ["Z", "V", "Y", "Depth.Z"])
def test_the_depth_may_be_a_part_of_its_own(tmp_path, channel):
    color = {"R": OTHER, "G": OTHER, "B": OTHER}
    write(tmp_path / "d.exr", [color, {channel: DEPTH}], ["combined", "depth"])
    assert np.array_equal(read_depth_map(tmp_path / "d.exr"), DEPTH)


def test_half_and_whole_numbers_are_depth_too(tmp_path):
    for dtype in ("f2", "u4"):
        write(tmp_path / "d.exr", [{"Z": DEPTH.astype(dtype)}])
        assert np.array_equal(read_depth_map(tmp_path / "d.exr"), DEPTH.astype(dtype))


def test_gray_pictures_are_depth_and_color_pictures_are_not(tmp_path):
    write(tmp_path / "d.exr", [{"R": DEPTH, "G": DEPTH, "B": DEPTH}])
    assert np.array_equal(read_depth_map(tmp_path / "d.exr"), DEPTH)
    write(tmp_path / "d.exr", [{"R": DEPTH, "G": OTHER, "B": DEPTH}])
    with pytest.raises(ValueError, match="channels of a color image"):
        read_depth_map(tmp_path / "d.exr")
    for suffix in (".png", ".npy"):
        pixels = np.zeros((3, 4, 3), "u1")
        pixels[..., 1] = 1
        Image.fromarray(pixels).save(tmp_path / "d.png")
        np.save(tmp_path / "d.npy", pixels)
        with pytest.raises(ValueError, match="got a color image"):
            read_depth_map(tmp_path / f"d{suffix}")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("a.Depth.Z b.Depth.Z", "expected one channel of depth, got a.Depth.Z, b.Depth.Z"),
        ("Normal.X Normal.Y Normal.Z", "got the channels Normal.X, Normal.Y, Normal.Z"),
        ("Mist.Z Combined.R", "such as Z, got the channels"),
        ("", "got the channels none"),
    ],
)
def test_files_without_a_depth_say_what_they_have(names, words):
    with pytest.raises(ValueError, match=words):
        depth_channel(names.split())


def test_pictures_of_16_bits_keep_their_numbers(tmp_path):
    levels = (DEPTH * 1000).astype("u2")
    Image.fromarray(levels).save(tmp_path / "d.png")
    assert np.array_equal(read_depth_map(tmp_path / "d.png"), levels)
    np.save(tmp_path / "d.npy", DEPTH[..., None])
    assert np.array_equal(read_depth_map(tmp_path / "d.npy"), DEPTH)


def claims_much(path) -> None:
    """The header of an array of four terabytes."""
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, header)


DAMAGE = {
    "d.npy": [
        claims_much, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"no array"),
        lambda p: np.save(p, np.array(["a"])), lambda p: np.save(p, np.zeros(3)),
        lambda p: np.save(p, np.array([{}]), allow_pickle=True),
    ],
    "d.png": [
        lambda p: p.write_bytes(b"no picture"),
        lambda p: p.write_bytes(cut_png()[:40] + b"\xff\xfe\x01\x02" + cut_png()[44:]),
        lambda p: Image.new("P", (4, 3)).save(p),
    ],
    "d.exr": [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"v/1\1" + bytes(40))],
}  # fmt: skip


def cut_png() -> bytes:
    from io import BytesIO

    file = BytesIO()
    Image.fromarray((DEPTH * 1000).astype("u2")).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, kinds in DAMAGE.items() for n in range(len(kinds))]
)
def test_damaged_files_are_one_clear_error(tmp_path, name, number):
    if name == "d.exr":
        pytest.importorskip("OpenEXR")
    DAMAGE[name][number](tmp_path / name)
    with pytest.raises(ValueError):
        read_depth_map(tmp_path / name)
