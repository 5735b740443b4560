"""Attention between views along epipolar bands, at a cost that grows with the bands alone.

The epipolar planes of two views form a pencil about their baseline. A token sees a token of the
other view only if their planes nearly coincide. So the tokens of one view are sorted by the angle
of their planes and cut into blocks; all of a block see about the same few tokens of the other view.
Each block attends to these alone, each view to itself entirely, and what a token gets from several
views is put together by the logarithms of their sums of exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spad.epipolar import pixel_grid, rays
from spad.masks import AttentionMask, EpipolarMask

# Queries that attend together. Fewer would see fewer keys, at more calls.
BLOCK = 64
# Far below any logit, and finite: a query that sees no key of a block gets a weight of zero there.
_NEVER = -1e9


class Block(NamedTuple):
    """Queries (m,) of one view that attend to keys (w,) of another where `allowed`, bool (m, w)."""

    queries: Tensor
    keys: Tensor
    allowed: Tensor


@dataclass(frozen=True)
class BandedPlan:
    """What attends to what: `blocks[o][i][j]` between views i and j of object o.

    Attributes:
        blocks: None in place of a list where all tokens of i see all of j, as in their own view.
        kept: share of all pairs of tokens that are computed.
    """

    blocks: list[list[list[list[Block] | None]]]
    tokens: int
    kept: float

    @property
    def num_bytes(self) -> int:
        """Memory that the plan takes."""
        return sum(
            part.numel() * part.element_size()
            for views in self.blocks
            for others in views
            for blocks in others
            for block in blocks or ()
            for part in block
        )


def plan_of(mask: AttentionMask, block: int = BLOCK) -> BandedPlan:
    """The plan of a mask, made once for each size of blocks."""
    return mask.once(f"banded {block}", lambda: make_plan(mask, block))


def make_plan(mask: AttentionMask, block: int = BLOCK) -> BandedPlan:
    """Blocks of `block` queries, and for each the keys of another view that any of them sees."""
    everything = torch.arange(mask.tokens, device=mask.device)
    computed = 0
    objects = []
    for index in range(mask.num_objects):
        views: list[list[list[Block] | None]] = []
        for view in range(mask.num_views):
            others: list[list[Block] | None] = []
            for other, tile in enumerate(mask.tiles(index, view)):
                if other == view and bool(tile(everything, everything).all()):
                    others.append(None)
                    computed += mask.tokens**2
                    continue
                blocks = []
                for queries, keys in _candidates(mask, index, view, other, block):
                    allowed = tile(queries, keys)
                    seen = allowed.any(0)
                    if seen.any():
                        blocks.append(Block(queries, keys[seen], allowed[:, seen].contiguous()))
                        computed += blocks[-1].allowed.numel()
                others.append(blocks)
            views.append(others)
        objects.append(views)
    total = mask.num_objects * (mask.num_views * mask.tokens) ** 2
    return BandedPlan(objects, mask.tokens, computed / total)


def _candidates(
    mask: AttentionMask, index: int, view: int, other: int, block: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the queries of `view`, and a superset of the keys of `other` that each sees."""
    pencil = None
    if isinstance(mask, EpipolarMask) and view != other:
        pencil = _pencil(mask, index, view, other)
    if pencil is None:
        everything = torch.arange(mask.tokens, device=mask.device)
        for queries in everything.split(block):
            yield queries, everything
        return
    angles, centers, half_widths = pencil
    order, low, high = _arcs(angles, block)
    middle, half = (low + high) / 2, (high - low) / 2
    apart = torch.remainder(centers - middle[:, None] + math.pi, 2 * math.pi) - math.pi
    # The rounding of the mask's own arithmetic is far below this.
    near = apart.abs() <= half[:, None] + half_widths + 1e-4
    for queries, seen in zip(order.split(block), near, strict=True):
        yield queries, seen.nonzero()[:, 0]


