"""Banded backend: exact multi-view attention whose cost grows with the area of the epipolar bands.

The epipolar planes of two views form a pencil about their baseline. A token sees a token of the
other view only if their planes nearly coincide. So the tokens of one view are sorted by the angle
of their planes and cut into blocks; all of a block see about the same few tokens of the other view.
Each block attends to these alone, and each view to all of itself. The partial results of several
views are merged with their log-sum-exp, as in FlashAttention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from spad.attention.masks import AttentionMask, EpipolarMask
from spad.geometry.rays import pixel_grid, rays

# Queries that attend together. Fewer would see fewer keys, at more calls.
BLOCK = 64
# Keys of a block are filled up to a multiple of this, so that blocks can be computed together.
_STEP = 16
# Keys that are gathered at once: what a processor's cache holds, and what keeps a GPU busy.
_KEYS_AT_ONCE = {"cpu": 2048}
_KEYS_ELSEWHERE = 262_144
# Far below any logit, and finite: a query that sees no key of a block gets a weight of zero there.
_NEVER = -1e9


class Blocks(NamedTuple):
    """g blocks of m queries of one view, each with w keys of one other view.

    Attributes:
        queries: (g, m) tokens of the view.
        others: (g,) which view the keys are of.
        keys: (g, w) tokens of that view; filled up with token 0.
        allowed: bool (g, m, w), False for what is filled up.
    """

    queries: Tensor
    others: Tensor
    keys: Tensor
    allowed: Tensor

    def split(self, most: int) -> Iterator[Blocks]:
        """Parts of at most `most` keys and at least one block."""
        size = max(1, most // self.keys.shape[1])
        for parts in zip(*(x.split(size) for x in self), strict=True):
            yield Blocks(*parts)


@dataclass(frozen=True)
class BandedPlan:
    """Plan of a banded attention: the blocks of queries and keys of every view.

    Attributes:
        blocks: `blocks[o][i]` are those of view i of object o.
        sees_itself: whether all tokens of a view see all of their own view, which then is in no
            block.
        kept: share of all pairs of tokens that are computed.
    """

    blocks: list[list[list[Blocks]]]
    sees_itself: bool
    tokens: int
    kept: float

    @property
    def num_bytes(self) -> int:
        """Memory of the plan in bytes."""
        return sum(
            part.numel() * part.element_size()
            for views in self.blocks
            for blocks in views
            for group in blocks
            for part in group
        )


def plan_of(mask: AttentionMask, block: int = BLOCK) -> BandedPlan:
    """The plan of a mask, made once for each size of blocks."""
    return mask.once(f"banded {block}", lambda: make_plan(mask, block))


def make_plan(mask: AttentionMask, block: int = BLOCK) -> BandedPlan:
    """Blocks of `block` queries, and for each the keys of another view that any of them sees."""
    num_objects, num_views, tokens = mask.num_objects, mask.num_views, mask.tokens
    everything = torch.arange(tokens, device=mask.device)
    sees_itself = isinstance(mask, EpipolarMask) or all(
        bool(mask.tiles(index, view)[view](everything, everything).all())
        for index in range(num_objects)
        for view in range(num_views)
    )
    computed = num_objects * num_views * tokens**2 if sees_itself else 0
    objects: list[list[list[Blocks]]] = []
    for index in range(num_objects):
        objects.append([])
        for view in range(num_views):
            found: dict[tuple[int, int], list[tuple[Tensor, int, Tensor, Tensor]]] = {}
            for other, tile in enumerate(mask.tiles(index, view)):
                if other == view and sees_itself:
                    continue
                for queries, keys in _candidates(mask, index, view, other, block):
                    allowed = tile(queries, keys)
                    seen = allowed.any(0)
                    keys, allowed = keys[seen], allowed[:, seen]
                    lacking = -len(keys) % _STEP
                    if not len(keys):
                        continue
                    keys, allowed = pad(keys, (0, lacking)), pad(allowed, (0, lacking))
                    computed += allowed.numel()
                    group = found.setdefault((len(queries), len(keys)), [])
                    group.append((queries, other, keys, allowed))
            objects[-1].append([_joined_blocks(group) for group in found.values()])
    total = num_objects * (num_views * tokens) ** 2
    return BandedPlan(objects, sees_itself, tokens, computed / total)


def _joined_blocks(group: list[tuple[Tensor, int, Tensor, Tensor]]) -> Blocks:
    queries, others, keys, allowed = zip(*group, strict=True)
    return Blocks(
        torch.stack(queries),
        torch.tensor(others, device=keys[0].device),
        torch.stack(keys),
        torch.stack(allowed),
    )


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
    """Angles about the baseline of two views; None where their centers coincide.

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
        query, key, value: (b, v, heads, n, c); b is any number if the plan is for one object, else
            that of its objects.

    Returns: (b, v, heads, n, c).
    """
    # Token by token, which is how projections give them: gathering moves whole rows.
    tokens = (x.transpose(2, 3).flatten(1, 2).contiguous() for x in (query, key, value))
    attended = _Banded.apply(*tokens, plan)
    return attended.unflatten(1, query.shape[1::2]).transpose(2, 3)


class _Banded(torch.autograd.Function):
    """Autograd function over (b, v * n, heads, c); its backward recomputes the weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: BandedPlan) -> Tensor:
        attended = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=_sum_dtype(query), device=query.device)
        for part, views in _objects(plan, len(query)):
            for view, groups in enumerate(views):
                own = slice(view * plan.tokens, (view + 1) * plan.tokens)
                q, k, v = query[part, own], key[part], value[part]
                attended[part, own], sums[part, own] = _of_view(q, k, v, groups, view, plan)
        ctx.save_for_backward(query, key, value, attended, sums)
        ctx.plan = plan
        return attended

    @staticmethod
    @once_differentiable  # which hides the parameters' names from the type checker
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, attended, sums = ctx.saved_tensors
        plan: BandedPlan = ctx.plan
        to_query, to_key, to_value = (torch.zeros_like(x) for x in (query, key, value))
        for part, views in _objects(plan, len(query)):
            k, v = key[part], value[part]
            for view, groups in enumerate(views):
                own = slice(view * plan.tokens, (view + 1) * plan.tokens)
                # All that is known of the queries.
                q, out, total, change = (x[part, own] for x in (query, attended, sums, gradient))
                if plan.sees_itself:
                    found = _backward(q, out, total, change, k[:, own], v[:, own], None)
                    for sink, x in zip((to_query, to_key, to_value), found, strict=True):
                        sink[part, own] += x
                for blocks in _cut(groups):
                    rows = blocks.queries.flatten()
                    columns = (blocks.keys + blocks.others[:, None] * plan.tokens).flatten()
                    found = _backward(
                        _gathered(q, rows, blocks),
                        _gathered(out, rows, blocks),
                        _gathered(total, rows, blocks),
                        _gathered(change, rows, blocks),
                        _gathered(k, columns, blocks),
                        _gathered(v, columns, blocks),
                        _bias(blocks, k),
                    )
                    to_rows, to_k, to_v = (
                        x.unflatten(0, (len(k), -1)).flatten(1, 2) for x in found
                    )
                    to_query[part, own].index_add_(1, rows, to_rows)
                    to_key[part].index_add_(1, columns, to_k)
                    to_value[part].index_add_(1, columns, to_v)
        return to_query, to_key, to_value, None


