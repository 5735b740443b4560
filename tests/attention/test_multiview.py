"""Multi-view attention: every backend against the others and against its plain twin."""

import itertools
import math
import shutil

import pytest
import torch
from torch import Tensor

from reference import plain_multiview_attention
from spad.attention import (
    BACKENDS,
    AttentionMask,
    DenseMask,
    EpipolarMask,
    choose_backend,
    multiview_attention,
    prepare,
)
from spad.attention.banded import make_plan
from spad.cameras import Cameras
from spad.geometry import epipolar_mask
from spad.geometry.rays import scale_intrinsics
from spad.geometry.released_masks import released_mask

# FlexAttention has no gradients on a CPU, and compiles for seconds: tested apart.
WITH_GRADIENTS = tuple(b for b in BACKENDS if b != "flex")


def rig(kind: str, views: int) -> Cameras:
    draw = torch.Generator().manual_seed(views)
    some = torch.rand(3, views, generator=draw, dtype=torch.float64)
    if kind == "ring":
        return Cameras.ring(views, elevation_deg=20.0)
    if kind == "random":
        return Cameras.orbit(some[0] * 160 - 80, some[1] * 360)
    if kind == "close":
        # Inside the object, so that cameras stand before one another, and see far round.
        return Cameras.orbit(some[0] * 160 - 80, some[1] * 360, 0.3 + some[2], math.radians(100))
    # Every second camera stands where the one before it does, and looks elsewhere.
    places = Cameras.orbit(some[0] * 160 - 80, some[1] * 360)
    poses = places.world_from_cam.clone()
    poses[1::2, :3, 3] = poses[: views // 2 * 2 : 2, :3, 3]
    return Cameras(poses, places.intrinsics, places.height, places.width)


def epipolar(*rigs: Cameras, height: int = 16, width: int = 16, band: float = 2.0, radius=None):
    poses = torch.stack([c.world_from_cam for c in rigs]).double()
    sizes = [(c.height, c.width) for c in rigs]
    intrinsics = torch.stack(
        [
            scale_intrinsics(c.intrinsics.double(), size, (height, width))
            for c, size in zip(rigs, sizes, strict=True)
        ]
    )
    return EpipolarMask(poses, intrinsics, height, width, band, radius)


def scattered(views: int, tokens: int) -> DenseMask:
    """Any mask at all; some tokens see nothing of some views."""
    allowed = torch.rand(1, views * tokens, views * tokens, generator=torch.Generator()) < 0.3
    allowed[:, ::7, tokens : 2 * tokens] = False
    diagonal = torch.arange(views * tokens)
    allowed[:, diagonal, diagonal] = True
    return DenseMask(allowed, views)


def inputs(batch: int, views: int, tokens: int, heads: int = 2, channels: int = 8, **kind):
    generator = torch.Generator().manual_seed(0)
    shape = (batch * views, heads, tokens, channels)
    kind = {"dtype": torch.float64} | kind
    return [torch.randn(shape, generator=generator).to(**kind).requires_grad_() for _ in range(3)]


def attend(tensors: list[Tensor], views: int, mask: AttentionMask | None, backend: str):
    """The result, then the gradients of its weighed sum."""
    output = multiview_attention(*tensors, views, mask, backend)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), tensors)]


@pytest.fixture(params=["kernel", "plain"])
def kernels(request, monkeypatch):
    """Banded attention by torch's kernel for the CPU, and by formulas for any device."""
    if request.param == "plain":
        monkeypatch.setattr("spad.attention.banded._has_kernel", lambda q: False)


def assert_all_agree(tensors, views, mask, tolerance: float) -> None:
    results = {backend: attend(tensors, views, mask, backend) for backend in WITH_GRADIENTS}
    for (name, first), (other, second) in itertools.combinations(results.items(), 2):
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True)]
        assert max(errors) < tolerance, f"{name} and {other}: {errors}"


@pytest.mark.parametrize("masks", ["none", "shared", "one each"])
def test_equals_the_plain_twin(masks):
    batch, views = 2, 3
    first = Cameras.ring(views, height=48, width=48)
    second = Cameras.orbit([0.0, 60.0, 10.0], [0.0, 40.0, 200.0], height=48, width=48)
    dense = {
        "none": None,
        "shared": epipolar_mask(first, 3, 3, 1.5)[None],
        "one each": torch.stack([epipolar_mask(c, 3, 3, 1.5) for c in (first, second)]),
    }[masks]
    tensors = inputs(batch, views, tokens=9)
    expected = plain_multiview_attention(*tensors, views, dense)
    weights = torch.linspace(-1, 1, expected.numel()).view(expected.shape).to(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), tensors)
    mask = None if dense is None else DenseMask(dense, views)
    for backend in WITH_GRADIENTS:
        found = attend(tensors, views, mask, backend)
        for fast, plain in zip(found, [expected, *gradients], strict=True):
            torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("radius", [None, 1.0, 0.4])
