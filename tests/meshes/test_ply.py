"""PLY files: every kind of file, face and color means what it says, by whatever name."""

import struct

import numpy as np
import pytest
from PIL import Image

from spad.images.color import linear_from_srgb
from spad.meshes.model_file import BARE
from spad.meshes.ply import read_ply

POINTS = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 1]]
FORMATS = ["ascii", "binary_little_endian", "binary_big_endian"]
CODES = {
    "char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f",
    "double": "d",
}  # fmt: skip


def write(path, kind: str, elements: dict, comments=()):
    """Elements by name, each (properties, rows); a list is written ("list", length, type, name)."""
    head = ["ply", f"format {kind} 1.0", *(f"comment {c}" for c in comments)]
    body = b""
    order = ">" if kind == "binary_big_endian" else "<"
    for name, (properties, rows) in elements.items():
        head.append(f"element {name} {len(rows)}")
        head += ["property " + " ".join(p) for p in properties]
        for row in rows:
            words = []
            for p, value in zip(properties, row, strict=True):
                values = [(p[-2], v) for v in value] if p[0] == "list" else [(p[0], value)]
                if p[0] == "list":
                    values.insert(0, (p[1], len(value)))
                words += [(CODES[t], v) for t, v in values]
            if kind == "ascii":
                body += (" ".join(str(v) for _, v in words) + "\n").encode()
            else:
                body += b"".join(struct.pack(order + code, v) for code, v in words)
    path.write_bytes("\n".join([*head, "end_header\n"]).encode() + body)
    return path


XYZ = [("float", axis) for axis in "xyz"]
INDICES = [("list", "uchar", "int", "vertex_indices")]
SHADES = np.array([[0, 51, 102], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])


def colored(names, kind: str, scale: float):
    """Vertices with colors of a type."""
    rows = [[*p, *(np.array(c) * scale).tolist()] for p, c in zip(POINTS, SHADES, strict=True)]
    if kind not in ("float", "double"):
        rows = [[*row[:3], *map(round, row[3:])] for row in rows]
    return [*XYZ, *((kind, name) for name in names)], rows


def corners_of(model) -> np.ndarray:
    return np.concatenate([part.corners for part in model.parts])


FACES = {
    "triangles": ([[0, 1, 2], [0, 2, 3]], [[0, 1, 2], [0, 2, 3]]),
    "quad": ([[0, 1, 2, 3]], [[0, 1, 2], [0, 2, 3]]),
    "mixed": ([[1, 4, 2], [0, 1, 2, 3]], [[1, 4, 2], [0, 1, 2], [0, 2, 3]]),
    "degenerate": ([[0, 1], [0, 1, 2], []], [[0, 1, 2]]),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("indices", ["vertex_indices", "vertex_index"])
@pytest.mark.parametrize("types", [("uchar", "int"), ("int", "uint"), ("ushort", "uchar")])
def test_faces_of_every_kind_of_file(tmp_path, kind, name, indices, types):
    faces, triangles = FACES[name]
    path = write(
        tmp_path / "m.ply", kind,
        {
            "vertex": ([("double", "x"), ("float", "y"), ("int", "z")], POINTS),
            "face": ([("list", *types, indices), ("uchar", "flags")], [[f, 7] for f in faces]),
            "edge": ([("int", "vertex1"), ("int", "vertex2")], [[0, 1]]),
        },
    )  # fmt: skip
    model = read_ply(path)
    assert np.array_equal(corners_of(model), np.array(POINTS, float)[triangles])
    assert model.materials == (BARE,) and model.num_vertices == 5
    assert model.notes == ("has lines, which are left out",)


@pytest.mark.parametrize("kind", FORMATS)
def test_strips(tmp_path, kind):
    strip = [0, 1, 3, 2, -1, 1, 4, 2]
    strips = ([("list", "int", "int", "vertex_indices")], [[strip]])
    path = write(tmp_path / "m.ply", kind, {"vertex": (XYZ, POINTS), "tristrips": strips})
    expected = np.array(POINTS, float)[[[0, 1, 3], [1, 2, 3], [1, 4, 2]]]
    assert np.array_equal(corners_of(read_ply(path)), expected)


NAMES = [
    ("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"),
    ("Red", "Green", "Blue"),
]  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("names", NAMES, ids=" ".join)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("uchar", 1), ("ushort", 257), ("float", 1 / 255), ("double", 1 / 255), ("int", 1),
     ("float", 1)],
)  # fmt: skip
def test_colors_of_vertices(tmp_path, kind, names, dtype, scale):
    vertices = colored(names, dtype, scale)
    path = write(tmp_path / "m.ply", kind, {"vertex": vertices, "face": (INDICES, [[[0, 1, 2]]])})
    model = read_ply(path)
    (part,) = model.parts
    assert np.allclose(part.colors[0, :, :3], linear_from_srgb(SHADES[:3] / 255), atol=1e-5)
    assert model.materials[0].base_factor == (1, 1, 1, 1)
    assert bool(model.notes) == (dtype == "float" and scale == 1)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_colors_of_faces_reach_all_their_triangles(tmp_path, kind, names):
    properties = [*INDICES, *(("uchar", name) for name in names)]
    faces = [[[0, 1, 2, 3], 0, 255, 0], [[1, 4, 2], 0, 0, 255]]
    path = write(tmp_path / "m.ply", kind, {"vertex": (XYZ, POINTS), "face": (properties, faces)})
    (part,) = read_ply(path).parts
    green, blue = [0, 1, 0, 1], [0, 0, 1, 1]
    assert part.colors.tolist() == [[green] * 3, [green] * 3, [blue] * 3]


