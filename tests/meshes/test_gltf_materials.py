"""Materials of glTF files: factors, textures, where these lie, and what is beyond their edge."""

import io

import numpy as np
import pytest
from PIL import Image, features

from gltf_builder import FACES, UVS, Gltf
from hand_made import huge_png
from spad.cameras import Cameras
from spad.images.color import linear_from_srgb
from spad.meshes.gltf import check_references, read_gltf
from spad.meshes.mesh import load_object
from spad.meshes.model_file import DEFAULT_ALBEDO, Texture
from spad.meshes.raycast import Light, render_views
from spad.meshes.texture_sampling import sample_texture

RED, GREEN, BLUE, YELLOW = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]
FOUR = np.array([[RED, GREEN], [BLUE, YELLOW]], dtype="u1")
# Under this light a surface shows its own color.
FULL = Light(ground=1.0, sky=1.0, key=0.0, fill=0.0)
DARK = Light(ground=0.0, sky=0.0, key=0.0, fill=0.0)
QUAD = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], "f4")
QUAD_FACES = [[0, 1, 2], [0, 2, 3]]
QUAD_UVS = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], "f4")


def read(gltf: Gltf, tmp_path):
    return read_gltf(gltf.save(tmp_path / "m.gltf"))


def with_material(**material) -> Gltf:
    gltf = Gltf()
    gltf.add("materials", **material)
    gltf.mesh(gltf.primitive(QUAD, QUAD_FACES, material=0))
    return gltf


def shown(gltf: Gltf, tmp_path, light: Light = FULL) -> list[int]:
    """RGBA in the middle of a quad's picture."""
    obj = load_object(gltf.save(tmp_path / "m.gltf"))
    cameras = Cameras.orbit(0.0, -90.0, height=16, width=16)
    return render_views(obj, cameras, light=light).rgba[0, 8, 8].tolist()


def test_what_has_no_material_is_gray_and_an_empty_material_is_white(tmp_path):
    gltf = Gltf()
    gltf.mesh()
    assert read(gltf, tmp_path).materials[0].base_factor == (DEFAULT_ALBEDO,) * 3 + (1.0,)
    (material,) = read(with_material(), tmp_path).materials
    assert material.base_factor == (1, 1, 1, 1) and material.alpha_mode == "OPAQUE"


def test_factors_keep_their_precision(tmp_path):
    factor = [0.123456789, 0.5, 0.25, 0.987654321]
    gltf = with_material(
        pbrMetallicRoughness={"baseColorFactor": factor}, alphaMode="MASK", alphaCutoff=0.123456789,
        emissiveFactor=[0.111111111, 0, 0],
    )  # fmt: skip
    (material,) = read(gltf, tmp_path).materials
    assert material.base_factor == tuple(factor) and material.alpha_cutoff == 0.123456789
    assert material.emissive_factor == (0.111111111, 0, 0)


def test_emission_is_as_strong_as_the_extension_says(tmp_path):
    strong = {"KHR_materials_emissive_strength": {"emissiveStrength": 5}}
    gltf = with_material(emissiveFactor=[0.2, 0.1, 0], extensions=strong)
    (material,) = read(gltf, tmp_path).materials
    assert material.emissive_factor == (1, 0.5, 0)
    assert shown(gltf, tmp_path, DARK) == [255, 188, 0, 255]


def test_unlit_surfaces_are_shown_as_they_are(tmp_path):
    base = {"baseColorFactor": [1, 0.2158605, 0, 1]}
    unlit = {"KHR_materials_unlit": {}}
    gltf = with_material(pbrMetallicRoughness=base, extensions=unlit, emissiveFactor=[0, 0, 1])
    for light in (DARK, FULL, Light()):
        assert shown(gltf, tmp_path, light) == [255, 128, 0, 255]


def glossy(**extension) -> Gltf:
    both = {"KHR_materials_pbrSpecularGlossiness": extension}
    core = {"baseColorFactor": [1, 0, 0, 1]}
    return with_material(pbrMetallicRoughness=core, extensions=both)


