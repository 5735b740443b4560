"""glTF files: whatever the specification lets a file say in two ways means the same in both."""

import base64
import json
import struct

import numpy as np
import pytest

from gltf_builder import COLORS, FACES, POINTS, UVS, Gltf
from spad.meshes.gltf import read_gltf

HALF_TURN = [0, 1, 0, 0]  # about y, as x, y, z, w
FOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], dtype="u1")


def corners_of(model) -> np.ndarray:
    """All triangles (f, 3, 3) of a model, each from its least corner on, in one order."""
    triangles = np.concatenate([part.corners for part in model.parts]).round(5) + 0.0
    rolled = [np.roll(t, -min(range(3), key=lambda i: t[i].tolist()), axis=0) for t in triangles]
    return np.array(sorted(t.tolist() for t in rolled))


def plain(points=POINTS, faces=FACES) -> np.ndarray:
    """The triangles themselves, in the order of `corners_of`."""

    class Twin:
        parts = [type("Part", (), {"corners": np.asarray(points, "f8")[np.asarray(faces)]})]

    return corners_of(Twin)


def read(gltf: Gltf, tmp_path, name: str = "m.gltf"):
    return read_gltf(gltf.save(tmp_path / name))


def assert_is_plain(gltf: Gltf, tmp_path, points=POINTS, faces=FACES, atol=1e-5):
    model = read(gltf, tmp_path)
    assert np.allclose(corners_of(model), plain(points, faces), atol=atol)
    return model


@pytest.mark.parametrize("suffix", [".gltf", ".glb"])
def test_a_plain_file_is_its_triangles(tmp_path, suffix):
    gltf = Gltf()
    gltf.mesh()
    model = read(gltf, tmp_path, f"m{suffix}")
    assert np.array_equal(corners_of(model), plain())
    assert model.num_vertices == 4 and model.num_animations == 0 and model.notes == ()


def on_a_scale(scale: float, dtype: str, normalized: bool) -> Gltf:
    """The points as integers of a type, brought back to their size by the node."""
    top = np.iinfo(dtype).max if normalized else 1
    gltf = Gltf(extensionsUsed=["KHR_mesh_quantization"])
    gltf.data["extensionsRequired"] = ["KHR_mesh_quantization"]
    points = gltf.accessor(np.rint(POINTS / 4 * scale), dtype, normalized=normalized)
    gltf.mesh(gltf.primitive(points))
    gltf.add("nodes", mesh=0, scale=[4 * top / scale] * 3)
    return gltf


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2"])
def test_positions_of_every_integer_type(tmp_path, dtype, normalized):
    assert_is_plain(on_a_scale(100, dtype, normalized), tmp_path)


