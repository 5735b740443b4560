"""Laws of model files: what others read in them is what was meant."""

import json
import struct

import numpy as np
import pytest
import trimesh
from PIL import Image

from spad.meshes.mesh import load_object
from spad.reconstruction.textured_mesh import TexturedMesh


def tetrahedron(is_lit: bool = False) -> TexturedMesh:
    """A box's corner, 2 along x, 3 along y, 4 along z; its faces red, green, blue and gray."""
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 4]], dtype=np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=np.int32)
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (120, 120, 120)]
    texture = np.zeros((64, 64, 3), dtype=np.uint8)
    uv = []
    for number, color in enumerate(colors):
        row, column = 32 * (number // 2), 32 * (number % 2)
        texture[row : row + 32, column : column + 32] = color
        # Well inside of the square.
        places = [(column + 10, row + 8), (column + 24, row + 8), (column + 10, row + 22)]
        uv += [(x / 64, y / 64) for x, y in places]
    normals = vertices - vertices.mean(0)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return TexturedMesh(
        vertices,
        faces,
        normals,
        np.array(uv, dtype=np.float32),
        np.arange(12, dtype=np.int32).reshape(4, 3),
        faces.reshape(-1),
        texture,
        is_lit,
    )


def written(tmp_path, name: str, is_lit: bool = False):
    for file, data in tetrahedron(is_lit).files(name).items():
        (tmp_path / file).write_bytes(data)
    return tmp_path / name


def gltf(path) -> dict:
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[12:16])
    return json.loads(data[20 : 20 + length])


def test_glb_has_y_up_and_keeps_lengths(tmp_path):
    mesh = trimesh.load_mesh(written(tmp_path, "m.glb"), process=False)
    assert mesh.extents == pytest.approx([2, 4, 3])
    # What was up, +z, is +y; what was +y is -z.
    assert mesh.bounds[1] == pytest.approx([2, 4, 0])
    assert mesh.volume == pytest.approx(4)


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_every_face_keeps_its_color(tmp_path, suffix):
    loaded = load_object(written(tmp_path, f"m{suffix}"), normalize="cube")
    assert len(loaded.faces) == 4
    texture = loaded.textures[0].pixels[..., :3]
    middle = loaded.base_uvs.mean(1) * texture.shape[0]
    seen = texture[middle[:, 1].astype(int), middle[:, 0].astype(int)].astype(int)
    # The longest channel of each: red looks down, green along -y, blue along -x.
    for normal, channel in (((0, 0, -1), 0), ((0, -1, 0), 1), ((-1, 0, 0), 2)):
        face = (loaded.face_normals @ np.array(normal)).argmax()
        assert seen[face].argmax() == channel
        assert seen[face].max() == pytest.approx(200, abs=6)
        assert seen[face].min() == pytest.approx(30, abs=6)


def test_light_that_is_in_the_colors_is_not_added_again(tmp_path):
    unlit = gltf(written(tmp_path, "a.glb"))
    assert "KHR_materials_unlit" in unlit["materials"][0]["extensions"]
    assert unlit["extensionsUsed"] == ["KHR_materials_unlit"]
    lit = gltf(written(tmp_path, "b.glb", is_lit=True))
    assert "extensions" not in lit["materials"][0]
    assert lit["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0


def test_textures_of_glb_are_small(tmp_path):
    assert gltf(written(tmp_path, "m.glb"))["images"][0]["mimeType"] == "image/jpeg"


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl"])
def test_other_formats_have_z_up_and_keep_lengths(tmp_path, suffix):
    mesh = trimesh.load_mesh(written(tmp_path, f"m{suffix}"))
    assert mesh.extents == pytest.approx([2, 3, 4])
    assert mesh.volume == pytest.approx(4)


def test_obj_names_its_material_and_texture(tmp_path):
    path = written(tmp_path, "model.obj")
    assert "mtllib model.mtl" in path.read_text()
    assert "map_Kd model.jpg" in (tmp_path / "model.mtl").read_text()
    with Image.open(tmp_path / "model.jpg") as texture:
        assert texture.size == (64, 64)


def test_ply_has_the_colors_at_its_vertices(tmp_path):
    mesh = trimesh.load_mesh(written(tmp_path, "m.ply"), process=False)
    known = {(200, 30, 30), (30, 200, 30), (30, 30, 200), (120, 120, 120)}
    assert {tuple(color[:3].tolist()) for color in mesh.visual.vertex_colors} <= known


def test_other_suffixes_are_refused():
    with pytest.raises(ValueError, match=r"expected a model file .*try model.glb"):
        tetrahedron().files("model.fbx")