def test_specular_glossiness_goes_before_the_core_material(tmp_path):
    (material,) = read(glossy(diffuseFactor=[0, 1, 0, 0.5]), tmp_path).materials
    assert material.base_factor == (0, 1, 0, 0.5)
    gray = glossy(diffuseFactor=[0, 1, 0, 1], specularFactor=[0.2, 0.2, 0.2])
    assert read(gray, tmp_path).materials[0].base_factor == (0, 1, 0, 1)
    gold = glossy(diffuseFactor=[0, 0, 0, 1], specularFactor=[1, 0.8, 0.3])
    assert read(gold, tmp_path).materials[0].base_factor == (1, 0.8, 0.3, 1)
    black = glossy(diffuseFactor=[0, 0, 0, 1])
    assert read(black, tmp_path).materials[0].base_factor == (0, 0, 0, 1)


def test_specular_glossiness_with_a_texture(tmp_path):
    gltf = glossy()
    texture = gltf.add("textures", source=gltf.picture([[GREEN]]))
    extension = gltf.data["materials"][0]["extensions"]["KHR_materials_pbrSpecularGlossiness"]
    extension["diffuseTexture"] = {"index": texture}
    attributes = gltf.data["meshes"][0]["primitives"][0]["attributes"]
    attributes["TEXCOORD_0"] = gltf.accessor(QUAD_UVS)
    assert shown(gltf, tmp_path) == [0, 255, 0, 255]


def test_factors_beyond_one_are_cut_off_and_noted(tmp_path):
    gltf = with_material(pbrMetallicRoughness={"baseColorFactor": [2, 1.0000001, -1, 1]})
    model = read(gltf, tmp_path)
    assert model.materials[0].base_factor == (1, 1, 0, 1)
    assert "baseColorFactor is cut off" in model.notes[0]


def placed(matrix, uv=UVS) -> np.ndarray:
    return (uv @ np.array(matrix)[:, :2].T + np.array(matrix)[:, 2])[FACES]


