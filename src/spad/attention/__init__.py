"""Attention over the tokens of all views, restricted by masks. Needs only torch."""

from spad.attention.masks import AttentionMask, DenseMask, EpipolarMask
from spad.attention.multiview import BACKENDS, choose_backend, multiview_attention, prepare

__all__ = [
    "BACKENDS",
    "AttentionMask",
    "DenseMask",
    "EpipolarMask",
    "choose_backend",
    "multiview_attention",
    "prepare",
]