def test_the_least_signed_integer_is_minus_one(tmp_path):
    gltf = Gltf()
    points = gltf.accessor([[-128, 0, 0], [-127, 127, 0], [0, 0, 127]], "i1", normalized=True)
    gltf.mesh(gltf.primitive(points, [[0, 1, 2]]))
    (part,) = read(gltf, tmp_path).parts
    assert part.corners[0].tolist() == [[-1, 0, 0], [-1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(("dtype", "top"), [("u1", 255), ("u2", 65535), ("f4", 1)])
def test_texture_coordinates_and_colors_of_every_type(tmp_path, dtype, top):
    gltf = Gltf()
    normalized = {} if dtype == "f4" else {"normalized": True}
    primitive = gltf.textured(FOUR)
    uv = gltf.accessor(np.rint(UVS * top) if top > 1 else UVS, dtype, **normalized)
    color = gltf.accessor(np.rint(COLORS * top) if top > 1 else COLORS, dtype, **normalized)
    primitive["attributes"] |= {"TEXCOORD_0": uv, "COLOR_0": color}
    gltf.mesh(primitive)
    (part,) = read(gltf, tmp_path).parts
    assert np.allclose(part.base_uvs, UVS[FACES], atol=0.002)
    assert np.allclose(part.colors, COLORS[FACES], atol=0.002)


def test_colors_without_alpha_are_opaque(tmp_path):
    gltf = Gltf()
    gltf.mesh(gltf.primitive(COLOR_0=gltf.accessor(COLORS[:, :3])))
    (part,) = read(gltf, tmp_path).parts
    assert np.allclose(part.colors[..., :3], COLORS[FACES][..., :3])
    assert (part.colors[..., 3] == 1).all()


def test_attributes_may_be_interleaved(tmp_path):
    gltf = Gltf()
    rows = np.zeros((4, 7), "<f4")
    rows[:, :3], rows[:, 4:6] = POINTS, UVS
    view = gltf.view(rows.tobytes(), byteStride=28)
    primitive = gltf.textured(FOUR)
    kind = {"componentType": 5126, "count": 4, "bufferView": view}
    primitive["attributes"] = {
        "POSITION": gltf.add("accessors", type="VEC3", **kind),
        "TEXCOORD_0": gltf.add("accessors", type="VEC2", byteOffset=16, **kind),
    }
    gltf.mesh(primitive)
    (part,) = assert_is_plain(gltf, tmp_path).parts
    assert np.array_equal(part.base_uvs, UVS[FACES])


@pytest.mark.parametrize("index_type", ["u1", "u2", "u4"])
def test_sparse_accessors(tmp_path, index_type):
    base = POINTS.copy()
    base[[1, 3]] = 9
    over = Gltf()
    over.mesh(over.primitive(over.sparse(POINTS[[1, 3]], [1, 3], 4, base, index_type)))
    assert_is_plain(over, tmp_path)
    zeros = Gltf()
    zeros.mesh(zeros.primitive(zeros.sparse(POINTS[1:], [1, 2, 3], 4, None, index_type)))
    assert_is_plain(zeros, tmp_path)


TOPOLOGIES = {
    "list": (4, [0, 1, 2, 2, 1, 3], [[0, 1, 2], [2, 1, 3]]),
    "strip": (5, [0, 1, 2, 3], [[0, 1, 2], [2, 1, 3]]),
    "odd strip": (5, [3, 0, 1, 2, 3], [[3, 0, 1], [1, 0, 2], [1, 2, 3]]),
    "fan": (6, [0, 1, 2, 3], [[0, 1, 2], [0, 2, 3]]),
    "list without indices": (4, None, [[0, 1, 2]]),
    "strip without indices": (5, None, [[0, 1, 2], [2, 1, 3]]),
    "fan without indices": (6, None, [[0, 1, 2], [0, 2, 3]]),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_topologies(tmp_path, name, dtype):
    mode, indices, faces = TOPOLOGIES[name]
    gltf = Gltf()
    indices = None if indices is None else gltf.accessor(indices, dtype)
    gltf.mesh(gltf.primitive(faces=indices, mode=mode))
    assert_is_plain(gltf, tmp_path, faces=faces)


@pytest.mark.parametrize(
    ("mode", "kind"), [(0, "points"), (1, "lines"), (2, "lines"), (3, "lines")]
)
def test_points_and_lines_are_left_out_and_noted(tmp_path, mode, kind):
    gltf = Gltf()
    gltf.mesh(gltf.primitive(mode=mode), gltf.primitive())
    model = assert_is_plain(gltf, tmp_path)
    assert len(model.notes) == 1 and kind in model.notes[0]


def skinned(weights, dtype="f4", joints=None, **skin) -> Gltf:
    """The points below two joints, the second of which is moved by (0, 0, 1)."""
    gltf = Gltf()
    normalized = {} if dtype == "f4" else {"normalized": True}
    weights = np.asarray(weights, "f8") * (1 if dtype == "f4" else np.iinfo(dtype).max)
    attributes = {}
    for number in range(0, weights.shape[1], 4):
        chosen = np.zeros((4, 4), "u1") if joints is None else joints[number // 4]
        attributes[f"JOINTS_{number // 4}"] = gltf.accessor(chosen, "u1")
        part = weights[:, number : number + 4]
        attributes[f"WEIGHTS_{number // 4}"] = gltf.accessor(part, dtype, **normalized)
    gltf.mesh(gltf.primitive(**attributes))
    gltf.add("nodes", mesh=0, skin=0, translation=[50, 0, 0])  # has no say
    gltf.add("nodes", children=[2], translation=[1, 0, 0], scale=[2, 2, 2])
    gltf.add("nodes", translation=[0, 0, 1])
    gltf.add("skins", joints=[1, 2], **skin)
    return gltf


ONE = [[1, 0, 0, 0]] * 4
SECOND = [[[1, 0, 0, 0]] * 4]


def test_skins_place_vertices_by_their_joints_alone(tmp_path):
    assert_is_plain(skinned(ONE), tmp_path, 2 * POINTS + [1, 0, 0])
    assert_is_plain(skinned(ONE, joints=SECOND), tmp_path, 2 * POINTS + [1, 0, 2])


@pytest.mark.parametrize("dtype", ["f4", "u1", "u2"])
def test_weights_of_every_type_mix_joints(tmp_path, dtype):
    weights = np.array([[0.2, 0.8, 0, 0]] * 4)
    joints = [[[0, 1, 0, 0]] * 4]
    assert_is_plain(skinned(weights, dtype, joints), tmp_path, 2 * POINTS + [1, 0, 1.6], atol=0.02)


def test_a_second_set_of_joints_counts(tmp_path):
    weights = np.array([[0.25, 0, 0, 0, 0.75, 0, 0, 0]] * 4)
    joints = [[[0, 0, 0, 0]] * 4, [[1, 0, 0, 0]] * 4]
    assert_is_plain(skinned(weights, joints=joints), tmp_path, 2 * POINTS + [1, 0, 1.5])


def test_inverse_bind_matrices_undo_the_bind_pose(tmp_path):
    gltf = skinned(ONE)
    bind = np.array([np.diag([0.5, 0.5, 0.5, 1]), np.eye(4)])
    bind[0, :3, 3] = [-0.5, 0, 0]
    # Column by column.
    matrices = gltf.accessor(bind.transpose(0, 2, 1).reshape(2, 16))
    gltf.data["skins"][0]["inverseBindMatrices"] = matrices
    assert_is_plain(gltf, tmp_path)


def test_vertices_without_weight_follow_their_first_joint(tmp_path):
    model = assert_is_plain(skinned(np.zeros((4, 4))), tmp_path, 2 * POINTS + [1, 0, 0])
    assert "without a weight" in model.notes[0]


def test_mirrored_joints_keep_the_outside_outside(tmp_path):
    gltf = skinned(ONE)
    gltf.data["nodes"][1]["scale"] = [-2, 2, 2]
    mirrored = POINTS * [-2, 2, 2] + [1, 0, 0]
    assert_is_plain(gltf, tmp_path, mirrored, FACES[:, ::-1])


def test_a_skin_without_joints_in_the_mesh_is_noted(tmp_path):
    gltf = skinned(ONE)
    gltf.data["meshes"][0]["primitives"][0]["attributes"].pop("JOINTS_0")
    model = assert_is_plain(gltf, tmp_path, POINTS + [50, 0, 0])
    assert "has no joints" in model.notes[0]


def morphing(mesh_weights=None, node_weights=None) -> Gltf:
    gltf = Gltf()
    targets = [
        {"POSITION": gltf.accessor(np.tile([[1, 0, 0]], (4, 1)))},
        {"POSITION": gltf.sparse([[0, 0, 8]], [2], 4)},
    ]
    rest = {} if mesh_weights is None else {"weights": mesh_weights}
    gltf.mesh(gltf.primitive(targets=targets), **rest)
    gltf.add("nodes", mesh=0, **({} if node_weights is None else {"weights": node_weights}))
    return gltf


@pytest.mark.parametrize(
    ("mesh_weights", "node_weights", "applied"),
    [
        (None, None, (0, 0)),
        ([1, 0.5], None, (1, 0.5)),
        (None, [0.5, 1], (0.5, 1)),
        ([1, 1], [0, 0.25], (0, 0.25)),
        ([2, -1], None, (2, -1)),
    ],
)
def test_morph_targets_at_default_weights(tmp_path, mesh_weights, node_weights, applied):
    points = POINTS + [applied[0], 0, 0]
    points[2] += [0, 0, 8 * applied[1]]
    assert_is_plain(morphing(mesh_weights, node_weights), tmp_path, points)


def test_morph_targets_move_texture_coordinates_and_colors(tmp_path):
    gltf = Gltf()
    primitive = gltf.textured(FOUR)
    primitive["attributes"]["COLOR_0"] = gltf.accessor(COLORS)
    moved = gltf.accessor(np.tile([[0.5, 0]], (4, 1)))
    brighter = gltf.accessor(np.tile([[0.3, 0, 0]], (4, 1)))
    gltf.mesh(primitive | {"targets": [{"TEXCOORD_0": moved, "COLOR_0": brighter}]}, weights=[1])
    (part,) = read(gltf, tmp_path).parts
    assert np.allclose(part.base_uvs, UVS[FACES] + [0.5, 0])
    assert np.allclose(part.colors, np.minimum(COLORS + [0.3, 0, 0, 0], 1)[FACES])


@pytest.mark.parametrize("dtype", ["f4", "i1", "i2"])
def test_instances(tmp_path, dtype):
    gltf = Gltf(extensionsRequired=["EXT_mesh_gpu_instancing"])
    gltf.mesh()
    top = 1 if dtype == "f4" else np.iinfo(dtype).max
    normalized = {} if dtype == "f4" else {"normalized": True}
    attributes = {
        "TRANSLATION": gltf.accessor([[5, 0, 0], [0, 5, 0]]),
        "ROTATION": gltf.accessor(np.array([[0, 0, 0, 1], HALF_TURN]) * top, dtype, **normalized),
        "SCALE": gltf.accessor([[1, 1, 1], [1, 2, 1]]),
        "_OTHER": gltf.accessor([[1], [2]]),
    }
    extension = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    gltf.add("nodes", mesh=0, translation=[0, 0, 1], extensions=extension)
    model = read(gltf, tmp_path)
    first, second = POINTS + [5, 0, 1], POINTS * [-1, 2, -1] + [0, 5, 1]
    expected = np.concatenate([first, second])
    assert np.allclose(corners_of(model), plain(expected, np.concatenate([FACES, FACES + 4])))
    assert model.num_vertices == 8 and len(model.materials) == 1


def test_nodes_pass_their_transforms_on(tmp_path):
    gltf = Gltf(cameras=[{"type": "perspective"}])
    gltf.data["extensionsUsed"] = ["KHR_lights_punctual"]
    gltf.mesh()
    matrix = [0, 0, -1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 1]  # a quarter turn about y, then +7 x
    light = {"KHR_lights_punctual": {"light": 0}}
    gltf.add("nodes", camera=0, children=[1], translation=[0, 3, 0])
    gltf.add("nodes", extensions=light, children=[2], scale=[2, 2, 2])
    gltf.add("nodes", mesh=0, matrix=matrix)
    turned = np.stack([POINTS[:, 2], POINTS[:, 1], -POINTS[:, 0]], axis=-1) + [7, 0, 0]
    model = assert_is_plain(gltf, tmp_path, 2 * turned + [0, 3, 0])
    assert model.notes == ()


def test_mirrored_nodes_keep_the_outside_outside(tmp_path):
    gltf = Gltf()
    gltf.mesh()
    gltf.add("nodes", mesh=0, scale=[-1, 1, 1])
    assert_is_plain(gltf, tmp_path, POINTS * [-1, 1, 1], FACES[:, ::-1])


@pytest.mark.parametrize(
    ("root", "shown"),
    [
        ({"scenes": [{"nodes": [0]}, {"nodes": [1]}], "scene": 1}, 1),
        ({"scenes": [{"nodes": [0]}, {"nodes": [1]}]}, 0),
    ],
)
def test_the_default_scene_is_shown(tmp_path, root, shown):
    gltf = Gltf(**root)
    gltf.mesh()
    gltf.add("nodes", mesh=0)
    gltf.add("nodes", mesh=0, translation=[1, 0, 0])
    assert_is_plain(gltf, tmp_path, POINTS + [shown, 0, 0])


def test_hidden_nodes_are_not_shown(tmp_path):
    gltf = Gltf()
    gltf.mesh()
    gltf.add("nodes", mesh=0)
    hidden = {"KHR_node_visibility": {"visible": False}}
    gltf.add("nodes", mesh=0, children=[2], extensions=hidden)
    gltf.add("nodes", mesh=0)
    assert_is_plain(gltf, tmp_path)


@pytest.mark.parametrize("name", ["points.bin", "my points.bin", "a/points%.bin", "ä.bin"])
@pytest.mark.parametrize("style", ["encoded", "as it is", "backslash"])
def test_buffers_beside_the_file(tmp_path, name, style):
    from urllib.parse import quote

    if style == "as it is" and "%" in name:
        pytest.skip("not a name that can be written as it is")
    gltf = Gltf()
    gltf.mesh()
    uri = {"encoded": quote(name), "as it is": name, "backslash": quote(name).replace("/", "\\")}
    gltf.data["buffers"] = [{"uri": uri[style], "byteLength": len(gltf.blob)}]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(gltf.blob)
    assert_is_plain(gltf, tmp_path)


def test_data_uris_of_both_kinds(tmp_path):
    encoded = base64.b64encode(bytes(range(12))).decode()
    for uri in (
        "data:application/gltf-buffer;base64," + encoded.replace("+", "%2B"),
        "data:;base64," + encoded,
        "data:application/octet-stream," + "".join(f"%{byte:02x}" for byte in range(12)),
    ):
        gltf = Gltf()
        gltf.mesh()
        count = len(gltf.blob)
        view = {"buffer": 1, "byteLength": 12}
        gltf.data["bufferViews"].append(view)
        gltf.data["accessors"].append(
            {"bufferView": 2, "componentType": 5121, "count": 12, "type": "SCALAR"}
        )
        main = "data:;base64," + base64.b64encode(gltf.blob).decode()
        gltf.data["buffers"] = [{"uri": main, "byteLength": count}, {"uri": uri, "byteLength": 12}]
        gltf.data["meshes"][0]["primitives"].append(
            {"attributes": {"POSITION": 0}, "indices": 2, "mode": 4}
        )
        with pytest.raises(ValueError, match="a triangle has vertex 11 of 4"):
            read(gltf, tmp_path)


def test_what_is_required_and_not_read_is_refused_by_name(tmp_path):
    gltf = Gltf(extensionsRequired=["KHR_mesh_quantization", "EXT_other", "ACME_more"])
    gltf.mesh()
    with pytest.raises(ValueError, match="requires ACME_more, EXT_other, which spad does not read"):
        read(gltf, tmp_path)


def test_what_is_used_and_not_read_is_noted(tmp_path):
    gltf = Gltf(extensionsUsed=["KHR_materials_sheen", "KHR_materials_unlit"])
    gltf.mesh()
    assert read(gltf, tmp_path).notes == ("uses KHR_materials_sheen, which is left out",)


def test_meshopt_is_read_from_its_fallback_or_refused_by_name(tmp_path):
    gltf = Gltf(extensionsUsed=["EXT_meshopt_compression"])
    gltf.mesh()
    compressed = {"EXT_meshopt_compression": {"buffer": 1, "byteLength": 4}}
    gltf.data["bufferViews"][0]["extensions"] = compressed
    assert_is_plain(gltf, tmp_path)
    length = len(gltf.blob)
    gltf.data["buffers"] = [{"byteLength": length}]
    with pytest.raises(ValueError, match="compressed by EXT_meshopt_compression"):
        read(gltf, tmp_path)


@pytest.mark.parametrize("required", [True, False])
def test_draco(tmp_path, required):
    DracoPy = pytest.importorskip("DracoPy")
    name = "KHR_draco_mesh_compression"
    gltf = Gltf(extensionsUsed=[name], **({"extensionsRequired": [name]} if required else {}))
    texcoords = np.rint(UVS * 65535).astype("u2")
    data = DracoPy.encode(
        POINTS, FACES.astype("u4"), quantization_bits=20, preserve_order=True,
        generic_attributes={7: texcoords},
    )  # fmt: skip
    (position,) = (a["unique_id"] for a in DracoPy.decode(data).attributes if a["unique_id"] != 7)
    primitive = gltf.textured(FOUR)
    unbacked = {"componentType": 5126, "count": 4, "type": "VEC3"}
    primitive["attributes"] = {
        "POSITION": gltf.add("accessors", **unbacked),
        "TEXCOORD_0": gltf.add(
            "accessors", componentType=5123, count=4, type="VEC2", normalized=True
        ),
    }
    primitive["indices"] = gltf.add("accessors", componentType=5123, count=12, type="SCALAR")
    attributes = {"POSITION": position, "TEXCOORD_0": 7}
    view = gltf.view(data)
    primitive["extensions"] = {name: {"bufferView": view, "attributes": attributes}}
    gltf.mesh(primitive)
    (part,) = assert_is_plain(gltf, tmp_path, atol=1e-4).parts
    flat, known = part.corners.reshape(-1, 3), part.base_uvs.reshape(-1, 2)
    nearest = np.abs(flat[:, None] - POINTS).sum(axis=-1).argmin(axis=1)
    assert np.allclose(known, UVS[nearest], atol=1e-4)
    gltf.data["bufferViews"][view]["byteLength"] = 20
    with pytest.raises(ValueError, match="Draco data is damaged"):
        read(gltf, tmp_path)


def change(*path, to):
    """An edit of a file's JSON: the value at a path."""

    def edit(gltf: Gltf) -> None:
        part = gltf.data
        for step in path[:-1]:
            part = part[step]
        part[path[-1]] = to

    return edit


def two_parents(gltf: Gltf) -> None:
    gltf.data["nodes"] = [{"children": [2]}, {"children": [2]}, {"mesh": 0}]


def ring(gltf: Gltf) -> None:
    gltf.data["nodes"] = [{"mesh": 0}, {"children": [2]}, {"children": [1]}]


def own_child(gltf: Gltf) -> None:
    gltf.data |= {"nodes": [{"mesh": 0, "children": [0]}], "scenes": [{"nodes": [0]}]}


MALFORMED = {
    "version 1": (change("asset", to={"version": "1.0"}), "expected version 2.0 of glTF, got 1.0"),
    "no asset": (change("asset", to={}), "expected version 2.0 of glTF, got none"),
    "newer": (change("asset", to={"version": "2.0", "minVersion": "2.1"}), "at least 2.1"),
    "accessor out of range": (
        change("meshes", 0, "primitives", 0, "indices", to=9), "one of 2 accessors, got number 9"),
    "negative": (change("accessors", 0, "bufferView", to=-1), "accessors.0..bufferView: expected"),
    "fraction": (change("accessors", 0, "count", to=1.5), "a whole number of at least 1, got 1.5"),
    "truth": (change("accessors", 0, "count", to=True), "a whole number"),
    "text": (change("accessors", 0, "count", to="4"), "a whole number"),
    "null": (change("accessors", 0, "count", to=None), "a whole number.* got nothing"),
    "huge count": (change("accessors", 0, "count", to=10**12), "is it cut short"),
    "huge digits": (change("accessors", 0, "count", to=10**300), "is it cut short"),
    "huge length": (change("bufferViews", 0, "byteLength", to=10**12), "which has 72"),
    "offset": (change("accessors", 0, "byteOffset", to=4), "is it cut short"),
    "component": (change("accessors", 0, "componentType", to=5124), "expected 5120 to 5126"),
    "type": (change("accessors", 0, "type", to="VEC2"), "expected VEC3, got 'VEC2'"),
    "signed indices": (change("accessors", 1, "componentType", to=5122), "unsigned integers"),
    "stride": (change("bufferViews", 0, "byteStride", to=256), "expected 4 to 252"),
    "short stride": (change("bufferViews", 0, "byteStride", to=8), "byteStride of at least 12"),
    "mode": (change("meshes", 0, "primitives", 0, "mode", to=7), "mode: expected 0 to 6"),
    "list": (change("meshes", to={"a": 1}), "meshes: expected a list"),
    "object": (change("meshes", 0, to=[]), "meshes.0.: expected an object"),
    "ring": (ring, "a node is below itself"),
    "own child": (own_child, "a node is below itself"),
    "two parents": (two_parents, "nodes.2. is below nodes 0 and 1"),
    "child": (change("nodes", to=[{"children": [5]}]), "one of 1 nodes, got number 5"),
    "scene": (change("scene", to=3), None),
    "matrix": (change("nodes", to=[{"mesh": 0, "matrix": [1] * 15}]), "expected 16 numbers"),
    "infinite": (change("nodes", to=[{"mesh": 0, "scale": [1e999, 1, 1]}]), "Infinity"),
    "skin": (change("nodes", to=[{"mesh": 0, "skin": 3}]), None),
    "buffer length": (change("buffers", to=[{"byteLength": 72}]), "expected a uri"),
    "address": (
        change("buffers", to=[{"uri": "http://a/b.bin", "byteLength": 72}]), "a file beside it"),
    "above": (change("buffers", to=[{"uri": "../b.bin", "byteLength": 72}]), "outside its folder"),
    "encoded above": (
        change("buffers", to=[{"uri": "%2e%2e/b.bin", "byteLength": 72}]), "outside its folder"),
    "absolute": (
        change("buffers", to=[{"uri": "/etc/passwd", "byteLength": 72}]), "outside its folder"),
    "missing": (change("buffers", to=[{"uri": "b.bin", "byteLength": 72}]), "'b.bin' is missing"),
    "folder": (change("buffers", to=[{"uri": ".", "byteLength": 72}]), "cannot read '.'"),
    "base64": (change("buffers", to=[{"uri": "data:;base64,@@", "byteLength": 72}]), "base64"),
    "data": (change("buffers", to=[{"uri": "data:", "byteLength": 72}]), "data:TYPE"),
    "short data": (
        change("buffers", to=[{"uri": "data:;base64,AAAA", "byteLength": 72}]), "is it cut short"),
}  # fmt: skip


def test_each_morph_target_has_a_weight(tmp_path):
    with pytest.raises(ValueError, match="a weight for each of 2 morph targets, got 1"):
        read(morphing([1]), tmp_path)
    gltf = Gltf()
    gltf.mesh(weights=[1])  # of no target
    assert_is_plain(gltf, tmp_path)


def test_numbers_that_are_none_are_refused(tmp_path):
    for value in (np.nan, np.inf):
        gltf = Gltf()
        gltf.mesh(gltf.primitive(np.array([[0, 0, 0], [1, 0, 0], [0, value, 0]]), [[0, 1, 2]]))
        for flag in ({}, {"normalized": True}):
            gltf.data["accessors"][0] |= flag
            with pytest.raises(ValueError, match="accessors.0.: expected finite numbers"):
                read(gltf, tmp_path)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_one_clear_error(tmp_path, name):
    edit, words = MALFORMED[name]
    gltf = Gltf()
    gltf.mesh()
    edit(gltf)
    if words is None:  # what nothing refers to, or what stands for nothing
        read(gltf, tmp_path)
        return
    with pytest.raises(ValueError, match=words):
        read(gltf, tmp_path)


SPARSE = {
    "falling": ([3, 1], "rising numbers below 4"),
    "twice": ([1, 1], "rising numbers below 4"),
    "beyond": ([1, 4], "rising numbers below 4"),
}


@pytest.mark.parametrize("name", SPARSE)
def test_malformed_sparse_accessors(tmp_path, name):
    where, words = SPARSE[name]
    gltf = Gltf()
    gltf.mesh(gltf.primitive(gltf.sparse(POINTS[:2], where, 4, POINTS)))
    with pytest.raises(ValueError, match=words):
        read(gltf, tmp_path)


def test_memory_is_bounded_by_the_file(tmp_path):
    gltf = Gltf()
    gltf.mesh(gltf.primitive(gltf.sparse(POINTS[:1], [0], 10**9), None))
    with pytest.raises(ValueError, match="without a bufferView, got 1,000,000,000"):
        read(gltf, tmp_path)
    gltf = Gltf()
    primitive = gltf.primitive(targets=[{"POSITION": gltf.sparse(POINTS[:1], [0], 10**7)}])
    gltf.mesh(primitive, weights=[1])
    with pytest.raises(ValueError, match="expected 4 elements, got 10,000,000"):
        read(gltf, tmp_path)


def test_instances_count_before_they_are_laid_out(tmp_path):
    gltf = Gltf()
    gltf.mesh()
    gltf.data["nodes"] = [{"mesh": 0}] * 300
    path = gltf.save(tmp_path / "m.gltf")
    assert len(read_gltf(path, max_faces=1200).parts) == 300
    with pytest.raises(ValueError, match="1,200 triangles are more than --max-faces 1,199"):
        read_gltf(path, max_faces=1199)


GLBS = {
    "cut header": (lambda data: data[:11], "cut short: 11 bytes"),
    "cut": (lambda data: data[:-5], "cut short"),
    "version": (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 2 of GLB, got 1"),
    "part": (lambda data: data[:12] + struct.pack("<I", 9**9) + data[16:], "a part of the GLB"),
    "no JSON": (lambda data: data[:16] + b"ABCD" + data[20:], "expected JSON"),
    "broken JSON": (lambda data: data[:20] + b"[" + data[21:], "JSON is damaged"),
    "not UTF-8": (lambda data: data[:21] + b"\xff" + data[22:], "not UTF-8"),
    "deep": (lambda data: b'{"a":' + b"[" * 100_000, "nested too deep|JSON is damaged"),
    "NaN": (lambda data: b'{"a": NaN}', "NaN"),
    "list": (lambda data: b"[]", "does not begin as a glTF"),
    "text": (lambda data: b"solid x", "does not begin as a glTF"),
    "nothing": (lambda data: b"", "does not begin as a glTF"),
}


@pytest.mark.parametrize("name", GLBS)
def test_damaged_containers_are_one_clear_error(tmp_path, name):
    damage, words = GLBS[name]
    gltf = Gltf()
    gltf.mesh()
    path = gltf.save(tmp_path / "m.glb")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=words):
        read_gltf(path)


def test_a_byte_order_mark_misleads_nobody(tmp_path):
    gltf = Gltf()
    gltf.mesh()
    path = gltf.save(tmp_path / "m.gltf")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert json.loads(path.read_text(encoding="utf-8-sig"))
    assert np.array_equal(corners_of(read_gltf(path)), plain())