TRANSFORMS = {
    "none": ({}, [[1, 0, 0], [0, 1, 0]]),
    "offset": ({"offset": [0.5, -0.25]}, [[1, 0, 0.5], [0, 1, -0.25]]),
    "scale": ({"scale": [0.5, 2]}, [[0.5, 0, 0], [0, 2, 0]]),
    # What lies to the right comes to lie above: v points down.
    "quarter turn": ({"rotation": np.pi / 2}, [[0, 1, 0], [-1, 0, 0]]),
    "scale, then turn, then offset": (
        {"rotation": np.pi / 2, "scale": [2, 3], "offset": [0.1, 0.2]},
        [[0, 3, 0.1], [-2, 0, 0.2]],
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_texture_transforms(tmp_path, name):
    transform, matrix = TRANSFORMS[name]
    gltf = Gltf()
    gltf.mesh(gltf.textured(FOUR, extensions={"KHR_texture_transform": transform}))
    (part,) = read(gltf, tmp_path).parts
    assert np.allclose(part.base_uvs, placed(matrix), atol=1e-6)


@pytest.mark.parametrize(
    ("info", "texcoord"),
    [
        ({}, 0),
        ({"texCoord": 1}, 1),
        ({"texCoord": 1, "extensions": {"KHR_texture_transform": {}}}, 1),
        ({"extensions": {"KHR_texture_transform": {"texCoord": 1}}}, 1),
        ({"texCoord": 1, "extensions": {"KHR_texture_transform": {"texCoord": 0}}}, 0),
    ],
)
def test_textures_lie_by_the_coordinates_they_name(tmp_path, info, texcoord):
    gltf = Gltf()
    primitive = gltf.textured(FOUR, **info)
    primitive["attributes"]["TEXCOORD_1"] = gltf.accessor(UVS * 0.5)
    gltf.mesh(primitive)
    (part,) = read(gltf, tmp_path).parts
    assert np.allclose(part.base_uvs, (UVS * (0.5 if texcoord else 1))[FACES])


def test_emission_and_base_lie_each_in_its_own_way(tmp_path):
    gltf = Gltf()
    primitive = gltf.textured(FOUR)
    glow = {"index": gltf.add("textures", source=gltf.picture([[GREEN]])), "texCoord": 1}
    gltf.data["materials"][0] |= {"emissiveTexture": glow, "emissiveFactor": [1, 1, 1]}
    primitive["attributes"]["TEXCOORD_1"] = gltf.accessor(UVS + 1)
    gltf.mesh(primitive)
    (part,) = read(gltf, tmp_path).parts
    assert np.allclose(part.base_uvs, UVS[FACES])
    assert np.allclose(part.emissive_uvs, UVS[FACES] + 1)


def test_coordinates_that_a_mesh_does_not_have_count_as_zero_and_are_noted(tmp_path):
    gltf = Gltf()
    gltf.mesh(gltf.textured(FOUR, texCoord=2))
    model = read(gltf, tmp_path)
    assert (model.parts[0].base_uvs == 0).all() and "no TEXCOORD_2" in model.notes[0]


@pytest.mark.parametrize(
    ("sampler", "wrap", "nearest"),
    [
        (None, ("repeat", "repeat"), False),
        ({}, ("repeat", "repeat"), False),
        ({"wrapS": 33071, "wrapT": 33648}, ("clamp", "mirror"), False),
        ({"magFilter": 9728, "minFilter": 9987}, ("repeat", "repeat"), True),
        ({"magFilter": 9729, "minFilter": 9728}, ("repeat", "repeat"), False),
        ({"minFilter": 9984}, ("repeat", "repeat"), True),
    ],
)
def test_samplers(tmp_path, sampler, wrap, nearest):
    gltf = Gltf()
    gltf.mesh(gltf.textured(FOUR, sampler=sampler))
    (texture,) = read(gltf, tmp_path).textures
    assert texture.wrap == wrap and texture.nearest == nearest
    assert np.array_equal(texture.pixels[..., :3], FOUR)


def slow_texel(pixels: np.ndarray, wrap: tuple[str, str], column: int, row: int) -> np.ndarray:
    """The texel at a place, by walking along the rows and columns that the wrap mode lays out."""

    def at(index: int, size: int, mode: str) -> int:
        if mode == "clamp":
            return max(0, min(size - 1, index))
        strip = list(range(size)) + (list(range(size))[::-1] if mode == "mirror" else [])
        return strip[index % len(strip)]

    texel = pixels[at(row, pixels.shape[0], wrap[1]), at(column, pixels.shape[1], wrap[0])] / 255
    return np.append(linear_from_srgb(texel[:3]), texel[3])


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("wrap", [("repeat", "clamp"), ("mirror", "repeat"), ("clamp", "mirror")])
def test_textures_are_sampled_as_their_slow_twin(wrap, nearest):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 5, 4), dtype=np.uint8)
    uv = rng.uniform(-3, 3, (200, 2)).astype(np.float32)
    found = sample_texture(Texture(pixels, wrap, nearest), uv)
    for (u, v), texel in zip(uv.astype(float), found, strict=True):
        x, y = u * 5, v * 3
        if nearest:
            expected = slow_texel(pixels, wrap, int(np.floor(x)), int(np.floor(y)))
        else:
            left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
            across, down = x - 0.5 - left, y - 0.5 - top
            expected = sum(
                slow_texel(pixels, wrap, left + i, top + j)
                * (across if i else 1 - across)
                * (down if j else 1 - down)
                for i in (0, 1)
                for j in (0, 1)
            )
        assert np.allclose(texel, expected, atol=1e-5)


def encoded(kind: str, color=GREEN) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), tuple(color)).save(file, kind)
    return file.getvalue()