def _objects(plan: BandedPlan, batch: int) -> Iterator[tuple[slice, list[list[Blocks]]]]:
    """Slices of the batch, each with the plan of its object."""
    shared = len(plan.blocks) == 1
    for index, views in enumerate(plan.blocks):
        yield (slice(0, batch) if shared else slice(index, index + 1)), views


def _of_view(
    q: Tensor, k: Tensor, v: Tensor, groups: list[Blocks], view: int, plan: BandedPlan
) -> tuple[Tensor, Tensor]:
    """Attention output (b, n, heads, c) of one view over all views, and its log-sum-exp."""
    tokens, batch = plan.tokens, len(q)
    # What comes from every view for some of the queries (r,), and the logarithms of its sums.
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    if plan.sees_itself:
        own = slice(view * tokens, (view + 1) * tokens)
        everything = torch.arange(tokens, device=q.device)
        pieces.append((everything, *_forward(q, k[:, own], v[:, own], None)))
    for blocks in _cut(groups):
        rows = blocks.queries.flatten()
        columns = (blocks.keys + blocks.others[:, None] * tokens).flatten()
        found = _forward(
            _gathered(q, rows, blocks),
            _gathered(k, columns, blocks),
            _gathered(v, columns, blocks),
            _bias(blocks, k),
        )
        part, total = (x.unflatten(0, (batch, -1)).flatten(1, 2) for x in found)
        pieces.append((rows, part, total))
    most = torch.full(q.shape[:-1], _NEVER, dtype=_sum_dtype(q), device=q.device)
    for rows, _, logs in pieces:
        most.scatter_reduce_(1, rows[None, :, None].expand_as(logs), logs, "amax")
    total = torch.zeros_like(most)
    for rows, _, logs in pieces:
        total.index_add_(1, rows, (logs - most[:, rows]).exp_())
    total = total.log_().add_(most)
    whole = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for rows, result, logs in pieces:
        shares = (logs - total[:, rows]).exp_()[..., None].to(result.dtype)
        whole.index_add_(1, rows, result.mul_(shares))
    return whole, total


