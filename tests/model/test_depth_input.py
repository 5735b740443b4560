"""Laws of depth as an input of the multi-view UNet."""

import pytest
import torch
import trimesh
from torch import Tensor

from spad.cameras import Cameras
from spad.generation.passes import generate_in_passes
from spad.geometry.rays import rays
from spad.model import MultiViewUNet, SPADPipeline
from spad.model.conditioning import condition_on_cameras
from spad.model.depth_input import nearness
from spad.reconstruction.given_mesh import read_given_mesh
from spad.reconstruction.mesh_texturing import texture_model
from tiny_unet import UNET, awake

PATCH = 4
CAMERAS = Cameras.orbit([20.0, 0.0, -15.0], [0.0, 100.0, 220.0], height=32, width=32)


def sphere_depth(cameras: Cameras, radius: float) -> Tensor:
    """(v, h, w) z-depth of a ball about the origin, 0 where it is not, by intersecting rays."""
    size = (cameras.height, cameras.width)
    origins, directions = rays(cameras.world_from_cam, cameras.intrinsics, *size)
    towards = (origins * directions).sum(-1)
    root = towards**2 - origins.square().sum(-1) + radius**2
    forward = cameras.world_from_cam[:, None, None, :3, 2]
    depth = (-towards - root.clamp_min(0).sqrt()) * (directions * forward).sum(-1)
    return torch.where(root > 0, depth, 0.0)


@pytest.fixture(scope="module")
def unet() -> MultiViewUNet:
    torch.manual_seed(0)
    unet = awake(MultiViewUNet(**UNET, depth_patch=PATCH)).eval()
    assert unet.depth_projection is not None
    torch.nn.init.normal_(unet.depth_projection.conv.weight, std=0.3)
    return unet


def predicted(unet: MultiViewUNet, depth: Tensor | None, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 3, 4, 8, 8, generator=generator).repeat(batch, 1, 1, 1, 1)
    text = torch.randn(1, 5, 16, generator=generator).repeat(batch, 1, 1)
    views = condition_on_cameras(unet, CAMERAS, 8, 8, depth=depth)
    with torch.no_grad():
        return unet(sample, 300, text, views).sample


def test_nearness_is_that_of_the_surface_and_zero_where_there_is_none():
    near = nearness(sphere_depth(CAMERAS, 0.5), CAMERAS)
    middle = near[:, 15:17, 15:17]
    # The nearest point of the ball is half a unit before the origin.
    torch.testing.assert_close(middle, torch.full_like(middle, 0.8), atol=0.01, rtol=0)
    assert (near[:, 0] == 0).all()
    far = torch.where(near > 0, sphere_depth(CAMERAS, 0.5), torch.inf)
    assert torch.equal(nearness(far, CAMERAS), near)
    seen = near[near > 0]
    assert seen.min() > 0.58 and seen.max() <= 0.8 + 1e-4


def test_without_depth_it_is_the_model_that_it_was(unet):
    plain = awake(MultiViewUNet(**UNET)).eval()
    missing, unexpected = plain.load_state_dict(unet.state_dict(), strict=False)
    assert not missing and all(name.startswith("depth_projection.") for name in unexpected)
    assert torch.equal(predicted(unet, None), predicted(plain, None))


def test_new_layers_of_depth_change_nothing():
    unet = awake(MultiViewUNet(**UNET, depth_patch=PATCH)).eval()
    depth = sphere_depth(CAMERAS, 0.5)
    torch.testing.assert_close(predicted(unet, depth), predicted(unet, None))


def test_depth_steers_the_views_and_is_the_same_for_a_whole_batch(unet):
    shape, other = sphere_depth(CAMERAS, 0.5), sphere_depth(CAMERAS, 0.7)
    drawn = predicted(unet, shape)
    assert (drawn - predicted(unet, other)).abs().max() > 1e-3
    torch.testing.assert_close(predicted(unet, shape, batch=2), drawn.repeat(2, 1, 1, 1, 1))


