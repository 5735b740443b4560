"""Multi-view attention against its plain twin, values and gradients."""

import pytest
import torch

from reference import plain_multi_view_attention
from spad.attention import multi_view_attention
from spad.cameras import Cameras
from spad.epipolar import mask_of


def inputs(batch: int, views: int, heads: int = 2, tokens: int = 9, channels: int = 4):
    generator = torch.Generator().manual_seed(0)
    shape = (batch * views, heads, tokens, channels)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("masks", ["none", "shared", "one each"])
def test_equals_the_plain_twin(masks):
    batch, views = 2, 3
    first = Cameras.evenly_round(views, height=48, width=48)
    second = Cameras.orbit([0.0, 60.0, 10.0], [0.0, 40.0, 200.0], height=48, width=48)
    mask = {
        "none": None,
        "shared": mask_of(first, 3, 3, 1.5)[None],
        "one each": torch.stack([mask_of(c, 3, 3, 1.5) for c in (first, second)]),
    }[masks]
    tensors = inputs(batch, views)
    results = []
    for attend in (multi_view_attention, plain_multi_view_attention):
        output = attend(*tensors, views, mask)
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
        results.append([output, *torch.autograd.grad((output * weights).sum(), tensors)])
    for fast, plain in zip(*results, strict=True):
        assert torch.allclose(fast, plain, atol=1e-5)


def test_one_view_is_plain_self_attention():
    query, key, value = inputs(batch=3, views=1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(multi_view_attention(query, key, value, 1), expected)
