"""OBJ and MTL files: every face, in the color, with the texture and the opacity they say."""

import numpy as np
import pytest
from PIL import Image

from spad.images.color import linear_from_srgb
from spad.meshes.model_file import BARE
from spad.meshes.obj import read_obj

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
UVS = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
TEXTURED = "f 1/1 2/2 3/3 4/4\n"
RED = (255, 0, 0)


def write(folder, text: str, mtl: str | None = None, pictures=()):
    """m.obj, m.mtl if there is any, and red pictures."""
    (folder / "m.obj").write_text(text)
    if mtl is not None:
        (folder / "m.mtl").write_text(mtl)
    for name in pictures:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (2, 2), RED).save(folder / name, "PNG")
    return folder / "m.obj"


def with_texture(folder, statement: str, *pictures: str):
    text = f"mtllib m.mtl\n{SQUARE}{UVS}usemtl a\n{TEXTURED}"
    return read_obj(write(folder, text, f"newmtl a\nKd 1 1 1\n{statement}\n", pictures))


FACES = {
    "plain": "f 1 2 3\nf 1 3 4",
    "a quad": "f 1 2 3 4",
    "backwards": "f -4 -3 -2 -1",
    "normals": "vn 0 0 1\nf 1//1 2//1 3//1 4//1",
    "everything": "vt 0 0\nvn 0 0 1\nf 1/1/1 2/1/1 3/1/1 4/1/1",
    "backwards, everything": "vt 0 0\nvn 0 0 1\nf -4/-1/-1 -3/-1/-1 -2/-1/-1 -1/-1/-1",
    "mixed": "vt 0 0\nf 1/1 2/1 3/1\nf 1 3 4",
    "old": "fo 1 2 3 4",
    "continued": "f 1 2 \\\n3 4",
    "comment": "f 1 2 3 4 # a square",
    "tabs": "f\t1\t2\t3\t4",
    "groups": "g one two\ns 1\no thing\nf 1 2 3\ns off\nf 1 3 4",
    "carriage returns": "f 1 2 3\r\nf 1 3 4\r\n",
}


@pytest.mark.parametrize("name", FACES)
def test_faces_in_every_spelling(tmp_path, name):
    model = read_obj(write(tmp_path, f"{SQUARE}{FACES[name]}\n"))
    corners = np.array(sorted(np.concatenate([p.corners for p in model.parts]).tolist()))
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    assert np.array_equal(corners, square[[[0, 1, 2], [0, 2, 3]]])
    assert model.num_vertices == 4


def test_numbers_count_backwards_from_where_they_stand(tmp_path):
    text = "v 9 9 9\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 5 5 5\nf -4 -3 -2\n"
    (part,) = read_obj(write(tmp_path, text)).parts
    assert np.array_equal(part.corners[0], part.corners[1])