def test_each_view_has_its_own_depth(unet):
    depth = torch.stack([sphere_depth(CAMERAS, r)[i] for i, r in enumerate((0.3, 0.5, 0.7))])
    views = condition_on_cameras(unet, CAMERAS, 8, 8, depth=depth)
    assert isinstance(views.depth_features, Tensor)
    for view in range(3):
        alone = condition_on_cameras(unet, CAMERAS[[view]], 8, 8, depth=depth[[view]])
        torch.testing.assert_close(views.depth_features[:, [view]], alone.depth_features)


def test_depth_that_does_not_fit_is_refused(unet):
    with pytest.raises(ValueError, match=r"of shape \(3, 32, 32\), got \(3, 16, 16\)"):
        condition_on_cameras(unet, CAMERAS, 8, 8, depth=torch.ones(3, 16, 16))
    with pytest.raises(ValueError, match=r"tensor of floats, got torch\.int64"):
        condition_on_cameras(unet, CAMERAS, 8, 8, depth=torch.ones(3, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"not trained with it.*--depth-prob"):
        condition_on_cameras(MultiViewUNet(**UNET), CAMERAS, 8, 8, depth=torch.ones(3, 32, 32))


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder) -> SPADPipeline:
    """The tiny pipeline with layers for depth that matter."""
    pipeline = SPADPipeline.from_pretrained(tiny_pipeline_folder)
    patch = pipeline.vae_downscale
    unet = MultiViewUNet.from_config({**pipeline.unet.config, "depth_patch": patch})
    assert isinstance(unet, MultiViewUNet) and unet.depth_projection is not None
    unet.load_state_dict(pipeline.unet.state_dict(), strict=False)
    torch.nn.init.normal_(unet.depth_projection.conv.weight, std=0.3)
    pipeline.register_modules(unet=unet.eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_pipeline_with_depth_draws_by_it_saved_or_not(pipeline, tmp_path):
    cameras = pipeline.own_cameras(3)
    depth = sphere_depth(cameras, 0.6)
    options = dict(cameras=cameras, num_inference_steps=2, output_type="pt")
    drawn = pipeline("a ball", depth=depth, **options).images[0]
    assert not torch.equal(drawn, pipeline("a ball", **options).images[0])
    pipeline.save_pretrained(tmp_path)
    loaded = SPADPipeline.from_pretrained(tmp_path)
    again = loaded("a ball", depth=depth, **options).images[0]
    torch.testing.assert_close(again, drawn, atol=1e-4, rtol=0)


def test_passes_give_every_view_its_depth(pipeline):
    cameras = pipeline.own_cameras(4)
    depth = torch.stack([sphere_depth(cameras, 0.3 + 0.1 * view)[view] for view in range(4)])
    options = dict(prompt="a ball", num_inference_steps=2, depth=depth)
    at_once = generate_in_passes(pipeline, cameras, None, **options)
    expected = pipeline(cameras=cameras, **options).images[0]
    assert [one.tobytes() for one in at_once] == [one.tobytes() for one in expected]
    # In passes of two, each is held at the depth of its own cameras.
    assert len(generate_in_passes(pipeline, cameras, 2, **options)) == 4


def test_a_model_with_depth_is_given_that_of_the_mesh(pipeline, tmp_path, monkeypatch):
    trimesh.creation.icosphere(radius=2.0).export(tmp_path / "ball.ply")
    given = {}
    call = SPADPipeline.__call__

    def noted(self, *args, **kwargs):
        given.update(kwargs)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(SPADPipeline, "__call__", noted)
    mesh = read_given_mesh(tmp_path / "ball.ply", 64)
    made = texture_model(pipeline, mesh, "a ball", 3, num_inference_steps=2)
    expected = sphere_depth(made.cameras, 1.0)
    seen, there = given["depth"].isfinite(), expected > 0
    assert (seen == there).float().mean() > 0.97
    assert (given["depth"] - expected).abs()[seen & there].median() < 0.02
