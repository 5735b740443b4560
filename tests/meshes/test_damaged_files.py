"""Damaged model files: whatever is wrong with one, it is drawn or refused with a ValueError."""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from gltf_builder import COLORS, UVS, Gltf
from spad.meshes.mesh import load_object

FOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], dtype="u1")
# What a field of JSON may be turned into.
VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 5120, 5126, 2**31, 2**63, 10**30, -0.5, 1.5, 1e-300,
    1e300, "", "x", "..", "VEC3", "MAT4", "data:,", "data:;base64,AAAA", "/dev/zero", [], [0], [[]],
    [1e300] * 3, [0.0] * 4, {}, {"index": 0}, {"a": 1},
]  # fmt: skip


def everything() -> Gltf:
    """A file that has something of all that is read."""
    gltf = Gltf(extensionsUsed=["KHR_texture_transform"], scene=0, scenes=[{"nodes": [0, 2, 3]}])
    primitive = gltf.textured(
        FOUR, sampler={"wrapS": 33071}, extensions={"KHR_texture_transform": {"scale": [2, 2]}}
    )
    primitive["attributes"] |= {
        "COLOR_0": gltf.accessor(np.rint(COLORS * 255), "u1", normalized=True),
        "JOINTS_0": gltf.accessor(np.zeros((4, 4)), "u1"),
        "WEIGHTS_0": gltf.accessor([[1, 0, 0, 0]] * 4),
    }
    primitive["targets"] = [{"POSITION": gltf.sparse([[1, 1, 1]], [2], 4)}]
    gltf.mesh(primitive, gltf.primitive(mode=5), gltf.primitive(faces=None, mode=6), weights=[0.5])
    gltf.data["meshes"][0]["primitives"][1]["targets"] = [{}]
    gltf.data["meshes"][0]["primitives"][2]["targets"] = [{}]
    gltf.data["materials"][0] |= {
        "emissiveFactor": [0.1, 0.1, 0.1],
        "alphaMode": "MASK",
        "extensions": {"KHR_materials_emissive_strength": {"emissiveStrength": 2}},
    }
    glossy = {"diffuseFactor": [1, 0, 0, 1], "diffuseTexture": {"index": 0}}
    second = {"extensions": {"KHR_materials_pbrSpecularGlossiness": glossy}}
    gltf.data["meshes"][0]["primitives"][1]["material"] = gltf.add("materials", **second)
    gltf.data["meshes"][0]["primitives"][1]["attributes"]["TEXCOORD_0"] = gltf.accessor(UVS)
    gltf.add("nodes", mesh=0, skin=0, rotation=[0, 0, 0, 1])
    gltf.add("nodes", mesh=0, matrix=np.eye(4).ravel().tolist())
    gltf.add("nodes", children=[1], scale=[1, 2, 3], camera=0)
    attributes = {"TRANSLATION": gltf.accessor([[1, 0, 0], [2, 0, 0]])}
    gltf.add("nodes", mesh=0, extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}})
    bind = gltf.accessor(np.eye(4).reshape(1, 16))
    gltf.add("skins", joints=[2], inverseBindMatrices=bind)
    return gltf


OBJ = """mtllib m.mtl
v 0 0 0 1 0 0
v 1 0 0
v 1 1 0.5 0.5 0.5
v 0.2 0.2 0
v 0 1 0
vt 0 0
vt 1 0 0
vn 0 0 1
usemtl a
f 1/1/1 2/2/1 3/1/1 4/1/1 5/2/1
f -5//-1 -4//-1 -1//-1
usemtl b
l 1 2
f 1 2 \\
3
"""
MTL = """newmtl a
Kd 1 0 0
d 0.5
map_Kd -s 1 1 1 -o 0 0.5 t.png
map_d -imfchan l t.png
newmtl b
Ke 0.5 0.5 0.5
Tr 0.1
"""
PLY = """ply
format ascii 1.0
comment TextureFile t.png
element vertex 4
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property float s
property float t
element face 2
property list uchar int vertex_indices
end_header
0 0 0 255 0 0 0 0
1 0 0 0 255 0 1 0
1 1 0 0 0 255 1 1
0 1 1 9 9 9 0 1
3 0 1 2
4 0 1 2 3
"""


def binary_ply() -> bytes:
    head = PLY.replace("ascii", "binary_big_endian").partition("end_header\n")[0]
    head = head.replace("property float s\nproperty float t\n", "").replace("comment", "obj_info")
    vertex = np.zeros(4, [("p", ">f4", 3), ("c", "u1", 3)])
    vertex["p"] = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1]]
    faces = b"\3" + np.array([0, 1, 2], ">i4").tobytes()
    faces += b"\4" + np.array([0, 1, 2, 3], ">i4").tobytes()
    return head.encode() + b"end_header\n" + vertex.tobytes() + faces