def test_a_concave_face_leaves_its_notch_open(tmp_path):
    text = "v 0 0 0\nv 2 0 0\nv 2 2 0\nv 1 1 0\nv 0 2 0\nf 1 2 3 4 5\n"
    (part,) = read_obj(write(tmp_path, text)).parts
    a, b, c = part.corners.transpose(1, 0, 2)
    assert np.allclose(np.cross(b - a, c - a)[:, 2].sum() / 2, 3)
    assert (np.cross(b - a, c - a)[:, 2] > 0).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("f 1 2 5", "a face points at a vertex that does not exist"),
        ("f 1 2 -5", "a face points at a vertex that does not exist"),
        ("f 1/1 2/1 3/1", "a face points at a texture coordinate that does not exist"),
        ("f 0 1 2", "count from 1, got '0'"),
        ("f 1 2 x", "expected a corner such as 1/2/3, got 'x'"),
        ("f 1 2 99999999999999999999999", "count from 1"),
        ("v 1 2", "expected 3 numbers after 'v'"),
        ("v 1 2 three", "expected numbers after 'v'"),
        ("v 1 2 nan\nf 1 2 3", "expected finite vertices"),
        ("vt", "expected 1 numbers after 'vt'"),
        ("vt 1e30 0\nf 1 2 3", "expected texture coordinates within"),
        ("v 0 0 0 nan 0 0\nf 1 2 3", "expected finite colors"),
    ],
)
def test_malformed_lines_are_one_clear_error(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read_obj(write(tmp_path, f"{SQUARE}{text}\n"))


def test_too_many_faces_are_refused_before_they_are_laid_out(tmp_path):
    path = write(tmp_path, f"{SQUARE}f 1 2 3 4\n")
    assert len(read_obj(path, max_faces=2).parts[0].corners) == 2
    with pytest.raises(ValueError, match="2 triangles are more than --max-faces 1"):
        read_obj(path, max_faces=1)


def test_points_and_lines_are_left_out_and_noted(tmp_path):
    model = read_obj(write(tmp_path, f"{SQUARE}p 1\nl 1 2\nf 1 2 3\n"))
    assert len(model.parts[0].corners) == 1
    assert model.notes == ("has lines, which are left out", "has points, which are left out")


@pytest.mark.parametrize("scale", [1, 255])
def test_colors_behind_the_coordinates_are_srgb(tmp_path, scale):
    colors = np.array([[0.2, 0.4, 0.6], [1, 0, 0], [0, 1, 0], [1, 1, 1]])
    lines = [
        f"v {x} {y} 0 {r} {g} {b}"
        for (x, y), (r, g, b) in zip(
            [(0, 0), (1, 0), (1, 1), (0, 1)], (colors * scale).tolist(), strict=True
        )
    ]
    (part,) = read_obj(write(tmp_path, "\n".join([*lines, "f 1 2 3 4"]))).parts
    assert np.allclose(part.colors[0, :, :3], linear_from_srgb(colors[:3]), atol=1e-6)


def test_faces_have_the_materials_in_force(tmp_path):
    mtl = "newmtl red\nKd 1 0 0\nnewmtl light blue\nKd 0.5 0.5 1\n"
    text = f"mtllib m.mtl\n{SQUARE}f 1 2 3\nusemtl red\nf 1 3 4\nusemtl light blue\nf 2 3 4\n"
    model = read_obj(write(tmp_path, text, mtl))
    bare, red, blue = (model.materials[part.material] for part in model.parts)
    assert bare == BARE and red.base_factor == (1, 0, 0, 1)
    assert np.allclose(blue.base_factor[:3], linear_from_srgb(np.array([0.5, 0.5, 1])))


OPACITIES = {
    "d 0.25": 0.25, "d -halo 0.25": 0.25, "Tr 0.75": 0.25, "d 0.25\nTr 0.25": 0.25,
    "Tr 0\nd 1": 1.0, "": 1.0, "D 0.25": 0.25,
}  # fmt: skip


@pytest.mark.parametrize("statement", OPACITIES)
def test_opacity(tmp_path, statement):
    text = f"mtllib m.mtl\n{SQUARE}usemtl a\nf 1 2 3\n"
    model = read_obj(write(tmp_path, text, f"newmtl a\nKd 1 0 0\n{statement}\n"))
    (material,) = model.materials
    assert material.base_factor == (1, 0, 0, OPACITIES[statement])
    assert material.alpha_mode == ("OPAQUE" if OPACITIES[statement] == 1 else "BLEND")


def test_emission(tmp_path):
    text = f"mtllib m.mtl\n{SQUARE}{UVS}usemtl a\n{TEXTURED}"
    (material,) = read_obj(write(tmp_path, text, "newmtl a\nKe 1 0.5 0\n")).materials
    assert np.allclose(material.emissive_factor, linear_from_srgb(np.array([1, 0.5, 0])))
    model = read_obj(write(tmp_path, text, "newmtl a\nKe 0 0 0\nmap_Ke t.png\n", ["t.png"]))
    assert model.materials[0].emissive_factor == (1, 1, 1)
    assert model.textures[model.materials[0].emissive_texture].pixels[0, 0, :3].tolist() == [*RED]
    assert model.parts[0].emissive_uvs is not None and model.parts[0].base_uvs is None


NAMES = {
    "map_Kd t.png": "t.png",
    "map_Kd sub/t.png": "sub/t.png",
    "map_Kd sub\\t.png": "sub/t.png",
    "map_Kd sub\\\\t.png": "sub/t.png",
    "map_Kd ./sub/../t.png": "t.png",
    "map_Kd my wood.png": "my wood.png",
    'map_Kd "my wood.png"': "my wood.png",
    "map_Kd 'my wood.png'": "my wood.png",
    "map_Kd Wood.PNG": "wood.png",
    "map_Kd SUB\\Wood.PNG": "sub/wood.png",
    "MAP_KD t.png": "t.png",
    "map_Kd -o 0 0 0 t.png": "t.png",
    "map_Kd -s 1 1 1 my wood.png": "my wood.png",
    "map_Kd -clamp on -s 1 t.png": "t.png",
    "map_Kd -blendu on -blendv off -cc off -texres 512 -type sphere t.png": "t.png",
    "map_Kd t.png -s 1 1 1": "t.png",
    "map_Kd   t.png  ": "t.png",
    "map_Kd\tt.png": "t.png",
    "map_Kd -1.png": "-1.png",
    "map_Kd 7.png": "7.png",
    "map_Kd täxture.png": "täxture.png",
}


@pytest.mark.parametrize("statement", NAMES)
def test_textures_are_found_however_their_names_are_written(tmp_path, statement):
    model = with_texture(tmp_path, statement, NAMES[statement])
    (texture,) = model.textures
    assert texture.pixels[0, 0].tolist() == [*RED, 255]
    assert model.materials[0].base_texture == 0 and model.notes == ()


@pytest.mark.parametrize("name", ["C:\\work\\t.png", "/somewhere/t.png", "..\\t.png", "old/t.png"])
def test_of_a_path_that_leads_nowhere_the_last_part_counts_and_is_noted(tmp_path, name):
    model = with_texture(tmp_path, f"map_Kd {name}", "t.png")
    assert len(model.textures) == 1 and "is taken from t.png" in model.notes[0]


def test_a_texture_beside_its_library_is_found(tmp_path):
    text = f"mtllib sub/m.mtl\n{SQUARE}{UVS}usemtl a\n{TEXTURED}"
    write(tmp_path, text, None, ["sub/t.png"])
    (tmp_path / "sub" / "m.mtl").write_text("newmtl a\nmap_Kd t.png\n")
    assert len(read_obj(tmp_path / "m.obj").textures) == 1


@pytest.mark.parametrize("kind", ["map_Kd", "map_Ke", "map_d"])
def test_a_missing_texture_is_refused_by_name(tmp_path, kind):
    with pytest.raises(ValueError, match="texture 'gone.png' is missing"):
        with_texture(tmp_path, f"{kind} -s 1 1 1 gone.png")


def test_a_damaged_texture_is_refused_by_name(tmp_path):
    (tmp_path / "t.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="texture 't.png' cannot be read: no image"):
        with_texture(tmp_path, "map_Kd t.png")


def test_nothing_outside_the_folder_is_opened(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="secret.png', which lies outside its folder"):
        with_texture(folder, "map_Kd ../secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="link.png', which lies outside its folder"):
        with_texture(folder, "map_Kd link.png")
    (tmp_path / "m.mtl").write_text("newmtl a\nKd 1 0 0\n")
    text = f"mtllib ../m.mtl\n{SQUARE}usemtl a\nf 1 2 3\n"
    (folder / "m.mtl").unlink()
    with pytest.raises(ValueError, match="m.mtl', which lies outside its folder"):
        read_obj(write(folder, text))


def test_what_no_face_uses_may_be_missing(tmp_path):
    text = f"mtllib m.mtl\n{SQUARE}usemtl a\nf 1 2 3\nusemtl b\n"
    mtl = "newmtl a\nKd 1 0 0\nnewmtl b\nmap_Kd gone.png\n"
    assert len(read_obj(write(tmp_path, text, mtl)).materials) == 1


@pytest.mark.parametrize(
    ("head", "note"),
    [
        ("mtllib gone.mtl\nusemtl a\n", "material library 'gone.mtl' is missing"),
        ("mtllib m.mtl\nusemtl other\n", "material 'other' is in no library"),
        ("usemtl other\n", "material 'other' is in no library"),
        ("mtllib gone.mtl\n", "material library 'gone.mtl' is missing"),
    ],
)
def test_a_missing_library_or_material_counts_as_none_and_is_noted(tmp_path, head, note):
    model = read_obj(write(tmp_path, f"{head}{SQUARE}f 1 2 3\n", "newmtl a\nKd 1 0 0\n"))
    assert model.materials == (BARE,)
    assert any(note in one for one in model.notes)


def test_a_library_and_no_material_is_the_default(tmp_path):
    model = read_obj(write(tmp_path, f"mtllib m.mtl\n{SQUARE}f 1 2 3\n", "newmtl a\nKd 1 0 0\n"))
    assert model.materials == (BARE,) and model.notes == ()


def test_libraries_of_several_names_and_of_names_with_spaces(tmp_path):
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 1 0 0\n")
    (tmp_path / "my b.mtl").write_text("newmtl b\nKd 0 1 0\n")
    (tmp_path / "c.mtl").write_text("newmtl c\nKd 0 0 1\n")
    text = f"mtllib a.mtl c.mtl\nmtllib my b.mtl\n{SQUARE}"
    text += "usemtl a\nf 1 2 3\nusemtl b\nf 1 2 4\nusemtl c\nf 1 3 4\n"
    factors = {m.base_factor for m in read_obj(write(tmp_path, text)).materials}
    assert factors == {(1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1)}


def test_textures_are_placed_from_the_bottom_left(tmp_path):
    (part,) = with_texture(tmp_path, "map_Kd t.png", "t.png").parts
    assert np.allclose(part.base_uvs[0], [[0, 1], [1, 1], [1, 0]])


def test_options_scale_move_and_clamp_textures(tmp_path):
    model = with_texture(tmp_path, "map_Kd -s 2 3 -o 0.5 0.25 -clamp on t.png", "t.png")
    expected = np.array([[0, 0], [1, 0], [1, 1]]) * [2, 3] + [0.5, 0.25]
    assert np.allclose(model.parts[0].base_uvs[0], expected * [1, -1] + [0, 1])
    assert model.textures[0].wrap == ("clamp", "clamp")
    model = with_texture(tmp_path, "map_Kd -mm 0 2 t.png")
    assert "the option -mm of texture 't.png' is left out" in model.notes


@pytest.mark.parametrize(
    ("option", "mode", "expected"),
    [
        ("", "L", 80), ("", "RGBA", 30), ("-imfchan r ", "RGB", 200), ("-imfchan g ", "RGB", 20),
        ("-imfchan m ", "RGBA", 30), ("-imfchan l ", "RGBA", 75),
    ],
)  # fmt: skip
def test_opacity_of_a_picture(tmp_path, option, mode, expected):
    color = {"L": 80, "RGB": (200, 20, 30), "RGBA": (200, 20, 30, 30)}[mode]
    Image.new(mode, (2, 2), color).save(tmp_path / "t.png")
    model = with_texture(tmp_path, f"map_d {option}t.png")
    (material,) = model.materials
    texture = model.textures[material.opacity_texture]
    assert abs(int(texture.pixels[0, 0, 3]) - expected) <= 1
    assert material.alpha_mode == "BLEND" and material.base_texture == -1


def test_the_alpha_of_a_color_texture_means_nothing(tmp_path):
    Image.new("RGBA", (2, 2), (*RED, 0)).save(tmp_path / "t.png")
    model = with_texture(tmp_path, "map_Kd t.png")
    assert (model.textures[0].pixels[..., 3] == 255).all()
    assert model.materials[0].alpha_mode == "OPAQUE"


def test_faces_without_texture_coordinates_have_the_plain_color(tmp_path):
    text = f"mtllib m.mtl\n{SQUARE}{UVS}usemtl a\nf 1/1 2/2 3/3\nf 1 3 4\n"
    model = read_obj(write(tmp_path, text, "newmtl a\nKd 0 1 0\nmap_Kd t.png\n", ["t.png"]))
    plain, textured = sorted(
        (model.materials[part.material] for part in model.parts), key=lambda m: m.base_texture
    )
    assert plain.base_factor == (0, 1, 0, 1) and textured.base_factor == (1, 1, 1, 1)
    assert "no texture coordinates" in model.notes[0]


@pytest.mark.parametrize("statement", ["Kd 0.5", "Kd 2 0 0", "Kd spectral a.rfl"])
def test_colors_of_other_kinds(tmp_path, statement):
    text = f"mtllib m.mtl\n{SQUARE}usemtl a\nf 1 2 3\n"
    model = read_obj(write(tmp_path, text, f"newmtl a\n{statement}\n"))
    (material,) = model.materials
    expected = {"Kd 2 0 0": (1, 0, 0), "Kd spectral a.rfl": (0.6,) * 3}
    gray = (linear_from_srgb(np.array(0.5)).item(),) * 3
    assert np.allclose(material.base_factor[:3], expected.get(statement, gray))
    assert bool(model.notes) == (statement in ("Kd 2 0 0", "Kd spectral a.rfl"))


@pytest.mark.parametrize("statement", ["Kd one", "Kd", "d", "Tr x", "Ke nan 0 0"])
def test_malformed_libraries_are_one_clear_error(tmp_path, statement):
    text = f"mtllib m.mtl\n{SQUARE}usemtl a\nf 1 2 3\n"
    with pytest.raises(ValueError, match="expected"):
        read_obj(write(tmp_path, text, f"newmtl a\n{statement}\n"))
