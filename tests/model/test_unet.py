"""Laws of the multi-view UNet, on a small real one."""

import copy
import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from spad.attention import DenseMask
from spad.cameras import Cameras
from spad.geometry import plucker_map
from spad.model import MultiViewUNet
from spad.model.conditioning import camera_vectors, condition_on_cameras
from spad.model.ray_encoding import RayEncoding
from spad.model.unet import PluckerProjection
from tiny_unet import UNET, awake

LATENT = (4, 8, 8)


def settings_of(unet: MultiViewUNet) -> dict:
    """Its configuration as JSON has it, less what diffusers notes beside it."""
    return json.loads(json.dumps({k: v for k, v in unet.config.items() if k[0] != "_"}))


@pytest.fixture
def unet() -> MultiViewUNet:
    torch.manual_seed(0)
    return awake(MultiViewUNet(**UNET, rays="both")).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 3, *LATENT, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator)
    timesteps = torch.tensor([[10, 500, 0], [900, 900, 900]])
    cameras = Cameras.orbit([0.0, 20.0, 40.0], [0.0, 75.0, 200.0], height=64, width=64)
    return sample, timesteps, text, cameras


@torch.no_grad()
def test_one_view_with_fresh_weights_equals_the_plain_unet():
    torch.manual_seed(0)
    plain = UNet2DConditionModel(**UNET).eval()
    multi = MultiViewUNet(**UNET, rays="both").eval()
    result = multi.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    new = ("plucker", "ray_encoding", "camera_embedding")
    assert all(any(part in k for part in new) for k in result.missing_keys)
    sample, text = torch.randn(2, *LATENT), torch.randn(2, 5, 16)
    camera = Cameras.orbit(20.0, 40.0, height=64, width=64)
    expected = plain(sample, 321, text).sample
    views = condition_on_cameras(multi, camera, 8, 8)
    actual = multi(sample[:, None], 321, text, views).sample[:, 0]
    assert torch.allclose(actual, expected, atol=1e-5)


@torch.no_grad()
def test_views_that_see_only_themselves_equal_single_runs(unet, inputs):
    sample, timesteps, text, cameras = inputs
    views = condition_on_cameras(unet, cameras, 8, 8)
    for tokens in views.masks:
        own = torch.block_diag(*[torch.ones(tokens, tokens, dtype=torch.bool)] * 3)
        views.masks[tokens] = DenseMask(own[None], 3)
    together = unet(sample, timesteps, text, views).sample
    for view in range(3):
        alone = unet(
            sample[:, view : view + 1],
            timesteps[:, view : view + 1],
            text,
            condition_on_cameras(unet, cameras[view], 8, 8),
        ).sample
        assert torch.allclose(together[:, view], alone[:, 0], atol=1e-5)


@torch.no_grad()
def test_pooled_text_is_that_of_the_views_own_object(inputs):
    sample, timesteps, text, cameras = inputs
    torch.manual_seed(0)
    pooled = awake(
        MultiViewUNet(
            **UNET,
            resnet_time_scale_shift="scale_shift",
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
        )
    ).eval()
    found = pooled(sample, timesteps, text, condition_on_cameras(pooled, cameras, 8, 8)).sample
    for i in range(len(sample)):
        views = condition_on_cameras(pooled, cameras, 8, 8, text=text[i : i + 1])
        one = pooled(sample[i : i + 1], timesteps[i : i + 1], text[i : i + 1], views).sample
        assert torch.allclose(found[i : i + 1], one, atol=1e-5)
    # Cut off from the attention to it, the text still has a say.
    for name, module in pooled.named_modules():
        if name.endswith("attn2.to_v"):
            module.weight.zero_()
    views = condition_on_cameras(pooled, cameras, 8, 8)
    other = pooled(sample, timesteps, text.flip(0), views).sample
    assert not torch.allclose(pooled(sample, timesteps, text, views).sample, other, atol=1e-3)


@torch.no_grad()
def test_text_read_beforehand_gives_the_same(unet, inputs):
    sample, timesteps, text, cameras = inputs
    expected = unet(sample, timesteps, text, condition_on_cameras(unet, cameras, 8, 8)).sample
    views = condition_on_cameras(unet, cameras, 8, 8, text=text)
    # What the forward pass is given is not read again.
    found = unet(sample, timesteps, torch.full_like(text, torch.nan), views).sample
    assert torch.allclose(found, expected, atol=1e-6)
    each = text[:, None].expand(-1, sample.shape[1], -1, -1)
    found = unet(sample, timesteps, each, condition_on_cameras(unet, cameras, 8, 8)).sample
    assert torch.allclose(found, expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["reference", "banded"])
