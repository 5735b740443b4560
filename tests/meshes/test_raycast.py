"""Rendering: what rays meet is where geometry says, in the color the file says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from hand_made import box, write_gltf
from spad.cameras import Cameras
from spad.data.camera_sampling import training_cameras
from spad.data.seeds import object_seed
from spad.meshes.mesh import load_object
from spad.meshes.raycast import Light, render_views

# Under this light a surface shows its own color.
FULL = Light(ground=1.0, sky=1.0, key=0.0, fill=0.0)
SIZE = 64
QUAD = [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]
QUAD_FACES = [[0, 1, 2], [0, 2, 3]]
# glTF counts v from the top of the texture.
QUAD_UVS = [[0, 1], [1, 1], [1, 0], [0, 0]]


def orbit(elevation_deg, azimuth_deg, size: int = SIZE) -> Cameras:
    return Cameras.orbit(elevation_deg, azimuth_deg, height=size, width=size)


@pytest.fixture
def sphere(tmp_path):
    path = tmp_path / "sphere.ply"
    trimesh.creation.icosphere(subdivisions=4, radius=3).export(path)
    return load_object(path)


@pytest.fixture
def torus(tmp_path):
    path = tmp_path / "torus.ply"
    trimesh.creation.torus(1.0, 0.4, major_sections=64, minor_sections=32).export(path)
    return load_object(path)


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 180.0, -90.0])
def test_cube_has_the_depth_the_size_and_the_normals_of_its_near_face(tmp_path, azimuth):
    obj = load_object(write_gltf(tmp_path / "box.gltf", [box()]), normalize="cube")
    cameras = orbit(0.0, azimuth)
    views = render_views(obj, cameras)
    toward_camera = (cameras.centers / 3.5).numpy()[0]
    assert np.allclose(views.depth[views.mask], 3.0, atol=1e-5)
    assert np.allclose(views.normals[views.mask], toward_camera, atol=1e-5)
    side = float(cameras.intrinsics[0, 0, 0]) * 1.0 / 3.0
    rows, cols = np.nonzero(views.mask[0])
    low, high = SIZE / 2 - side / 2, SIZE / 2 + side / 2
    covered = int(np.floor(high - 0.5) - np.ceil(low - 0.5)) + 1
    assert views.mask.sum() == covered**2
    assert rows.min() == cols.min() == np.ceil(low - 0.5)
    # Coverage is counted by sub-pixel samples, which differ from the true area at the outline.
    assert views.rgba[..., 3].sum() / 255 == pytest.approx(side**2, rel=0.04)


def test_sphere_has_the_depth_the_outline_and_the_normals_of_a_sphere(sphere):
    cameras = orbit([20.0, -40.0], [30.0, 200.0])
    views = render_views(sphere, cameras)
    focal = float(cameras.intrinsics[0, 0, 0])
    outline = focal / np.sqrt(3.5**2 - 1)
    assert views.mask.sum() / 2 == pytest.approx(np.pi * outline**2, rel=0.02)

    offsets = (np.arange(SIZE) + 0.5 - SIZE / 2) / focal
    squared = 1 + offsets[:, None] ** 2 + offsets**2  # length of a ray one deep
    inside = 3.5**2 - squared * (3.5**2 - 1)
    expected = (3.5 - np.sqrt(np.maximum(inside, 0))) / squared
    well_inside = inside > 0.5
    for depth in views.depth:
        assert np.abs(depth - expected)[well_inside].max() < 6e-3

    points = hit_points(cameras, views)
    for view in range(2):
        seen = views.mask[view]
        assert np.allclose(np.linalg.norm(views.normals[view][seen], axis=-1), 1, atol=1e-5)
        assert np.abs(points[view] - views.normals[view])[seen].max() < 0.02
    assert (views.normals[~views.mask] == 0).all()
    assert np.isinf(views.depth[~views.mask]).all()
    assert (views.rgba[:, 0, 0] == 0).all()


def hit_points(cameras: Cameras, views) -> np.ndarray:
    """World points (v, h, w, 3) at the pixel centers; nonsense where nothing is seen."""
    steps = torch.arange(cameras.height) + 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    xy = torch.stack([x, y], dim=-1).expand(len(cameras), -1, -1, -1)
    depth = torch.from_numpy(np.where(views.mask, views.depth, 0))
    return cameras.unproject(xy, depth).numpy()


def test_a_point_seen_in_one_view_is_where_another_view_says(torus):
    cameras = orbit([25.0, 40.0, 10.0], [0.0, 35.0, 300.0], size=128)
    views = render_views(torus, cameras)
    points = hit_points(cameras, views)
    # The nearest of a pixel and its neighbors: outlines run between pixel centers.
    padded = np.pad(views.depth, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
    nearest = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2)).min((-1, -2))
    compared = 0
    for a in range(3):
        world, normals = points[a][views.mask[a]], views.normals[a][views.mask[a]]
        xy, depth = cameras.project(torch.from_numpy(world))
        for b in range(3):
            col, row = xy[b].numpy().astype(int).clip(0, 127).T
            found = views.depth[b, row, col]
            # Nothing hangs in front of what a view sees ...
            assert (depth[b].numpy() - nearest[b, row, col]).min() > -0.03
            inner = np.isfinite(found)
            # ... and a surface seen face on by both views, unoccluded, is one surface.
            rays = world - cameras.centers[b].numpy()
            facing = -(normals * rays).sum(-1) / np.linalg.norm(rays, axis=-1)
            same = inner & (facing > 0.7) & (depth[b].numpy() - found < 0.2)
            assert np.abs(depth[b].numpy() - found)[same].max() < 0.03
            compared += int(same.sum())
    assert compared > 5000


def test_principal_point_moves_the_picture(torus):
    cameras = orbit(30.0, 0.0)
    shifted = cameras.intrinsics.clone()
    shifted[:, 0, 2] += 10
    shifted[:, 1, 2] -= 4
    before = render_views(torus, cameras)
    after = render_views(torus, replace(cameras, intrinsics=shifted))
    assert np.array_equal(after.mask[:, :-4, 10:], before.mask[:, 4:, :-10])
    difference = after.rgba[:, :-4, 10:].astype(int) - before.rgba[:, 4:, :-10]
    assert np.abs(difference).max() <= 2


def test_material_colors_are_linear_and_pictures_are_srgb(tmp_path):
    cameras = orbit(15.0, -60.0)
    red = load_object(write_gltf(tmp_path / "red.gltf", [box([1, 0, 0, 1])]))
    views = render_views(red, cameras)
    seen = views.rgba[..., 3] > 0
    assert (views.rgba[seen][:, 1:3] == 0).all()
    assert views.rgba[seen][:, 0].min() > 170  # even its dark side is clearly red
    # Where a pixel is covered in part, straight alpha keeps the color.
    full = render_views(red, cameras, light=FULL).rgba
    partly = (full[..., 3] > 0) & (full[..., 3] < 255)
    assert partly.any() and (full[partly][:, 0] == 255).all()

    half = load_object(write_gltf(tmp_path / "half.gltf", [box([0.2, 0.6, 1.0, 1])]))
    color = render_views(half, cameras, light=FULL).rgba[0, 32, 32]
    assert np.abs(color[:3].astype(int) - [124, 203, 255]).max() <= 1


def test_texture_is_srgb_and_lies_the_right_way_round(tmp_path):
    colors = np.array([[[255, 0, 0], [0, 200, 0]], [[0, 0, 255], [128, 128, 128]]])
    quad = {"positions": QUAD, "faces": QUAD_FACES, "uvs": QUAD_UVS}
    quad["texture"] = colors.repeat(8, axis=0).repeat(8, axis=1)
    obj = load_object(write_gltf(tmp_path / "quad.gltf", [quad]))
    front, back = render_views(obj, orbit(0.0, [-90.0, 90.0]), light=FULL).rgba[..., :3].astype(int)
    low, high = SIZE // 2 - 8, SIZE // 2 + 8
    picked = front[np.ix_([low, high], [low, high])]
    assert np.abs(picked - colors).max() <= 1
    assert np.abs(back[np.ix_([low, high], [high, low])] - colors).max() <= 1


def test_texture_repeats_and_is_multiplied_by_its_factor(tmp_path):
    quad = {"positions": QUAD, "faces": QUAD_FACES, "uvs": np.array(QUAD_UVS) * 2 - 5}
    stripes = np.zeros((16, 16, 3), dtype=np.uint8)
    stripes[:, :8] = 255
    quad |= {"texture": stripes, "material": {"pbrMetallicRoughness": {}}}
    quad["material"]["pbrMetallicRoughness"]["baseColorFactor"] = [1, 0.5, 0, 1]
    obj = load_object(write_gltf(tmp_path / "quad.gltf", [quad]))
    picture = render_views(obj, orbit(0.0, -90.0), light=FULL).rgba[0, SIZE // 2]
    seen = np.nonzero(picture[:, 3] == 255)[0]
    eighths = seen[0] + (np.arange(1, 8, 2) * len(seen) / 8).astype(int)
    assert np.abs(picture[eighths[[0, 2]], :3].astype(int) - [255, 188, 0]).max() <= 1
    assert (picture[eighths[[1, 3]], :3] == 0).all()


def test_vertex_colors_are_linear_in_gltf_and_srgb_in_ply(tmp_path):
    mesh = trimesh.creation.box()
    bytes_ = np.tile(np.array([128, 64, 255, 255], dtype=np.uint8), (8, 1))
    part = {"positions": mesh.vertices, "faces": mesh.faces, "colors": bytes_}
    gltf = write_gltf(tmp_path / "box.gltf", [part])
    with_material = write_gltf(tmp_path / "both.gltf", [part | {"material": {}}])
    mesh.visual.vertex_colors = bytes_
    mesh.export(tmp_path / "box.ply")
    for path, expected in (
        (gltf, [188, 137, 255]),
        (with_material, [188, 137, 255]),
        (tmp_path / "box.ply", [128, 64, 255]),
    ):
        color = render_views(load_object(path), orbit(10.0, 10.0), light=FULL).rgba[0, 32, 32, :3]
        assert np.abs(color.astype(int) - expected).max() <= 1, path.name


def test_vertex_colors_cut_to_integers_are_not_black(tmp_path):
    part = box([1, 0, 0, 1]) | {"colors": np.ones((8, 4))}
    obj = load_object(write_gltf(tmp_path / "box.gltf", [part]))
    assert "vertex colors are floats cut to integers" in obj.notes[0]
    color = render_views(obj, orbit(10.0, 10.0), light=FULL).rgba[0, 32, 32]
    assert color.tolist() == [255, 0, 0, 255]


def test_emission_shows_without_light(tmp_path):
    part = box([0, 0, 0, 1], emissiveFactor=[0, 1, 0])
    obj = load_object(write_gltf(tmp_path / "lamp.gltf", [part]))
    dark = Light(ground=0.0, sky=0.0, key=0.0, fill=0.0)
    assert render_views(obj, orbit(0.0, 0.0), light=dark).rgba[0, 32, 32].tolist() == [
        0,
        255,
        0,
        255,
    ]


@pytest.mark.parametrize(
    ("mode", "alpha", "expected"),
    [
        ("OPAQUE", 0.2, [255, 0, 0, 255]),
        ("MASK", 0.2, [0, 0, 255, 255]),
        ("MASK", 0.8, [255, 0, 0, 255]),
        ("BLEND", 0.5, [188, 0, 188, 255]),
    ],
)
def test_alpha_modes(tmp_path, mode, alpha, expected):
    pane = {"positions": np.array(QUAD) + [0, 0, 1], "faces": QUAD_FACES}
    pane["material"] = {"alphaMode": mode}
    pane["material"]["pbrMetallicRoughness"] = {"baseColorFactor": [1, 0, 0, alpha]}
    wall = {"positions": QUAD, "faces": QUAD_FACES}
    wall["material"] = {"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 1, 1]}}
    obj = load_object(write_gltf(tmp_path / "pane.gltf", [pane, wall]))
    views = render_views(obj, orbit(0.0, -90.0), light=FULL)
    assert np.abs(views.rgba[0, 32, 32].astype(int) - expected).max() <= 1
    solid = mode != "MASK" or alpha > 0.5
    extent = np.linalg.norm([1, 1, 0.5])
    distance = 3.5 + (-0.5 if solid else 0.5) / extent
    assert views.depth[0, 32, 32] == pytest.approx(distance, abs=1e-4)


def test_node_transforms_and_instances_are_applied(tmp_path):
    turn = [0, np.sin(np.pi / 4), 0, np.cos(np.pi / 4)]  # a quarter turn about y
    nodes = [
        {"children": [1, 2], "rotation": turn},
        {"mesh": 0, "translation": [3, 0, 0]},
        {"mesh": 0, "translation": [-3, 1, 0], "scale": [1, 2, -1]},
    ]
    path = write_gltf(tmp_path / "two.gltf", [box([1, 1, 0, 1])], nodes)
    obj = load_object(path)
    assert len(obj.faces) == 24 and len(obj.materials) == 1
    corners = np.array(trimesh.creation.box().vertices)
    first, second = corners + [3, 0, 0], corners * [1, 2, -1] + [-3, 1, 0]
    quarter = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    in_file = np.concatenate([first, second]) @ quarter.T
    expected = in_file @ obj.object_from_asset[:3, :3].T + obj.object_from_asset[:3, 3]
    gaps = np.linalg.norm(expected[:, None] - obj.vertices, axis=-1)
    assert gaps.min(axis=1).max() < 1e-5 and gaps.min(axis=0).max() < 1e-5
    # No instance, mirrored or not, is inside out: normals point away from its middle.
    middles = obj.vertices[obj.faces].mean(axis=1)
    center = np.where(middles[:, 1:2] > 0, middles[middles[:, 1] > 0].mean(0), 0)
    center += np.where(middles[:, 1:2] < 0, middles[middles[:, 1] < 0].mean(0), 0)
    assert ((middles - center) * obj.face_normals).sum(-1).min() > 0


def test_gltf_is_turned_upright_and_its_front_faces_minus_y(tmp_path):
    marker = {"positions": [[0, 5, 2], [0.1, 5, 2], [0, 5.1, 2]], "faces": [[0, 1, 2]]}
    path = write_gltf(tmp_path / "tower.gltf", [box(extents=(1, 10, 1)), marker])
    obj = load_object(path, normalize="cube")
    size = np.ptp(obj.vertices, axis=0)
    assert size.argmax() == 2 and size[2] == pytest.approx(1)
    foremost = obj.vertices[obj.vertices[:, 1].argmin()]
    assert foremost[2] > 0.4 and np.isclose(np.ptp(obj.vertices[:, 2]), 1)
    lying = load_object(path, normalize="cube", up="z")
    assert np.ptp(lying.vertices, axis=0).argmax() == 1


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl", ".glb"])
def test_every_kind_of_file_gives_the_same_shape(tmp_path, suffix):
    mesh = trimesh.creation.cone(radius=1, height=4)
    mesh.apply_translation([5, 6, 7])
    mesh.export(tmp_path / f"cone{suffix}")
    obj = load_object(tmp_path / f"cone{suffix}", up="z")
    assert np.linalg.norm(obj.vertices, axis=-1).max() == pytest.approx(1, abs=1e-5)
    assert np.allclose(obj.vertices.min(0) + obj.vertices.max(0), 0, atol=1e-5)
    moved = mesh.vertices @ obj.object_from_asset[:3, :3].T + obj.object_from_asset[:3, 3]
    assert np.allclose(moved.min(0), obj.vertices.min(0), atol=1e-5)
    assert np.allclose(moved.max(0), obj.vertices.max(0), atol=1e-5)


def test_creases_stay_sharp_and_curves_become_smooth(tmp_path, sphere):
    cube = load_object(write_gltf(tmp_path / "box.gltf", [box()]))
    assert np.allclose(cube.corner_normals, cube.face_normals[:, None], atol=1e-6)
    corners = sphere.vertices[sphere.faces]
    assert np.abs(sphere.corner_normals - corners).max() < 0.01
    assert np.abs(sphere.face_normals[:, None] - corners).max() > 0.02


def test_winding_does_not_matter(tmp_path):
    part = box([0.3, 0.5, 0.7, 1])
    flipped = part | {"faces": np.asarray(part["faces"])[:, ::-1]}
    cameras = orbit(20.0, [0.0, 120.0])
    first = render_views(load_object(write_gltf(tmp_path / "a.gltf", [part])), cameras)
    second = render_views(load_object(write_gltf(tmp_path / "b.gltf", [flipped])), cameras)
    assert np.array_equal(first.rgba, second.rgba)
    assert np.allclose(first.normals, second.normals, atol=1e-6)


def test_camera_inside_the_object_sees_its_inside(tmp_path):
    obj = load_object(write_gltf(tmp_path / "box.gltf", [box()]), normalize="cube")
    views = render_views(obj, Cameras.look_at((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), height=8, width=8))
    assert views.mask.all() and np.allclose(views.depth, 0.5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.glb", None, "does not exist"),
        ("model.fbx", b"x", "expected a model file"),
        ("empty.glb", b"", "cannot read"),
        ("cut.glb", b"glTF\2\0\0\0\xff\0\0\0", "cannot read"),
        ("empty.obj", b"", "cannot"),
        ("points.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\n"
         b"property float y\nproperty float z\nend_header\n0 0 0\n", "expected triangles"),
        ("line.obj", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "without area"),
        ("nan.obj", b"v 0 0 0\nv 1 0 nan\nv 0 1 0\nf 1 2 3\n", "finite"),
    ],
)  # fmt: skip
def test_unusable_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_object(tmp_path / name)
    assert name in str(caught.value)


def test_no_samples_are_refused(torus):
    with pytest.raises(ValueError, match="samples_per_side of at least 1, got 0"):
        render_views(torus, orbit(0.0, 0.0), samples_per_side=0)


def test_training_cameras_depend_on_the_seed_and_hold_their_ranges():
    cameras = training_cameras(object_seed(0, "a"), 200, 50, 16, 16)
    again = training_cameras(object_seed(0, "a"), 200, 50, 16, 16)
    other = training_cameras(object_seed(1, "a"), 200, 50, 16, 16)
    assert torch.equal(cameras.world_from_cam, again.world_from_cam)
    assert not torch.equal(cameras.world_from_cam, other.world_from_cam)
    assert object_seed(0, "a") != object_seed(0, "b")
    elevation = cameras.elevation_deg[:200]
    assert elevation.min() > -15.01 and elevation.max() < 75.01 and elevation.max() > 40
    assert cameras.radius.min() > 3.14 and cameras.radius.max() < 4.03
    sets = cameras[200:]
    turns = (sets.azimuth_deg.reshape(50, 4) - sets.azimuth_deg[::4, None]) % 360
    assert torch.allclose(turns[:, 1:], torch.tensor([90.0, 180.0, 270.0]), atol=1e-3)
    levels = sets.elevation_deg.reshape(50, 4)
    assert torch.allclose(levels, levels[:, :1].expand(50, 4), atol=1e-3)
    assert torch.allclose(sets.radius, torch.tensor(3.5))
