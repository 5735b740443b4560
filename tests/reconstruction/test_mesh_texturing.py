"""Laws of drawing on a mesh that is given."""

import numpy as np
import pytest
import torch
import trimesh

from hand_made import box, write_gltf
from spad.cameras import Cameras
from spad.cli import main
from spad.meshes.mesh import load_object
from spad.model import SPADPipeline
from spad.reconstruction.given_mesh import read_given_mesh
from spad.reconstruction.mesh_texturing import (
    ShapeGuidance,
    paint_images,
    texture_model,
    texturing_cameras,
)
from spad.reconstruction.model_views import on_white

CAMERAS = Cameras.orbit([35.0, 10.0, 35.0, 10.0], [0.0, 90.0, 180.0, 270.0], height=64, width=64)


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """A box that is no cube, away from the origin, without texture coordinates."""
    path = tmp_path_factory.mktemp("block") / "block.ply"
    mesh = trimesh.creation.box((2, 4, 6))
    mesh.apply_translation((10, 0, 3))
    mesh.export(path)
    return path


def painted_by_place(mesh, cameras):
    """Images (v, 3, h, w) on white of a mesh whose color says where it is, and their alpha."""
    buffers = mesh.drawn_bare(cameras)
    _, alpha = on_white(buffers)
    color = torch.from_numpy(buffers.normals).movedim(-1, 1).mul(0.4).add(0.5)
    return torch.where(alpha[:, None] > 0.5, color, torch.ones(())), alpha


def test_colors_of_the_images_come_to_the_mesh(block):
    mesh = read_given_mesh(block, 128)
    images, alpha = painted_by_place(mesh, CAMERAS)
    again, _ = on_white(mesh.drawn(paint_images(mesh, images, alpha, CAMERAS), CAMERAS))
    inner = torch.nn.functional.avg_pool2d(alpha, 5, 1, 2)[:, None] > 0.99
    assert float((again - images).abs()[inner.expand_as(images)].median()) < 0.02


def test_background_that_was_drawn_on_the_mesh_is_no_color_of_it(block):
    mesh = read_given_mesh(block, 128)
    images, alpha = painted_by_place(mesh, CAMERAS)
    images[0, :, :20] = 1
    assert (paint_images(mesh, images, alpha, CAMERAS).min(-1) > 230).mean() < 0.01
    white = paint_images(mesh, torch.ones_like(images), alpha, CAMERAS)
    assert (white > 250).all()


def test_the_mesh_stays_where_and_as_large_as_it_was(block):
    mesh = read_given_mesh(block, 64)
    textured = mesh.textured(np.full((64, 64, 3), 200, np.uint8))
    low, high = textured.vertices.min(0), textured.vertices.max(0)
    np.testing.assert_allclose([low, high], [(9, -2, 0), (11, 2, 6)], atol=1e-5)
    # A box has creases: three normals at every corner.
    assert len(textured.vertices) == 24
    first, second, third = textured.vertices[textured.faces].swapaxes(0, 1)
    across = np.cross(second - first, third - first)
    for corner in range(3):
        assert ((across * textured.normals[textured.faces[:, corner]]).sum(1) > 0).all()
    assert (textured.uv_vertices[textured.uv_faces] == textured.faces).all()


def uv_box(tmp_path, uv: np.ndarray):
    path = tmp_path / "box.obj"
    lines = ["v 0 0 0", "v 1 0 0", "v 1 1 0", "v 0 1 0", "v 0 0 1", "v 1 0 1"]
    lines += [f"vt {u} {v}" for u, v in uv.tolist()]
    path.write_text("\n".join([*lines, "f 1/1 2/2 3/3 4/4", "f 1/5 2/6 6/7 5/8"]) + "\n")
    return path


SIDE_BY_SIDE = np.array(
    [(0, 0), (0.4, 0), (0.4, 1), (0, 1), (0.6, 0), (1, 0), (1, 1), (0.6, 1)], dtype=float
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda uv: uv, None),
        (lambda uv: uv * 3, "repeat an image"),
        (lambda uv: uv % (0.6, 2), "share one place"),
    ],
)
def test_texture_coordinates_that_fit_are_kept(tmp_path, change, reason):
    uv = change(SIDE_BY_SIDE)
    path = uv_box(tmp_path, uv)
    mesh = read_given_mesh(path, 64)
    if reason is None:
        own = load_object(path).own_uvs
        assert own is not None
        np.testing.assert_allclose(mesh.layout.uv[mesh.layout.faces], own)
        # From the top left here, from the bottom left in the file.
        expected = np.unique(uv * [1, -1] + [0, 1], axis=0)
        np.testing.assert_allclose(np.unique(own.reshape(-1, 2), axis=0), expected)
        assert mesh.notes == ()
        anew = read_given_mesh(path, 64, unwrap=True).layout
        assert not np.array_equal(anew.uv[anew.faces], own)
    else:
        (note,) = mesh.notes
        assert reason in note