def test_the_backend_of_the_attention_changes_nothing(unet, inputs, backend):
    sample, timesteps, text, cameras = inputs
    expected = unet(sample, timesteps, text, condition_on_cameras(unet, cameras, 8, 8)).sample
    unet.attention_backend = backend
    views = condition_on_cameras(unet, cameras, 8, 8)
    unet.attention_backend = None
    assert torch.allclose(unet(sample, timesteps, text, views).sample, expected, atol=1e-5)


@torch.no_grad()
def test_views_see_each_other(unet, inputs):
    sample, timesteps, text, cameras = inputs
    views = condition_on_cameras(unet, cameras, 8, 8)
    before = unet(sample, timesteps, text, views).sample
    changed = sample.clone()
    changed[:, 2] += 1
    after = unet(changed, timesteps, text, views).sample
    assert (before - after)[:, :2].abs().max() > 1e-4


@torch.no_grad()
def test_permuting_views_permutes_the_output(unet, inputs):
    sample, timesteps, text, cameras = inputs
    order = [2, 0, 1]
    straight = unet(sample, timesteps, text, condition_on_cameras(unet, cameras, 8, 8)).sample
    views = condition_on_cameras(unet, cameras[order], 8, 8)
    permuted = unet(sample[:, order], timesteps[:, order], text, views).sample
    assert torch.allclose(permuted, straight[:, order], atol=1e-5)


@torch.no_grad()
def test_objects_of_a_batch_do_not_see_each_other(unet, inputs):
    sample, timesteps, text, cameras = inputs
    both = unet(sample, timesteps, text, condition_on_cameras(unet, cameras, 8, 8)).sample
    views = condition_on_cameras(unet, cameras, 8, 8)
    first = unet(sample[:1], timesteps[:1], text[:1], views).sample
    assert torch.allclose(both[:1], first, atol=1e-5)


@torch.no_grad()
def test_conditioning_of_several_objects_equals_one_by_one(unet, inputs):
    sample, timesteps, text, cameras = inputs
    other = Cameras.orbit([10.0, -20.0, 60.0], [30.0, 300.0, 10.0], height=64, width=64)
    views = condition_on_cameras(unet, Cameras.cat([cameras, other]), 8, 8, num_views=3)
    both = unet(sample, timesteps, text, views).sample
    for index, own in enumerate((cameras, other)):
        one = slice(index, index + 1)
        views = condition_on_cameras(unet, own, 8, 8)
        alone = unet(sample[one], timesteps[one], text[one], views).sample
        assert torch.allclose(both[one], alone, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("part", ["camera_embedding", "plucker_features", "ray_encodings", "masks"])
def test_every_kind_of_conditioning_changes_the_output(unet, inputs, part):
    sample, timesteps, text, cameras = inputs
    views = condition_on_cameras(unet, cameras, 8, 8)
    full = unet(sample, timesteps, text, views).sample
    setattr(views, part, None if part == "camera_embedding" else {})
    assert (unet(sample, timesteps, text, views).sample - full).abs().max() > 1e-4


@torch.no_grad()
def test_plucker_sum_equals_a_widened_projection(unet, inputs):
    """The release's form: concatenate six channels before a wider 1×1 convolution."""
    transformer = unet.down_blocks[0].attentions[0]
    features, text, cameras = torch.randn(3, 32, 8, 8), inputs[2][:1], inputs[3]
    plucker = plucker_map(cameras, 8, 8)
    weight = torch.cat([transformer.proj_in.weight, transformer.plucker.linear.weight], dim=1)
    widened = torch.nn.functional.conv2d(
        torch.cat([transformer.norm(features), plucker], dim=1), weight, transformer.proj_in.bias
    )
    entered = []
    # Runs after the hook that adds the Plücker map.
    transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(args[0]), with_kwargs=True
    )
    views = unet.prepare_views(3, plucker=plucker[None])
    transformer(features, text, cross_attention_kwargs={"views": views})
    assert torch.allclose(entered[0], widened.flatten(-2).mT, atol=1e-5)


