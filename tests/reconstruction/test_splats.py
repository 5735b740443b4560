"""Laws of Gaussian splats: their images, their fit to views, their file."""

import io
import json
import math
import struct
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import trimesh

from made_views import SIZE, ring, table, views_of
from spad.cameras import Cameras
from spad.data.view_sets import ViewSet
from spad.evaluation.psnr_ssim import psnr
from spad.reconstruction.reconstruct import reconstruct
from spad.reconstruction.splat_rendering import Gaussians, draw_gaussians
from spad.reconstruction.splats import Splats, fit_splats, seeded


@pytest.fixture(scope="module")
def table_views(tmp_path_factory) -> ViewSet:
    return views_of(table(tmp_path_factory.mktemp("table")), ring())


@pytest.fixture(scope="module")
def model(table_views):
    return reconstruct(table_views, faces=1500, texture_size=64, cells=32)


def some_gaussians(count: int = 12) -> Gaussians:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    return Gaussians(
        0.4 * normal(count, 3),
        normal(count, 3) * 0.4 - 2,
        normal(count, 4),
        normal(count),
        torch.rand(count, 3, generator=random),
    )


def drawn_slowly(gaussians: Gaussians, camera: Cameras) -> torch.Tensor:
    """All splats over all pixels, one after the other from the nearest on."""
    pose, intrinsics = camera.cam_from_world[0], camera.intrinsics[0]
    places = gaussians.means @ pose[:3, :3].T + pose[:3, 3]
    rows, columns = torch.meshgrid(
        torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij"
    )
    image, passing = torch.zeros(4, camera.height, camera.width), torch.ones(1)
    for index in places[:, 2].argsort().tolist():
        x, y, z = places[index]
        fx, fy = intrinsics[0, 0], intrinsics[1, 1]
        jacobian = torch.stack(
            [fx / z, 0 * z, -fx * x / z**2, 0 * z, fy / z, -fy * y / z**2]
        ).reshape(2, 3)
        spread = jacobian @ pose[:3, :3] @ gaussians.covariances()[index]
        covariance = spread @ (jacobian @ pose[:3, :3]).T + 0.3 * torch.eye(2)
        middle = torch.stack([fx * x / z + intrinsics[0, 2], fy * y / z + intrinsics[1, 2]])
        away = torch.stack([columns, rows], dim=-1) - middle
        power = torch.einsum("hwi,ij,hwj->hw", away, torch.linalg.inv(covariance), away)
        alpha = torch.sigmoid(gaussians.opacity_logits[index]) * torch.exp(-power / 2)
        # Splats end at three deviations along each axis, at whole pixels.
        reach = 3 * covariance.diagonal().sqrt()
        corner = torch.stack([columns, rows], dim=-1) - 0.5
        inside = (corner >= (middle - reach).floor()) & (corner < (middle + reach).ceil())
        inside = inside.all(-1)
        alpha = torch.where(inside & (alpha > 1 / 255), alpha, 0.0)
        layers = torch.cat([gaussians.colors[index], torch.ones(1)])
        image = image + layers[:, None, None] * passing * alpha
        passing = passing * (1 - alpha)
    return image


def test_images_and_gradients_are_those_of_plain_compositing():
    camera = Cameras.orbit(15.0, [30.0], height=24, width=32)
    results = []
    for draw in (lambda g: draw_gaussians(g, camera)[0], lambda g: drawn_slowly(g, camera)):
        tensors = [tensor.requires_grad_() for tensor in some_gaussians().tensors()]
        image = draw(Gaussians(*tensors))
        gradients = torch.autograd.grad(image.square().mean(), tensors)
        results.append((image.detach(), gradients))
    (fast, fast_gradients), (slow, slow_gradients) = results
    assert float((fast - slow).abs().max()) < 1e-4
    for one, other in zip(fast_gradients, slow_gradients, strict=True):
        assert float((one - other).norm()) < 1e-3 * float(other.norm())


def test_a_near_splat_hides_a_far_one_whatever_their_order():
    camera = Cameras.orbit(0.0, [0.0], height=33, width=33)
    ends = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]])
    colors = torch.eye(3)[:2]
    for order in ([0, 1], [1, 0]):
        pair = Gaussians(
            ends[order],
            torch.full((2, 3), -2.0),
            torch.tensor([[1.0, 0, 0, 0]] * 2),
            torch.full((2,), 6.0),
            colors[order],
        )
        red, green, _, alpha = draw_gaussians(pair, camera)[0, :, 16, 16].tolist()
        assert red > 0.95
        assert green < 0.01
        assert alpha > 0.99


def test_nothing_in_view_is_an_empty_image():
    away = Cameras.orbit(0.0, [0.0], 3.5, height=8, width=8, target=[0.0, 90.0, 0.0])
    assert not draw_gaussians(some_gaussians(), away).any()