def binary_stl() -> bytes:
    facet = np.zeros(2, [("n", "<f4", 3), ("v", "<f4", (3, 3)), ("c", "<u2")])
    facet["v"] = np.arange(18).reshape(2, 3, 3) ** 2
    facet["c"] = 0x8123
    return b"solid".ljust(80) + np.array([2], "<u4").tobytes() + facet.tobytes()


ASCII_STL = b"solid a\n" + b"".join(
    b"facet normal 0 0 1\nouter loop\nvertex 0 0 %d\nvertex 1 0 0\nvertex 0 1 0\nendloop\n"
    b"endfacet\n" % i
    for i in range(2)
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """A whole file of every kind, by the name to save it under."""
    folder = tmp_path_factory.mktemp("whole")
    files = {
        "m.gltf": everything().save(folder / "m.gltf").read_bytes(),
        "m.glb": everything().save(folder / "m.glb").read_bytes(),
        "m.obj": OBJ.encode(),
        "m.mtl": MTL.encode(),
        "a.ply": PLY.encode(),
        "b.ply": binary_ply(),
        "a.stl": ASCII_STL,
        "b.stl": binary_stl(),
    }
    put(folder, files)
    for name in files:
        if name != "m.mtl":
            assert len(load_object(folder / name).faces), name
    return files


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    Image.fromarray(FOUR).save(folder / "t.png")


def assert_drawn_or_refused(path: Path) -> None:
    with warnings.catch_warnings():
        # Numbers that overflow are to be met before they do.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            obj = load_object(path, max_faces=10_000)
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error).strip()
            return
    assert np.isfinite(obj.vertices).all() and np.isfinite(obj.corner_normals).all()
    assert obj.faces.max() < len(obj.vertices) and len(obj.faces) == len(obj.face_materials)
    assert obj.face_materials.max() < len(obj.materials)
    for values in (obj.base_uvs, obj.emissive_uvs, obj.opacity_uvs, obj.corner_colors):
        assert values is None or np.isfinite(values).all()


@st.composite
def cuts(draw) -> tuple[float, int, bytes]:
    """Where to cut, as a share of the file, how much to take out, and what to put in."""
    where = draw(st.floats(0, 1, exclude_max=True))
    return where, draw(st.sampled_from([0, 0, 1, 1, 2, 4, 50, 10**6])), draw(st.binary(max_size=4))


NAMES = ["m.gltf", "m.glb", "m.obj", "m.mtl", "a.ply", "b.ply", "a.stl", "b.stl"]
TEXTS = [b" ", b"\n", b"-", b"/", b"nan", b"1e999", b"99999999999999999999", b"\xff", b"\\", b'"']


@settings(max_examples=150)
@given(name=st.sampled_from(NAMES), changes=st.lists(cuts(), min_size=1, max_size=3))
def test_bytes_changed_anywhere(whole, tmp_path_factory, name, changes):
    data = whole[name]
    for where, taken, put_in in changes:
        at = int(where * len(data))
        data = data[:at] + put_in + data[at + taken :]
    check(whole, tmp_path_factory, name, data)


@settings(max_examples=100)
@given(
    name=st.sampled_from(["m.obj", "m.mtl", "a.ply", "a.stl", "m.gltf"]),
    where=st.floats(0, 1, exclude_max=True),
    text=st.sampled_from(TEXTS),
    in_place=st.booleans(),
)
def test_words_changed_anywhere(whole, tmp_path_factory, name, where, text, in_place):
    words = whole[name].split(b" ")
    at = int(where * len(words))
    words[at : at + in_place] = [text]
    check(whole, tmp_path_factory, name, b" ".join(words))


def places_in(value, path=()) -> list[tuple]:
    """Every field of a JSON value."""
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list
    ) else ()  # fmt: skip
    for key, child in inner:
        found += places_in(child, (*path, key))
    return found


FIELDS = places_in(everything().data)


@settings(max_examples=300)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(FIELDS), st.sampled_from(VALUES)), min_size=1, max_size=2
    )
)
@example(changes=[(("nodes", 2, "children"), [2])])
@example(changes=[(("accessors", 0, "count"), 10**30)])
def test_fields_of_gltf_changed(whole, tmp_path_factory, changes):
    data = json.loads(whole["m.gltf"])
    for path, value in changes:
        part = data
        try:
            for step in path[:-1]:
                part = part[step]
            part[path[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):  # the first change took the place away
            continue
    check(whole, tmp_path_factory, "m.gltf", json.dumps(data).encode())


def check(whole, tmp_path_factory, name: str, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    put(folder, {**whole, name: data} if name in ("m.obj", "m.mtl") else {name: data})
    assert_drawn_or_refused(folder / ("m.obj" if name == "m.mtl" else name))
