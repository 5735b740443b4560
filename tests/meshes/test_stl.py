"""STL files: text and binary ones, however they begin, with the colors that some tools write."""

import struct

import numpy as np
import pytest

from spad.images.color import linear_from_srgb
from spad.meshes.model_file import BARE, DEFAULT_ALBEDO
from spad.meshes.stl import read_stl

TRIANGLES = np.array(
    [[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 2, 0], [0.5, 0, 3]]], dtype="<f4"
)


def binary(head: bytes = b"made by hand", colors=(0, 0)) -> bytes:
    body = b"".join(
        struct.pack("<3f", 0, 0, 1) + t.tobytes() + struct.pack("<H", c)
        for t, c in zip(TRIANGLES, colors, strict=True)
    )
    return head.ljust(80, b" ") + struct.pack("<I", len(TRIANGLES)) + body


def text(name: str = "thing", end: str = "\n") -> bytes:
    lines = [f"solid {name}"]
    for triangle in TRIANGLES.tolist():
        lines += ["facet normal 0 0 1", " outer loop"]
        lines += [f"  vertex {x} {y} {z:e}" for x, y, z in triangle]
        lines += [" endloop", "endfacet"]
    return end.join([*lines, f"endsolid {name}", ""]).encode()


@pytest.mark.parametrize(
    "data",
    [
        binary(), binary(b"solid and binary all the same"), binary() + b"more", text(),
        text(end="\r\n"), text("").upper(), b"\n " + text(), text() + text(),
    ],
)  # fmt: skip
def test_files_of_both_kinds(tmp_path, data):
    (tmp_path / "m.stl").write_bytes(data)
    model = read_stl(tmp_path / "m.stl")
    (part,) = model.parts
    times = len(part.corners) // 2
    assert np.allclose(part.corners, np.tile(TRIANGLES, (times, 1, 1)))
    assert model.materials == (BARE,) and part.colors is None
    assert model.num_vertices == 6 * times


def test_colors_as_viscam_writes_them(tmp_path):
    (tmp_path / "m.stl").write_bytes(binary(colors=(0x8000 | 31 << 10, 0)))
    (part,) = read_stl(tmp_path / "m.stl").parts
    assert part.colors[0].tolist() == [[1, 0, 0, 1]] * 3
    assert np.allclose(part.colors[1, :, :3], DEFAULT_ALBEDO)


def test_colors_as_magics_writes_them(tmp_path):
    head = b"COLOR=" + bytes([0, 128, 255, 255])
    (tmp_path / "m.stl").write_bytes(binary(head, (31, 0x8000)))
    (part,) = read_stl(tmp_path / "m.stl").parts
    assert part.colors[0].tolist() == [[1, 0, 0, 1]] * 3
    expected = linear_from_srgb(np.array([0, 128, 255]) / 255)
    assert np.allclose(part.colors[1, 0, :3], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is it an STL file, and whole"),
        (binary()[:-1], "expected 2 triangles of 50 bytes"),
        (b"x" * 90, "is it an STL file, and whole"),
        (text()[:-60], "is it cut short"),
        (text().replace(b"vertex 1.0", b"vertex one"), "expected numbers after 'vertex'"),
    ],
)
def test_damaged_files_are_one_clear_error(tmp_path, data, words):
    (tmp_path / "m.stl").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read_stl(tmp_path / "m.stl")


@pytest.mark.parametrize("data", [binary(), text()])
def test_too_many_triangles_are_refused(tmp_path, data):
    (tmp_path / "m.stl").write_bytes(data)
    assert len(read_stl(tmp_path / "m.stl", max_faces=2).parts[0].corners) == 2
    with pytest.raises(ValueError, match="--max-faces 1"):
        read_stl(tmp_path / "m.stl", max_faces=1)