def test_glb_coordinates_are_kept_without_an_image(tmp_path):
    part = box() | {"uvs": np.random.default_rng(0).random((8, 2))}
    path = write_gltf(tmp_path / "box.gltf", [part])
    own = load_object(path).own_uvs
    assert own is not None and own.shape == (12, 3, 2)


def test_sampling_starts_from_the_mesh_and_keeps_the_background_white(tiny_pipeline_folder, block):
    pipeline = SPADPipeline.from_pretrained(tiny_pipeline_folder)
    scheduler, vae = pipeline.scheduler, pipeline.vae
    scheduler.set_timesteps(12)
    mesh, cameras = read_given_mesh(block, 64), CAMERAS[:3].resized(128, 128)
    gray, alpha = on_white(mesh.drawn_bare(cameras))
    with torch.no_grad():
        clean = vae.encode(gray * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
        outside = torch.nn.functional.adaptive_max_pool2d(alpha[:, None], clean.shape[-2:]) == 0
        estimate, latents = torch.full_like(clean, 0.3)[None], torch.ones_like(clean)[None]
        guidance = ShapeGuidance(vae, mesh, cameras, 0.5)

        def after(step: int, given: torch.Tensor) -> torch.Tensor:
            tensors = {"latents": given, "pred_original_sample": estimate}
            times = scheduler.timesteps
            return guidance(pipeline, step, times[step], tensors).get("latents", given)

        # For the first half whatever was sampled makes no difference.
        begun = after(5, latents)
        assert torch.equal(begun, after(5, 2 * latents))
        signal = scheduler.alphas_cumprod[scheduler.timesteps[6]].sqrt()
        noise = (begun[0] - signal * clean) / (1 - signal**2).sqrt()
        assert float(noise.std()) == pytest.approx(1, abs=0.1)
        # Then only the background is drawn back to white, of which nothing was rendered.
        change = after(6, latents)[0] - latents[0]
        signal = scheduler.alphas_cumprod[scheduler.timesteps[7]].sqrt()
    outside = outside.expand_as(change)
    assert outside.any() and not outside.all()
    torch.testing.assert_close(change[outside], (signal * (clean - 0.3))[outside])
    assert (change[~outside] == 0).all()


def test_what_is_drawn_is_on_the_object_alone(tiny_pipeline_folder, block):
    pipeline = SPADPipeline.from_pretrained(tiny_pipeline_folder)
    mesh = read_given_mesh(block, 64)
    made = texture_model(pipeline, mesh, "a grey rock", 3, num_inference_steps=2)
    _, alpha = on_white(mesh.drawn_bare(made.cameras))
    assert len(made.cameras) == 3
    for image, solid in zip(made.images, alpha, strict=True):
        assert image.size == (pipeline.image_size,) * 2
        assert (np.asarray(image)[(solid == 0).numpy()] == 255).all()


def test_cameras_look_from_above_and_below_by_turns(tiny_pipeline_folder):
    pipeline = SPADPipeline.from_pretrained(tiny_pipeline_folder)
    cameras = texturing_cameras(pipeline, 4)
    elevation = cameras.elevation_deg.tolist()
    assert elevation[1] - elevation[0] == pytest.approx(35, abs=1e-3)
    assert elevation[::2] == pytest.approx([elevation[0]] * 2, abs=1e-3)


def test_from_the_command_line(tiny_pipeline_folder, block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("texture", str(block), "a grey rock", "--model", str(tiny_pipeline_folder)),
        *("--views", "3", "--steps", "1", "--texture-size", "64"),
    ]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith("block-a-grey-rock.glb")
    model = load_object(said[1])
    assert model.textures and model.own_uvs is not None
    # y is up in the file, and its lengths are those of before.
    low, high = trimesh.load(said[1]).bounds
    np.testing.assert_allclose([low, high], [(9, 0, -2), (11, 6, 2)], atol=1e-4)
    assert main(arguments) == 2
    assert "which exists; use --overwrite" in capsys.readouterr().err
    before = block.read_bytes()
    assert main([*arguments, "--output", str(block), "--overwrite"]) == 2
    assert f"expected another output than the input {block}" in capsys.readouterr().err
    assert block.read_bytes() == before
    # An .obj file has others beside it.
    (tmp_path / "new.mtl").write_text("mine")
    assert main([*arguments, "--output", "new.obj"]) == 2
    assert "got new.mtl, which exists" in capsys.readouterr().err
    assert main([*arguments, "--output", "a.txt"]) == 2
    assert "a.txt" in capsys.readouterr().err