def test_splats_on_a_mesh_show_it_and_fitting_makes_them_better(model, table_views):
    seeds = draw_gaussians(seeded(model.mesh), table_views.cameras)
    before = psnr(seeds[:, :3] + 1 - seeds[:, 3:], table_views.images).mean()
    premultiplied = table_views.images - 1 + table_views.alpha[:, None]
    splats = fit_splats(model.mesh, premultiplied, table_views.alpha, table_views.cameras, 40)
    assert float(before) > 12
    assert splats.psnr > float(before) + 2
    assert len(splats.gaussians.means) == len(model.mesh.faces)


def test_the_file_has_the_fields_that_viewers_read(model):
    gaussians = seeded(model.mesh)
    header, _, body = Splats(gaussians, 20.0).ply().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:3] == [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(gaussians.means)}",
    ]
    names = [line.split()[-1] for line in lines[3:]]
    values = np.frombuffer(body, [(name, "<f4") for name in names])
    assert np.allclose(np.stack([values[axis] for axis in "xyz"], 1), gaussians.means)
    color = 0.5 + 0.28209479 * np.stack([values[f"f_dc_{i}"] for i in range(3)], axis=1)
    assert np.allclose(color, gaussians.colors, atol=1e-5)
    assert np.allclose(1 / (1 + np.exp(-values["opacity"])), 0.95)
    scale = np.exp(np.stack([values[f"scale_{i}"] for i in range(3)], axis=1))
    # Flat on the surface.
    assert (scale[:, 2] < 0.2 * scale[:, 0] + 1e-6).all()
    turn = np.stack([values[f"rot_{i}"] for i in range(4)], axis=1)
    assert np.allclose(np.linalg.norm(turn, axis=1), 1, atol=1e-5)


def test_seeds_lie_flat_on_their_faces(model):
    gaussians, mesh = seeded(model.mesh), model.mesh
    corners = torch.from_numpy(mesh.vertices[mesh.faces])
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = torch.nn.functional.normalize(normals, dim=1)
    across = torch.einsum("ni,nij,nj->n", normals, gaussians.covariances(), normals).sqrt()
    assert torch.allclose(across, gaussians.log_scales[:, 2].exp(), rtol=0.02, atol=1e-5)
    assert math.isclose(float(gaussians.colors.max()), mesh.texture.max() / 255, abs_tol=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(
    find_spec("gsplat") is None or not torch.cuda.is_available(), reason="no gsplat, or no CUDA"
)
def test_gsplat_draws_the_same():
    camera = Cameras.orbit(15.0, [30.0, 100.0], height=SIZE, width=SIZE)
    own = draw_gaussians(some_gaussians(), camera)
    device = torch.device("cuda")
    theirs = draw_gaussians(some_gaussians().to(device), camera.to(device)).cpu()
    assert float((own - theirs).abs().mean()) < 2e-3


def glb_attributes(glb: bytes) -> dict[str, np.ndarray]:
    """The attributes (n, c) of the one primitive of a GLB file."""
    magic, version, length, text = struct.unpack_from("<4sIII", glb)
    assert (magic, version, length) == (b"glTF", 2, len(glb)) and length % 4 == 0
    tree, data = json.loads(glb[20 : 20 + text]), glb[28 + text :]
    found = {}
    for name, number in tree["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = tree["accessors"][number]
        view = tree["bufferViews"][accessor["bufferView"]]
        part = data[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        found[name] = np.frombuffer(part, "<f4").reshape(accessor["count"], -1).copy()
    return found


def test_the_glb_file_holds_the_same_splats_with_y_up():
    gaussians = some_gaussians()
    glb = Splats(gaussians, 0.0).glb()
    stored = glb_attributes(glb)
    splat = "KHR_gaussian_splatting:"
    turn = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    w_last = torch.from_numpy(stored[f"{splat}ROTATION"])
    as_gaussians = Gaussians(
        torch.from_numpy(stored["POSITION"]),
        torch.from_numpy(stored[f"{splat}SCALE"]).log(),
        w_last.roll(1, dims=1),
        torch.from_numpy(stored[f"{splat}OPACITY"][:, 0]).logit(),
        torch.from_numpy(0.28209479 * stored[f"{splat}SH_DEGREE_0_COEF_0"] + 0.5),
    )
    torch.testing.assert_close(as_gaussians.means, gaussians.means @ turn.T)
    expected = turn @ gaussians.covariances() @ turn.T
    torch.testing.assert_close(as_gaussians.covariances(), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(as_gaussians.opacity_logits, gaussians.opacity_logits)
    torch.testing.assert_close(as_gaussians.colors, gaussians.colors)
    # Another reader sees colored points.
    (points,) = trimesh.load_scene(io.BytesIO(glb), file_type="glb").geometry.values()
    np.testing.assert_allclose(points.vertices, stored["POSITION"], atol=1e-6)