def with_source(tmp_path, extension: str, data: bytes, fallback: bool, required: bool = False):
    """A quad whose texture is a picture in an extension, and red in the core if at all."""
    gltf = Gltf(extensionsUsed=[extension])
    if required:
        gltf.data["extensionsRequired"] = [extension]
    primitive = gltf.textured([[RED]], QUAD_UVS)
    primitive["attributes"]["POSITION"] = gltf.accessor(QUAD)
    primitive["indices"] = gltf.accessor(np.ravel(QUAD_FACES), "u2")
    gltf.mesh(primitive)
    image = gltf.add("images", bufferView=gltf.view(data), mimeType="image/other")
    gltf.data["textures"][0]["extensions"] = {extension: {"source": image}}
    if not fallback:
        del gltf.data["textures"][0]["source"]
    return gltf


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("extension", ["EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds"])
def test_pictures_of_other_formats_go_before_the_core_one(tmp_path, extension, fallback):
    kind = extension.rpartition("_")[2].upper()
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    gltf = with_source(tmp_path, extension, encoded(kind), fallback, required=not fallback)
    red, green, blue, _ = shown(gltf, tmp_path)
    assert green > 250 and red < 5 and blue < 5


@pytest.mark.parametrize("extension", ["EXT_texture_webp", "KHR_texture_basisu"])
def test_pictures_that_cannot_be_read_leave_the_core_one(tmp_path, extension):
    gltf = with_source(tmp_path, extension, b"\xabKTX 20\xbb" + bytes(60), fallback=True)
    assert shown(gltf, tmp_path) == [255, 0, 0, 255]


@pytest.mark.parametrize(
    ("extension", "fallback", "required", "words"),
    [
        ("KHR_texture_basisu", False, False, "a KHR_texture_basisu one, which is not read"),
        ("KHR_texture_basisu", True, True, "requires KHR_texture_basisu"),
        ("EXT_texture_webp", False, True, "image 1 cannot be read"),
        ("ACME_texture", False, False, "expected a source, got none"),
    ],
)
def test_pictures_without_a_fallback_are_refused(tmp_path, extension, fallback, required, words):
    gltf = with_source(tmp_path, extension, b"no picture", fallback, required)
    with pytest.raises(ValueError, match=words):
        read(gltf, tmp_path)


def test_pictures_of_16_bits_are_not_white(tmp_path):
    gray = np.full((4, 4), 0x8080, "u2")
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "PNG")
    gltf = with_source(tmp_path, "EXT_texture_webp", file.getvalue(), fallback=False)
    assert shown(gltf, tmp_path) == [128, 128, 128, 255]


PICTURES = {
    "missing": ({"uri": "gone.png"}, "image 'gone.png' is missing"),
    "outside": ({"uri": "../a.png"}, "outside its folder"),
    "address": ({"uri": "https://a/b.png"}, "expected a file beside it"),
    "text": ({"uri": "data:image/png;base64,AAAA"}, "image 0 cannot be read: no image"),
    "neither": ({}, "expected a uri or a bufferView"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_unusable_pictures_are_named(tmp_path, name):
    image, words = PICTURES[name]
    gltf = Gltf()
    gltf.mesh(gltf.textured(FOUR))
    gltf.data["images"] = [image]
    with pytest.raises(ValueError, match=words):
        read(gltf, tmp_path)
    with pytest.raises(ValueError, match=f"cannot read m.gltf: .*{words}"):
        check_references(tmp_path / "m.gltf")


def test_cut_and_huge_pictures_are_named(tmp_path):
    whole = encoded("PNG")
    for data in (whole[:-20], whole[:40] + b"\xff\xfe" + whole[42:], huge_png(60_000)):
        gltf = with_source(tmp_path, "EXT_texture_webp", data, fallback=False)
        with pytest.raises(ValueError, match="image 1 cannot be read"):
            read(gltf, tmp_path)


def test_pictures_that_do_not_show_may_be_missing(tmp_path):
    gltf = Gltf()
    gltf.mesh(gltf.textured(FOUR))
    gltf.data["images"].append({"uri": "gone.png"})
    gltf.data["textures"].append({"source": 1})
    gltf.data["materials"][0]["normalTexture"] = {"index": 1}
    assert len(read(gltf, tmp_path).textures) == 1
    check_references(tmp_path / "m.gltf")
