"""What --normalize promises: the box is that of what can be seen."""

import numpy as np
import pytest

from gltf_builder import Gltf
from spad.meshes.mesh import load_object

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], "f4")
CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6],
     [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def cube_and(points=(), faces=(), **node) -> Gltf:
    """A cube, and another mesh below a node of its own."""
    gltf = Gltf()
    gltf.mesh(gltf.primitive(CUBE, CUBE_FACES))
    gltf.add("nodes", mesh=0)
    if len(points):
        gltf.mesh(gltf.primitive(np.array(points, "f4"), faces))
        gltf.add("nodes", mesh=1, **node)
    return gltf


FAR = [[6, 0, 0], [7, 0, 0], [6, 1, 0]]
UNSEEN = {
    "three corners at one point": cube_and([[6, 0, 0]] * 3, [[0, 1, 2]]),
    "one corner twice": cube_and([[6, 0, 0], [9, 0, 0]], [[0, 1, 1]]),
    "three corners on a line": cube_and([[6, 0.1, 0], [7, 0.3, 0], [8, 0.5, 0]], [[0, 1, 2]]),
    "a sliver": cube_and([[6, 0, 0], [8, 0, 0], [7, 1e-7, 0]], [[0, 1, 2]]),
    "a node of scale 0": cube_and(FAR, [[0, 1, 2]], scale=[0, 0, 0], translation=[6, 0, 0]),
    "a node of scale 1e-9": cube_and(FAR, [[0, 1, 2]], scale=[1e-9] * 3, translation=[6, 0, 0]),
    "points that no face has": cube_and([*FAR, [50, 0, 0], *CUBE[:3] / 2], [[4, 5, 6]]),
}


@pytest.mark.parametrize("normalize", ["sphere", "cube"])
@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_seen_takes_no_room(tmp_path, name, normalize):
    alone = load_object(cube_and().save(tmp_path / "alone.gltf"), normalize)
    beside = load_object(UNSEEN[name].save(tmp_path / "beside.gltf"), normalize)
    assert np.allclose(beside.object_from_asset, alone.object_from_asset)
    assert np.abs(beside.vertices).max() == pytest.approx(np.abs(alone.vertices).max())


@pytest.mark.parametrize("normalize", ["sphere", "cube"])
def test_what_is_far_and_can_be_seen_takes_its_room(tmp_path, normalize):
    gltf = cube_and(FAR, [[0, 1, 2]])
    obj = load_object(gltf.save(tmp_path / "m.gltf"), normalize)
    # From -1 to 7 in x, from -1 to 1 otherwise.
    scale = 1 / 8 if normalize == "cube" else 1 / np.linalg.norm([4, 1, 1])
    assert np.linalg.norm(obj.object_from_asset[0, :3]) == pytest.approx(scale)
    assert obj.vertices[:, 0].min() == pytest.approx(-4 * scale)


def test_the_transform_takes_the_file_to_the_object(tmp_path):
    obj = load_object(cube_and(FAR, [[0, 1, 2]]).save(tmp_path / "m.gltf"))
    moved = np.concatenate([CUBE, FAR]) @ obj.object_from_asset[:3, :3].T
    moved += obj.object_from_asset[:3, 3]
    gaps = np.linalg.norm(moved[:, None] - obj.vertices, axis=-1)
    assert gaps.min(axis=0).max() < 1e-5 and gaps.min(axis=1).max() < 1e-5


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_objects_are_objects(tmp_path, scale):
    gltf = cube_and()
    gltf.data["nodes"][0]["scale"] = [scale] * 3
    obj = load_object(gltf.save(tmp_path / "m.gltf"))
    assert len(obj.faces) == 12
    assert np.linalg.norm(obj.vertices, axis=-1).max() == pytest.approx(1)


@pytest.mark.parametrize(
    ("scale", "words"),
    [(0, "only triangles without area"), (1e100, "expected coordinates within")],
)
def test_objects_without_size_or_with_too_much_are_refused(tmp_path, scale, words):
    gltf = cube_and()
    gltf.data["nodes"][0]["scale"] = [scale] * 3
    with pytest.raises(ValueError, match=words):
        load_object(gltf.save(tmp_path / "m.gltf"))
