"""Self-attention over the tokens of all views of an object, restricted by a mask."""

import math
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from spad.attention.banded import banded_attention, plan_of
from spad.attention.flex import block_mask_of, flex_attention
from spad.attention.masks import AttentionMask, EpipolarMask

# On a CPU the banded backend beats dense attention only from 32 x 32 tokens per view, and only if
# it skips enough pairs.
LEAST_TOKENS = 1024
MOST_KEPT = 0.7
# On a GPU a mask is stored as a matrix up to this size.
MOST_DENSE_BYTES = 500_000_000


def multiview_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_views: int,
    mask: AttentionMask | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multi-view self-attention: every token attends to the allowed tokens of all views.

    Args:
        query, key, value: (b * v, heads, n, c), views of one object side by side.
        mask: allowed pairs of tokens, for b objects or one for all; None allows all pairs.
        backend: one of `BACKENDS`; None: the fastest one here, see `choose_backend`.

    Returns: (b * v, heads, n, c).

    Source: SPAD, section 3.1: `n v c h w` becomes `n (v h w) c` for self-attention.
    """
    if num_views == 1:
        return F.scaled_dot_product_attention(query, key, value)
    if backend is None:
        backend = choose_backend(mask)
    elif backend not in BACKENDS:
        raise ValueError(f"expected a backend among {', '.join(BACKENDS)}, got {backend!r}")
    if mask is None and backend != "reference":
        backend = "sdpa"
    views = (x.unflatten(0, (-1, num_views)) for x in (query, key, value))
    return _ATTEND[backend](*views, mask).flatten(0, 1)


def choose_backend(mask: AttentionMask | None) -> str:
    """The fastest backend for a mask on its device.

    `banded` on the CPU for large views and narrow bands. On other devices `flex` where a dense mask
    would be too large, or `banded` where Triton is missing. Otherwise `sdpa`.
    """
    if not isinstance(mask, EpipolarMask):
        return "sdpa"
    if mask.device.type == "cpu" and mask.tokens >= LEAST_TOKENS:
        return "banded" if plan_of(mask).kept <= MOST_KEPT else "sdpa"
    dense_bytes = mask.num_objects * (mask.num_views * mask.tokens) ** 2
    if mask.device.type == "cpu" or dense_bytes <= MOST_DENSE_BYTES:
        return "sdpa"
    return "flex" if mask.device.type == "cuda" and find_spec("triton") else "banded"


def prepare(mask: AttentionMask, backend: str | None = None) -> None:
    """Precompute what a backend derives from a mask, before the first denoising step."""
    backend = backend or choose_backend(mask)
    if backend == "banded":
        plan_of(mask)
    elif backend == "flex":
        block_mask_of(mask)
    else:
        mask.dense()


def _joined(x: Tensor) -> Tensor:
    """(b, v, heads, n, c) -> (b, heads, v * n, c)."""
    return x.transpose(1, 2).flatten(2, 3)


def _reference(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None) -> Tensor:
    """Plain softmax attention. A query with no allowed key returns zeros."""
    q, k, v = (_joined(x) for x in (query, key, value))
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask.dense()[:, None], -torch.inf)
    weights = logits.softmax(-1).nan_to_num()
    return (weights @ v).unflatten(2, (query.shape[1], -1)).transpose(1, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None) -> Tensor:
    attended = F.scaled_dot_product_attention(
        *(_joined(x) for x in (query, key, value)),
        attn_mask=None if mask is None else mask.dense()[:, None],
    )
    return attended.unflatten(2, (query.shape[1], -1)).transpose(1, 2)


def _banded(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
    return banded_attention(query, key, value, plan_of(mask))


_ATTEND = {"reference": _reference, "sdpa": _sdpa, "banded": _banded, "flex": flex_attention}
BACKENDS = tuple(_ATTEND)