@torch.no_grad()
def test_rays_in_queries_and_keys_go_through_the_centers_of_tokens(unet, inputs):
    cameras = inputs[3]
    encoders = {m.name: m for m in unet.modules() if isinstance(m, RayEncoding)}
    found = condition_on_cameras(unet, cameras, 8, 8).ray_encodings
    assert found.keys() == encoders.keys()
    sides = set()
    for name, summands in found.items():
        side = round(summands[0].shape[3] ** 0.5)
        rays = plucker_map(cameras, side, side).flatten(-2).mT
        torch.testing.assert_close(summands, encoders[name](rays[None]))
        sides.add(side)
    assert sides == {8, 4}


def test_every_parameter_gets_a_gradient(unet, inputs):
    sample, timesteps, text, cameras = inputs
    views = condition_on_cameras(unet, cameras, 8, 8)
    unet(sample, timesteps, text, views).sample.square().mean().backward()
    assert not [name for name, p in unet.named_parameters() if p.grad is None]


def test_gradient_checkpointing_changes_no_gradient(unet, inputs):
    sample, timesteps, text, cameras = inputs
    saving = copy.deepcopy(unet).train()
    saving.enable_gradient_checkpointing()
    gradients = []
    for model in (unet.train(), saving):
        views = condition_on_cameras(model, cameras, 8, 8)
        model(sample, timesteps, text, views).sample.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_a_copy_is_independent(unet, inputs):
    sample, timesteps, text, cameras = inputs
    views = condition_on_cameras(unet, cameras, 8, 8)
    expected = unet(sample, timesteps, text, views).sample
    twin = copy.deepcopy(unet)
    for weight in unet.parameters():
        weight.zero_()
    assert torch.equal(twin(sample, timesteps, text, views).sample, expected)
    assert not unet(sample, timesteps, text, views).sample.any()


@torch.no_grad()
def test_save_and_load(unet, inputs, tmp_path, caplog):
    sample, timesteps, text, cameras = inputs
    unet.save_pretrained(tmp_path)
    loaded = MultiViewUNet.from_pretrained(tmp_path).eval()
    assert settings_of(loaded) == settings_of(unet)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    expected = unet(sample, timesteps, text, condition_on_cameras(unet, cameras, 8, 8)).sample
    actual = loaded(sample, timesteps, text, condition_on_cameras(loaded, cameras, 8, 8)).sample
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(("former", "rays"), [(True, "map"), (False, "none")])
def test_configurations_of_earlier_models_load(tmp_path, caplog, former, rays):
    unet = MultiViewUNet(**UNET, rays=rays)
    unet.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("rays") == rays
    file.write_text(json.dumps(config | {"use_plucker": former}))
    loaded = MultiViewUNet.from_pretrained(tmp_path)
    assert settings_of(loaded) == settings_of(unet)
    assert loaded.state_dict().keys() == unet.state_dict().keys()
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@torch.no_grad()
def test_a_plain_unet_folder_loads_by_name(tmp_path):
    plain = UNet2DConditionModel(**UNET)
    plain.save_pretrained(tmp_path)
    loaded = MultiViewUNet.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    for name, weight in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    for module in loaded.modules():
        if isinstance(module, PluckerProjection):
            assert not module.linear.weight.any()
    assert not loaded.camera_embedding.linear_2.weight.any()


def test_absolute_and_relative_camera_vectors():
    cameras = Cameras.orbit([0.0, 30.0], [10.0, 100.0], radius=[3.5, 4.0], height=64, width=64)
    absolute = camera_vectors(cameras, 2, relative=False, with_intrinsics=True)[0]
    polar = torch.deg2rad(torch.tensor(60.0))
    azimuth = torch.deg2rad(torch.tensor(100.0))
    assert torch.allclose(
        absolute[1, :4], torch.stack([polar, azimuth.sin(), azimuth.cos(), torch.tensor(4.0)])
    )
    assert torch.allclose(absolute[:, 4], 1 / torch.tan(cameras.fov_rad / 2))
    relative = camera_vectors(cameras, 2, relative=True, with_intrinsics=False)[0]
    assert torch.allclose(relative[0], torch.tensor([0.0, 0.0, 1.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize(
    "change", [{"camera_vector": "polar"}, {"rays": "all"}, {"epipolar": "some"}]
)
def test_wrong_settings_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        MultiViewUNet(**UNET, **change)


def test_wrong_number_of_views_is_refused(unet, inputs):
    sample, timesteps, text, cameras = inputs
    views = condition_on_cameras(unet, cameras, 8, 8)
    with pytest.raises(ValueError, match="expected 3 views"):
        unet(sample[:, :2], timesteps[:, :2], text, views)
