"""Data type of weights and computation where the user asks for none."""

import logging
from functools import cache
from typing import Literal

import torch

logger = logging.getLogger(__name__)

DType = torch.dtype | Literal["auto"]


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """`dtype`, or for "auto" bfloat16 where `device` computes with it in hardware, else float32.

    These are GPUs from NVIDIA's Ampere on, and processors with AVX-512 BF16 or AMX. float16 is
    never chosen: its range is too small for some models. That bfloat16 was chosen is logged once.

    Raises: ValueError: it is no floating-point type.
    """
    if dtype == "auto":
        if not has_fast_bfloat16(device):
            return torch.float32
        _say_bfloat16(device.type)
        return torch.bfloat16
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"expected a dtype such as torch.float32, or 'auto', got {dtype!r}")
    return dtype


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _say_bfloat16(device_type: str) -> None:
    logger.info(
        "computing in bfloat16, which this %s is fast at; float32 is more exact: "
        "--dtype float32, or dtype=torch.float32",
        device_type.replace("cuda", "GPU").replace("cpu", "processor"),
    )