def _cut(groups: list[Blocks]) -> Iterator[Blocks]:
    for group in groups:
        yield from group.split(_KEYS_AT_ONCE.get(group.keys.device.type, _KEYS_ELSEWHERE))


def _gathered(x: Tensor, rows: Tensor, blocks: Blocks) -> Tensor:
    """Rows (g * r,) of (b, tokens, …) as (b * g, r, …)."""
    return x.index_select(1, rows).unflatten(1, (len(blocks.others), -1)).flatten(0, 1)


def _bias(blocks: Blocks, like: Tensor) -> Tensor:
    """Additive attention bias (b * g, 1, m, w)."""
    # A number for the type that the kernel adds it in.
    bias = torch.where(blocks.allowed, 0.0, _NEVER).to(_sum_dtype(like))
    return bias.expand(len(like), *bias.shape).flatten(0, 1)[:, None]


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _has_kernel(q: Tensor) -> bool:
    return q.device.type == "cpu"


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention output (b, m, heads, c) and its log-sum-exp (b, m, heads)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if _has_kernel(q):
        result, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=bias
        )
    else:
        logits = _logits(q, k, bias)
        total = logits.logsumexp(-1)
        result = (logits - total[..., None]).exp().to(v.dtype) @ v
    return result.transpose(1, 2), total.transpose(1, 2)


def _backward(
    q: Tensor, out: Tensor, total: Tensor, gradient: Tensor, k: Tensor, v: Tensor, bias: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v for results `out` whose sums, over all views, are exp(`total`)."""
    gradient, q, k, v, out, total = (x.transpose(1, 2) for x in (gradient, q, k, v, out, total))
    if _has_kernel(q):
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, out, total.contiguous(), 0.0, False, attn_mask=bias
        )
    else:
        weights = (_logits(q, k, bias) - total[..., None]).exp()
        ahead = (gradient @ v.transpose(-1, -2)).to(weights.dtype)
        inner = (gradient * out).sum(-1, keepdim=True).to(weights.dtype)
        change = (weights * (ahead - inner)).to(q.dtype) / math.sqrt(q.shape[-1])
        to_value = weights.to(v.dtype).transpose(-1, -2) @ gradient
        found = change @ k, change.transpose(-1, -2) @ q, to_value
    to_query, to_key, to_value = (x.transpose(1, 2) for x in found)
    return to_query, to_key, to_value


def _logits(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    logits = (q @ k.transpose(-1, -2)).to(_sum_dtype(q)) / math.sqrt(q.shape[-1])
    return logits if bias is None else logits + bias
