"""Laws of rays in queries and keys, and their plain twin."""

import itertools

import pytest
import torch

from reference import plain_multiview_attention
from spad.attention import EpipolarMask
from spad.cameras import Cameras
from spad.geometry import plucker, plucker_map
from spad.model.processors import MultiViewAttnProcessor, ViewConditioning
from spad.model.ray_encoding import RayEncoding

HEADS, CHANNELS = 2, 15


@pytest.fixture
def encoding() -> RayEncoding:
    torch.manual_seed(0)
    made = RayEncoding("block", HEADS, CHANNELS).double()
    for gains in made.parameters():
        gains.data.normal_()
    return made


def pair_terms(encoding: RayEncoding, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Of rays (n, 6) with rays (n, 6), each with its own: (heads, n)."""
    query, key = encoding(first[None, None])[0], encoding(second[None, None])[1]
    return (query * key).sum(-1)[0, 0].detach()


def test_the_pair_term_is_the_reciprocal_product(encoding):
    first, second = torch.randn(2, 50, 6, dtype=torch.float64)
    (d1, m1), (d2, m2) = (x.split(3, dim=-1) for x in (first, second))
    reciprocal = (d1 * m2).sum(-1) + (m1 * d2).sum(-1)
    scale = (encoding.query_gains * encoding.key_gains).sum(-1, keepdim=True).detach()
    torch.testing.assert_close(pair_terms(encoding, first, second), scale * reciprocal)


def test_the_pair_term_of_rays_that_meet_is_zero_and_of_others_it_is_not(encoding):
    where = torch.randn(50, 3, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(2, 50, 3, dtype=torch.float64), dim=-1)
    first, second = (plucker(where - 3 * d, d) for d in directions)
    assert pair_terms(encoding, first, second).abs().max() < 1e-12
    beside = plucker(where + torch.linalg.cross(*directions), directions[1])
    assert pair_terms(encoding, first, beside).abs().min() > 1e-4


def test_a_rigid_motion_of_the_world_changes_no_pair_term(encoding):
    cameras = Cameras.orbit([10.0, 40.0], [0.0, 80.0], height=8, width=8).to(dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    motion = torch.eye(4, dtype=torch.float64)
    motion[:3, :3], motion[:3, 3] = turn * turn.det().sign(), torch.tensor([0.3, -2.0, 1.0])
    moved = Cameras(motion @ cameras.world_from_cam, cameras.intrinsics, 8, 8)
    before, after = (
        pair_terms(encoding, *plucker_map(rig, 8, 8).flatten(-2).mT) for rig in (cameras, moved)
    )
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("backend", ["sdpa", "banded"])
def test_attention_equals_its_plain_twin(encoding, backend):
    """The twin writes (d, m) and (m, d) channel by channel."""
    from diffusers.models.attention_processor import Attention

    views, side, width = 3, 4, HEADS * CHANNELS
    cameras = Cameras.orbit([0.0, 20.0, 40.0], [0.0, 75.0, 200.0], height=side, width=side)
    cameras = cameras.to(dtype=torch.float64)
    attention = Attention(width, heads=HEADS, dim_head=CHANNELS).double()
    attention.set_processor(MultiViewAttnProcessor("block"))
    hidden = torch.randn(views, side**2, width, dtype=torch.float64)
    rays = plucker_map(cameras, side, side).flatten(-2).mT
    mask = EpipolarMask(cameras.world_from_cam[None], cameras.intrinsics[None], side, side, 2.0)
    conditioning = ViewConditioning(
        views,
        masks={side**2: mask},
        backend=backend,
        ray_encodings={"block": encoding(rays[None])},
    )
    found = attention(hidden, views=conditioning)

    query, key, value = (
        layer(hidden).unflatten(-1, (HEADS, CHANNELS)).transpose(1, 2)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    query, key = query.clone(), key.clone()
    for head, copy, number in itertools.product(range(HEADS), range(CHANNELS // 6), range(6)):
        channel = 6 * copy + number
        query[:, head, :, channel] += encoding.query_gains[head, copy] * rays[..., number]
        swapped = rays[..., (number + 3) % 6]
        key[:, head, :, channel] += encoding.key_gains[head, copy] * swapped
    attended = plain_multiview_attention(query, key, value, views, mask.dense())
    expected = attention.to_out[0](attended.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "banded"])
def test_mixed_precision_gives_about_the_same(encoding, backend):
    """In training, weights and so encodings are float32, queries and keys are not."""
    from diffusers.models.attention_processor import Attention

    cameras = Cameras.ring(2, height=4, width=4)
    rays = plucker_map(cameras, 4, 4).flatten(-2).mT
    mask = EpipolarMask(cameras.world_from_cam[None], cameras.intrinsics[None], 4, 4, 2.0)
    attention = Attention(HEADS * CHANNELS, heads=HEADS, dim_head=CHANNELS)
    attention.set_processor(MultiViewAttnProcessor("block"))
    hidden = torch.randn(2, 16, HEADS * CHANNELS)
    summands = encoding.float()(rays[None])
    views = ViewConditioning(
        2, masks={16: mask}, backend=backend, ray_encodings={"block": summands}
    )
    expected = attention(hidden, views=views)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(hidden, views=views)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


def test_heads_too_narrow_for_a_ray_are_refused():
    with pytest.raises(ValueError, match="expected at least 6 channels per head"):
        RayEncoding("block", 8, 4)
