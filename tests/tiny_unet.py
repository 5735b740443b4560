"""A small real multi-view UNet."""

import torch

from spad.model import MultiViewUNet
from spad.model.ray_encoding import RayEncoding
from spad.model.unet import PluckerProjection

UNET = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=4,
    norm_num_groups=8,
)


def awake(unet: MultiViewUNet) -> MultiViewUNet:
    """Give the layers that start at zero weights that matter."""
    generator = torch.Generator().manual_seed(7)
    for module in unet.modules():
        if isinstance(module, PluckerProjection):
            module.linear.weight.data.normal_(0, 0.3, generator=generator)
        elif isinstance(module, RayEncoding):
            for gains in module.parameters():
                gains.data.normal_(0, 1, generator=generator)
    if unet.camera_embedding is not None:
        unet.camera_embedding.linear_2.weight.data.normal_(0, 0.3, generator=generator)
    return unet
