"""Memory that a training step needs, and the graphics cards that have it, without any of them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from spad.model import MultiViewUNet
from spad.model.text import TextEmbeddings
from spad.training.build import LORA_LAYERS, Denoiser, is_new_layer
from spad.training.config import TrainConfig
from spad.training.cost import state_numbers

CARDS_GIB = (8, 12, 16, 24, 80)
# The rest is the driver's, and lies idle between tensors.
_USABLE = 0.9
# Of the bytes of activations in float32: in mixed precision, normalization keeps float32.
_MIXED = 0.75
_MODES = ("all", "new-layers", "lora")
_FLOAT32, _NARROW = 4, 2


def card_table(denoiser: Denoiser, vae: nn.Module, settings: TrainConfig) -> dict[int, list[str]]:
    """GiB of a card -> for each kind of training, the most views at once, of whole objects.

    Weights, gradients and optimizer are exact; activations are counted by a forward pass without
    data, of the whole UNet learning, as an upper bound.
    """
    num_views = max(settings.batch.views)
    per_view = activations(denoiser.unet, num_views, settings) / num_views
    # A model from scratch has nothing to freeze.
    modes = ("all",) if settings.init is None and settings.preset == "mini" else _MODES
    needed = {mode: resident(denoiser, vae, settings, mode) for mode in modes}

    def cell(card: int, mode: str) -> str:
        left = _USABLE * card * 2**30 - needed[mode]
        objects = int(left / (per_view * num_views))
        return f"{mode} {objects * num_views}" if objects > 0 else f"{mode} –"

    return {card: [cell(card, mode) for mode in modes] for card in CARDS_GIB}


def resident(denoiser: Denoiser, vae: nn.Module, settings: TrainConfig, mode: str) -> int:
    """Bytes of weights, gradients, optimizer and average if `mode` says what is trained."""
    is_mixed = settings.hardware.mixed_precision in ("bf16", "fp16")
    is_narrow = is_mixed and not settings.hardware.fsdp
    frozen, learned = sum(p.numel() * _FLOAT32 for p in vae.parameters()), 0
    for name, module in denoiser.named_modules():
        for own, weight in module.named_parameters(recurse=False):
            if "lora_" in name:
                continue
            is_text = name.startswith("text_encoder")
            learns = settings.model.train_text_encoder if is_text else mode == "all"
            if learns or is_new_layer(f"{name}.{own}"):
                learned += weight.numel()
            else:
                can_narrow = is_narrow and isinstance(module, nn.Linear | nn.Conv2d)
                frozen += weight.numel() * (_NARROW if can_narrow else _FLOAT32)
        if mode == "lora" and name.startswith("unet.") and isinstance(module, nn.Linear):
            layer = name.removesuffix(".base_layer")
            if layer.endswith(LORA_LAYERS) and not is_new_layer(name):
                learned += settings.model.lora_rank * (module.in_features + module.out_features)
    return frozen + int(_FLOAT32 * (1 + state_numbers(settings)) * learned)


def activations(unet: MultiViewUNet, num_views: int, settings: TrainConfig) -> int:
    """Bytes that the backward pass of one object needs, for all weights of `unet` learning."""
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    with torch.device("meta"):
        copy = MultiViewUNet(**config)
    whole, largest = _saved(copy, num_views)
    if settings.hardware.gradient_checkpointing:
        copy.enable_gradient_checkpointing()
        # Of what is computed again, one block is there at a time.
        whole = _saved(copy, num_views)[0] + largest
    is_mixed = settings.hardware.mixed_precision in ("bf16", "fp16")
    return int(whole * (_MIXED if is_mixed else 1))


def _saved(unet: MultiViewUNet, num_views: int) -> tuple[int, int]:
    """Bytes that a forward pass saves for the backward pass: all, and the most of any block."""
    weights = {p.untyped_storage()._cdata for p in unet.parameters()}
    # Kept alive, so that the address of its storage stands for a tensor.
    kept: dict[int, Tensor] = {}
    # After every tensor that was saved, and at the beginning and the end of every block.
    total, begun, of_blocks = [0], [0], [0]

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in kept:
            kept[storage._cdata] = saved
            total.append(total[-1] + storage.nbytes())
        return saved

    def begin(*_: Any) -> None:
        begun.append(total[-1])

    def end(*_: Any) -> None:
        of_blocks.append(total[-1] - begun[-1])

    hooks = []
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D | BasicTransformerBlock):
            hooks.append(block.register_forward_pre_hook(begin))
            hooks.append(block.register_forward_hook(end))
    with _FusedAttention(), saved_tensors_hooks(pack, lambda x: x):
        _forward(unet.train(), num_views)
    for hook in hooks:
        hook.remove()
    return total[-1], max(of_blocks)


def _forward(unet: MultiViewUNet, num_views: int) -> None:
    """A forward pass of one object on the meta device."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    config, side = unet.config, unet.config["sample_size"]
    pooled = plucker = None
    if config["addition_embed_type"] == "text_time":
        sizes = 6 * config["addition_time_embed_dim"]
        pooled = empty(1, config["projection_class_embeddings_input_dim"] - sizes)
    text = TextEmbeddings(empty(1, 77, config["cross_attention_dim"]), pooled)
    camera = empty(1, num_views, 8 if config["camera_intrinsics"] else 4)
    if config["rays"] in ("map", "both"):
        plucker = empty(1, num_views, 6, side, side)
    views = unet.prepare_views(num_views, camera, plucker, text=text, image_size=(side, side))
    unet(empty(1, num_views, config["in_channels"], side, side), 1, text, views)


class _FusedAttention(TorchFunctionMode):
    """Mode in which attention saves what fused kernels save: no weights of pairs of tokens."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output