@pytest.mark.parametrize("kind", ["ring", "random", "close", "same place"])
@pytest.mark.parametrize("grid", [(16, 16), (9, 20)])
def test_backends_agree_on_epipolar_masks(kind, radius, grid):
    mask = epipolar(rig(kind, 4), height=grid[0], width=grid[1], radius=radius)
    assert_all_agree(inputs(2, 4, grid[0] * grid[1]), 4, mask, 1e-12)


@pytest.mark.parametrize("views", [1, 2, 3, 7, 32])
def test_backends_agree_for_any_number_of_views(views):
    mask = epipolar(rig("random", views), height=8, width=8)
    assert_all_agree(inputs(1, views, 64), views, mask, 1e-12)


def test_backends_agree_where_every_object_has_cameras_of_its_own(kernels):
    mask = epipolar(rig("ring", 3), rig("random", 3))
    assert_all_agree(inputs(2, 3, 256), 3, mask, 1e-12)


@pytest.mark.parametrize("kind", ["original", "scattered", "none"])
def test_backends_agree_on_other_masks(kind, kernels):
    mask = {
        "original": lambda: DenseMask(released_mask(rig("ring", 3), 16)[None], 3),
        "scattered": lambda: scattered(3, 256),
        "none": lambda: None,
    }[kind]()
    assert_all_agree(inputs(2, 3, 256), 3, mask, 1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=["fp32", "bf16"]
)
def test_backends_agree_in_other_precisions(dtype, tolerance, kernels):
    tensors = inputs(2, 4, 256, dtype=dtype)
    mask = epipolar(rig("random", 4))
    expected = attend([x.detach().double().requires_grad_() for x in tensors], 4, mask, "reference")
    for backend in WITH_GRADIENTS:
        found = attend(tensors, 4, mask, backend)
        for part, plain in zip(found, expected, strict=True):
            assert part.dtype == dtype
            assert (part - plain).norm() < tolerance * plain.norm(), backend


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention is compiled with g++")
@pytest.mark.parametrize("kind", ["epipolar", "scattered"])
def test_flex_agrees(kind):
    mask = epipolar(rig("random", 3)) if kind == "epipolar" else scattered(3, 256)
    tensors = [x.detach() for x in inputs(2, 3, 256, channels=16, dtype=torch.float32)]
    found = multiview_attention(*tensors, 3, mask, "flex")
    expected = multiview_attention(*tensors, 3, mask, "reference")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gpu_gives_what_the_cpu_gives(backend):
    mask = epipolar(rig("random", 3))
    there = EpipolarMask(mask.world_from_cam.cuda(), mask.intrinsics.cuda(), 16, 16, 2.0)
    tensors = inputs(2, 3, 256, channels=16, dtype=torch.float32)
    expected = attend(tensors, 3, mask, "reference")
    moved = [x.detach().cuda().requires_grad_() for x in tensors]
    for part, plain in zip(attend(moved, 3, there, backend), expected, strict=True):
        assert (part.cpu() - plain).norm() < 5e-3 * plain.norm()


@pytest.mark.parametrize("radius", [None, 0.8])
@pytest.mark.parametrize("kind", ["ring", "random", "close", "same place"])
def test_plans_keep_all_that_the_mask_allows_and_not_much_more(kind, radius):
    mask = epipolar(rig(kind, 5), height=24, width=24, radius=radius)
    plan = make_plan(mask)
    allowed = torch.zeros(5, 576, 5, 576, dtype=torch.int32)
    for view, groups in enumerate(plan.blocks[0]):
        allowed[view, :, view] = plan.sees_itself
        for group in groups:
            for queries, other, keys, part in zip(*group, strict=True):
                # Keys are filled up with copies that nothing sees.
                of_pair, places = allowed[view, :, other], (queries[:, None], keys)
                of_pair.index_put_(places, part.int(), accumulate=True)
    dense = mask.dense()[0]
    assert torch.equal(allowed.reshape(dense.shape), dense.int())
    # Cameras at one place have no planes to sort by.
    assert plan.kept < (0.9 if kind == "same place" else 1.6) * dense.double().mean() + 0.1 * (
        kind == "same place"
    )


def test_the_backend_is_chosen_by_size_and_bands():
    small, large = (epipolar(rig("ring", 4), height=n, width=n) for n in (16, 32))
    assert choose_backend(None) == choose_backend(small) == "sdpa"
    assert choose_backend(large) == "banded"
    # A band as wide as the view leaves nothing out.
    assert choose_backend(epipolar(rig("ring", 2), height=32, width=32, band=80.0)) == "sdpa"
    assert choose_backend(scattered(2, 1024)) == "sdpa"


def test_bands_never_make_the_whole_mask(monkeypatch):
    mask = epipolar(rig("ring", 2), height=32, width=32)
    monkeypatch.setattr(EpipolarMask, "_make_dense", None)
    prepare(mask)
    multiview_attention(*inputs(1, 2, 1024), 2, mask)


def test_an_unknown_backend():
    with pytest.raises(ValueError, match="expected a backend among reference, sdpa, banded, flex"):
        multiview_attention(*inputs(1, 2, 9), 2, None, "fast")


def test_one_view_is_plain_self_attention():
    query, key, value = inputs(batch=3, views=1, tokens=9)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(multiview_attention(query, key, value, 1), expected)