def test_colors_cut_to_integers_are_not_black(tmp_path):
    vertices = colored(NAMES[0], "uchar", 1 / 255)
    path = write(
        tmp_path / "m.ply", "ascii", {"vertex": vertices, "face": (INDICES, [[[1, 2, 3]]])}
    )
    model = read_ply(path)
    assert np.allclose(model.parts[0].colors[0, :, :3], np.eye(3))
    assert "cut to integers" in model.notes[0]


@pytest.mark.parametrize("names", [("u", "v"), ("s", "t"), ("texture_u", "texture_v")])
def test_textures_by_vertex(tmp_path, names):
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "my t.png")
    rows = [[*p, 0.25 * i, 0.125 * i] for i, p in enumerate(POINTS)]
    vertices = ([*XYZ, *(("float", name) for name in names)], rows)
    elements = {"vertex": vertices, "face": (INDICES, [[[0, 1, 2]]])}
    path = write(tmp_path / "m.ply", "ascii", elements, ["TextureFile my t.png"])
    model = read_ply(path)
    assert model.textures[0].pixels[0, 0].tolist() == [255, 0, 0, 255]
    assert model.parts[0].base_uvs[0].tolist() == [[0, 1], [0.25, 0.875], [0.5, 0.75]]


@pytest.mark.parametrize("kind", FORMATS)
def test_textures_by_corner_and_number(tmp_path, kind):
    for name, color in (("a.png", (255, 0, 0)), ("b.png", (0, 255, 0))):
        Image.new("RGB", (2, 2), color).save(tmp_path / name)
    properties = [*INDICES, ("list", "uchar", "float", "texcoord"), ("int", "texnumber")]
    faces = [[[0, 1, 2, 3], [0, 0, 1, 0, 1, 1, 0, 1], 1], [[1, 4, 2], [0, 0, 1, 0, 0, 1], 0]]
    elements = {"vertex": (XYZ, POINTS), "face": (properties, faces)}
    path = write(tmp_path / "m.ply", kind, elements, ["TextureFile a.png", "TextureFile b.png"])
    model = read_ply(path)
    colors = [
        model.textures[model.materials[part.material].base_texture].pixels[0, 0, :3].tolist()
        for part in model.parts
    ]
    assert colors == [[255, 0, 0], [0, 255, 0]]
    assert model.parts[0].base_uvs[0].tolist() == [[0, 1], [1, 1], [0, 0]]
    assert model.parts[1].base_uvs[1].tolist() == [[0, 1], [1, 0], [0, 0]]


def test_a_missing_texture_is_refused_by_name(tmp_path):
    elements = {"vertex": (XYZ, POINTS), "face": (INDICES, [[[0, 1, 2]]])}
    path = write(tmp_path / "m.ply", "ascii", elements, ["TextureFile gone.png"])
    with pytest.raises(ValueError, match="texture 'gone.png' is missing"):
        read_ply(path)


def plain(tmp_path, kind="ascii"):
    elements = {"vertex": (XYZ, POINTS), "face": (INDICES, [[[0, 1, 2]], [[0, 2, 3]]])}
    return write(tmp_path / "m.ply", kind, elements)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("element vertex 5", "element vertex 99999999999999", "the file ends before"),
        ("element face 2", "element face 99999999999999", "the file ends before"),
        ("element face 2", "element face 3", "the file ends before"),
        ("element face 2", "element face -2", "has a line 'element face -2'"),
        ("property float x", "property text x", "has a property 'property text x'"),
        ("property float x", "property float w", "expected vertices with x, y and z"),
        ("end_header", "end_head", "expected a PLY file"),
        ("ply\n", "plx\n", "expected a PLY file"),
        ("1.0", "1.0\nproperty float x", "has a line 'property float x'"),
        ("format", "comment", "ascii or binary, got neither"),
    ],
)
def test_malformed_files_are_one_clear_error(tmp_path, kind, old, new, words):
    path = plain(tmp_path, kind)
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(ValueError, match=words):
        read_ply(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_files_that_end_too_early_are_one_clear_error(tmp_path, kind):
    path = plain(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="the file ends before"):
        read_ply(path)


def test_a_list_as_long_as_no_file_is_one_clear_error(tmp_path):
    for kind in FORMATS[1:]:
        faces = ([("list", "uint", "int", "vertex_indices")], [[[0, 1, 2]]])
        path = write(tmp_path / "m.ply", kind, {"vertex": (XYZ, POINTS), "face": faces})
        data = path.read_bytes()
        path.write_bytes(data[:-16] + b"\xff" * 4 + data[-12:])
        with pytest.raises(ValueError, match="the file ends before"):
            read_ply(path)


@pytest.mark.parametrize("number", ["5", "-1", "nan", "x", "1e300"])
def test_numbers_that_point_nowhere_are_one_clear_error(tmp_path, number):
    path = plain(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"3 0 2 3", f"3 0 2 {number}".encode()))
    with pytest.raises(ValueError, match="does not exist|whole numbers|expected numbers"):
        read_ply(path)


def test_points_without_faces_are_no_triangles(tmp_path):
    path = write(tmp_path / "m.ply", "ascii", {"vertex": (XYZ, POINTS)})
    model = read_ply(path)
    assert model.parts == () and model.num_vertices == 5


def test_line_ends_of_all_systems(tmp_path):
    path = plain(tmp_path)
    expected = corners_of(read_ply(path))
    data = path.read_bytes()
    for end in (b"\r\n", b"\r"):
        path.write_bytes(data.replace(b"\n", end))
        assert np.array_equal(corners_of(read_ply(path)), expected)