def _arcs(angles: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts angles round the circle from its widest gap on; first and last of each block."""
    turned = torch.remainder(angles, 2 * math.pi)
    ascending, order = turned.sort()
    gaps = torch.cat([ascending[1:], ascending[:1] + 2 * math.pi]) - ascending
    first = (int(gaps.argmax()) + 1) % len(order)
    order = order.roll(-first)
    ascending = turned[order]
    ascending = torch.where(ascending < ascending[0], ascending + 2 * math.pi, ascending)
    parts = ascending.split(block)
    low, high = (torch.stack([part[at] for part in parts]) for at in (0, -1))
    return order, low, high


def _pencil(
    mask: EpipolarMask, index: int, view: int, other: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Angles about the baseline of two views; None where their centres coincide.

    Returns: the half-planes of the tokens of `view` (n,); and for those of `other` the middle (n,)
        and half the width (n,) of the half-planes whose image comes within half a band of them.
    """
    poses = mask.world_from_cam[index, [view, other]].double()
    pixels = mask.intrinsics[index, [view, other]].double()
    baseline = poses[1, :3, 3] - poses[0, :3, 3]
    if baseline.norm() < 1e-9:
        return None
    axis = baseline / baseline.norm()
    helper = torch.eye(3).to(axis)[axis.abs().argmin()]
    first = torch.linalg.cross(axis, helper)
    first = first / first.norm()
    second = torch.linalg.cross(axis, first)
    _, directions = rays(poses, pixels, mask.height, mask.width)
    angles = torch.atan2(directions @ second, directions @ first).flatten(1)

    # The line of the plane at angle φ is cos φ a + sin φ b. A cell is within half a band of it
    # where a quadratic form in cos φ and sin φ, so a cosine of 2 φ plus a constant, is negative.
    to_lines = torch.linalg.inv(pixels[1]).T @ poses[1, :3, :3].T
    lines = torch.stack([to_lines @ second, -(to_lines @ first)])
    cells = pixel_grid(mask.height, mask.width, pixels)
    at_cells = cells @ lines.T
    slopes = (mask.band_width / 2) ** 2 * (lines[:, :2] @ lines[:, :2].T)
    form = at_cells[:, :, None] * at_cells[:, None, :] - slopes
    constant = (form[:, 0, 0] + form[:, 1, 1]) / 2
    even, odd = (form[:, 0, 0] - form[:, 1, 1]) / 2, form[:, 0, 1]
    ratio = constant / torch.hypot(even, odd).clamp(min=1e-300)
    half_widths = ratio.clamp(-1, 1).acos() / 2
    middle = (torch.atan2(odd, even) + math.pi) / 2
    # Of a line's two half-planes, that of the token itself.
    own = angles[1]
    middle = middle + math.pi * ((own - middle) / math.pi).round()
    # A band about the epipole is met by every plane, and lies in all half-planes.
    half_widths = torch.where(ratio <= -1, math.pi, half_widths)
    return angles[0], middle, half_widths


def banded_attention(query: Tensor, key: Tensor, value: Tensor, plan: BandedPlan) -> Tensor:
    """Attention of all views of an object to each other, as `plan` allows.

    Args:
        query, key, value: (b, v, heads, n, c); b is a multiple of the plan's objects if it has one,
            else their number.

    Returns: (b, v, heads, n, c).
    """
    return _Banded.apply(query, key, value, plan)


class _Banded(torch.autograd.Function):
    """Recomputes, backwards, what it did not keep: all but the result and its normalisation."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: BandedPlan) -> Tensor:
        attended = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        sums = torch.empty(query.shape[:-1], dtype=_sum_dtype(query), device=query.device)
        for part, views in _objects(plan, len(query)):
            for view, others in enumerate(views):
                q = query[part, view]
                pieces, logs = [], []
                for other, blocks in enumerate(others):
                    k, v = key[part, other], value[part, other]
                    piece, log = _from_view(q, k, v, blocks)
                    pieces.append(piece)
                    logs.append(log)
                total = torch.stack(logs).logsumexp(0)
                whole = torch.zeros_like(pieces[0])
                for piece, log in zip(pieces, logs, strict=True):
                    whole.addcmul_(piece, (log - total).exp_()[..., None].to(piece.dtype))
                attended[part, view], sums[part, view] = whole, total
        ctx.save_for_backward(query, key, value, attended, sums)
        ctx.plan = plan
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, attended, sums = ctx.saved_tensors
        to_query, to_key, to_value = (torch.zeros_like(x) for x in (query, key, value))
        for part, views in _objects(ctx.plan, len(query)):
            for view, others in enumerate(views):
                given = (query, attended, sums, gradient)
                q, out, total, grad = (x[part, view] for x in given)
                for other, blocks in enumerate(others):
                    k, v = key[part, other], value[part, other]
                    if blocks is None:
                        found = _backward(grad, q, k, v, out, total, None)
                        for sink, x in zip((to_query, to_key, to_value), found, strict=True):
                            sink[part, view] += x
                        continue
                    for queries, keys, allowed in blocks:
                        rows = (x.index_select(2, queries) for x in (grad, q, out, total))
                        grad_rows, q_rows, out_rows, total_rows = rows
                        columns = (x.index_select(2, keys) for x in (k, v))
                        found = _backward(
                            grad_rows, q_rows, *columns, out_rows, total_rows, _bias(allowed, q)
                        )
                        to_query[part, view].index_add_(2, queries, found[0])
                        to_key[part, other].index_add_(2, keys, found[1])
                        to_value[part, other].index_add_(2, keys, found[2])
        return to_query, to_key, to_value, None


def _objects(plan: BandedPlan, batch: int) -> Iterator[tuple[slice, list]]:
    """The samples of a batch that each object's plan is for."""
    shared = len(plan.blocks) == 1
    for index, views in enumerate(plan.blocks):
        yield (slice(0, batch) if shared else slice(index, index + 1)), views


def _from_view(q: Tensor, k: Tensor, v: Tensor, blocks: list[Block] | None):
    """What tokens get from one view: results (b, heads, n, c) and log of sums (b, heads, n)."""
    if blocks is None:
        return _forward(q, k, v, None)
    piece = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    log = torch.full(q.shape[:-1], _NEVER, dtype=_sum_dtype(q), device=q.device)
    for queries, keys, allowed in blocks:
        columns = (x.index_select(2, keys) for x in (k, v))
        rows, sums = _forward(q.index_select(2, queries), *columns, _bias(allowed, q))
        piece.index_copy_(2, queries, rows)
        log.index_copy_(2, queries, sums)
    return piece, log


def _bias(allowed: Tensor, like: Tensor) -> Tensor:
    # A number for the type that the kernel adds it in.
    return torch.where(allowed, 0.0, _NEVER).to(_sum_dtype(like))


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _has_kernel(q: Tensor) -> bool:
    return q.device.type == "cpu"


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention (b, heads, m, c), and the logarithm of its sums (b, heads, m)."""
    if _has_kernel(q):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=None if bias is None else bias.expand(1, 1, -1, -1)
        )
    logits = _logits(q, k, bias)
    total = logits.logsumexp(-1)
    return (logits - total[..., None]).exp().to(v.dtype) @ v, total


def _backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, bias
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v for results `out` whose sums, over all views, are exp(`total`)."""
    if _has_kernel(q):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(x.contiguous() for x in (gradient, q, k, v, out, total)),
            *(0.0, False),
            attn_mask=None if bias is None else bias.expand(1, 1, -1, -1),
        )
    weights = (_logits(q, k, bias) - total[..., None]).exp()
    ahead = (gradient @ v.transpose(-1, -2)).to(weights.dtype)
    inner = (gradient * out).sum(-1, keepdim=True).to(weights.dtype)
    change = (weights * (ahead - inner)).to(q.dtype) / math.sqrt(q.shape[-1])
    to_value = weights.to(v.dtype).transpose(-1, -2) @ gradient
    return change @ k, change.transpose(-1, -2) @ q, to_value


def _logits(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    logits = (q @ k.transpose(-1, -2)).to(_sum_dtype(q)) / math.sqrt(q.shape[-1])
    return logits if bias is None else logits + bias
