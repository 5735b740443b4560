"""Flex backend: multi-view attention by FlexAttention, which computes masks in its kernel.

Tokens are taken in tiles of 8 x 16 cells, so that whole blocks of a kernel lie off all lines.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spad.attention.masks import AttentionMask, EpipolarMask
from spad.geometry.epipolar import ray_segments
from spad.geometry.rays import pixel_grid

# Queries and keys of a block; FlexAttention's own default.
BLOCK = 128
_TILE = (8, 16)


@dataclass(frozen=True)
class FlexPlan:
    """FlexAttention's plan of a mask: token order (v * n,) and block masks."""

    order: Tensor
    back: Tensor
    block_mask: Any


def block_mask_of(mask: AttentionMask) -> FlexPlan:
    """Plan of a mask, computed once."""
    return mask.once("flex", lambda: _make_plan(mask))


def flex_attention(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
    """Attention of all views of an object to each other under a mask.

    Args:
        query, key, value: (b, v, heads, n, c). Gradients on a GPU only.

    Returns: (b, v, heads, n, c).
    """
    plan = block_mask_of(mask)

    def sorted_tokens(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2, 3).index_select(2, plan.order)

    attended = _compiled()(*map(sorted_tokens, (query, key, value)), block_mask=plan.block_mask)
    attended = attended.index_select(2, plan.back)
    return attended.unflatten(2, (query.shape[1], -1)).transpose(1, 2)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    # Importing it takes as long as the rest of a start.
    from torch.nn.attention.flex_attention import flex_attention as plain

    return torch.compile(plain, dynamic=False)


def _make_plan(mask: AttentionMask) -> FlexPlan:
    from torch.nn.attention.flex_attention import BlockMask

    num_views, tokens = mask.num_views, mask.tokens
    in_view = _tile_order(mask)
    starts = torch.arange(num_views, device=mask.device)[:, None] * tokens
    order = (starts + in_view).flatten()
    visible = torch.stack([_visible_blocks(mask, i, in_view) for i in range(mask.num_objects)])
    # Kernels go through the first `counts` of the blocks listed for each block of queries.
    counts = visible.sum(-1, dtype=torch.int32)
    listed = visible.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    length = num_views * tokens
    block_mask = BlockMask.from_kv_blocks(
        counts[:, None],
        listed[:, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_function(mask, order),
        seq_lengths=(length, length),
    )
    return FlexPlan(order, order.argsort(), block_mask)


def _tile_order(mask: AttentionMask) -> Tensor:
    """Token indices of a view in tile order."""
    if not isinstance(mask, EpipolarMask):
        return torch.arange(mask.tokens, device=mask.device)
    rows = torch.arange(mask.height, device=mask.device)[:, None]
    columns = torch.arange(mask.width, device=mask.device)
    tiles_across = -(-mask.width // _TILE[1])
    tile = (rows // _TILE[0]) * tiles_across + columns // _TILE[1]
    return tile.flatten().argsort(stable=True)


def _visible_blocks(mask: AttentionMask, index: int, in_view: Tensor) -> Tensor:
    """Non-empty pairs of query and key blocks: bool (blocks, blocks)."""
    num_views, tokens = mask.num_views, mask.tokens
    length = num_views * tokens
    blocks = -(-length // BLOCK)
    seen = torch.zeros(blocks, blocks, dtype=torch.bool, device=mask.device)
    block_of = torch.arange(length, device=mask.device) // BLOCK
    for view in range(num_views):
        for other, tile in enumerate(mask.tiles(index, view)):
            allowed = tile(in_view, in_view)
            row_blocks, column_blocks = (block_of[v * tokens :][:tokens] for v in (view, other))
            by_row = torch.zeros(blocks, tokens, dtype=torch.int32, device=mask.device)
            by_row.index_add_(0, row_blocks, allowed.int())
            both = torch.zeros(blocks, blocks, dtype=torch.int32, device=mask.device)
            both.index_add_(1, column_blocks, by_row)
            seen |= both > 0
    return seen


def _mask_function(mask: AttentionMask, order: Tensor) -> Callable[..., Tensor]:
    """FlexAttention's `mask_mod`, on places in `order`."""
    tokens, shared = mask.tokens, mask.num_objects == 1
    if not isinstance(mask, EpipolarMask):
        dense = mask.dense()

        def looked_up(b: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return dense[0 if shared else b, order[row], order[column]]

        return looked_up
    pixels = pixel_grid(mask.height, mask.width, mask.intrinsics)
    segments = ray_segments(mask.world_from_cam, mask.intrinsics, pixels, radius=mask.radius)
    # (b, v_query, v_key, n, 9)
    functions = torch.cat(segments, dim=-1)
    x, y = pixels[:, 0].contiguous(), pixels[:, 1].contiguous()
    limit = (mask.band_width / 2) ** 2

    def computed(b: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        query, key = order[row], order[column]
        view, other, cell = query // tokens, key // tokens, key % tokens
        index = 0 if shared else b

        def at(part: int) -> Tensor:
            def number(n: int) -> Tensor:
                return functions[index, view, other, query % tokens, 3 * part + n]

            return number(0) * x[cell] + number(1) * y[cell] + number(2)

        across, along = at(0), torch.maximum(at(1), at(2)).clamp(min=0)
        return (view == other) | (across * across + along * along <= limit)

    return computed
