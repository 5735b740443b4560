"""A small image autoencoder for latent diffusion, fast enough to train on a CPU."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import (
    Decoder,
    DecoderOutput,
    DiagonalGaussianDistribution,
    Encoder,
)
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional as F


class PatchAutoencoderKL(ModelMixin, ConfigMixin):
    """KL autoencoder whose first and last layers see square patches instead of pixels.

    Same interface as diffusers' `AutoencoderKL`: `encode(x).latent_dist`, `decode(z).sample`,
    `config.scaling_factor`. Images are (b, 3, h, w) in [-1, 1] with h and w divisible by
    `downscale`; latents are (b, latent_channels, h / downscale, w / downscale).

    Folding `patch_size`² pixels into channels before the first convolution moves all the work
    to low resolutions, where a CPU is fast. There is no attention, so the network is
    translation-equivariant and can be trained on crops.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 4,
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (48, 96, 192),
        layers_per_block: int = 1,
        norm_num_groups: int = 16,
        scaling_factor: float = 1.0,
        sample_size: int = 128,
    ):
        super().__init__()
        channels = 3 * patch_size**2
        num_blocks = len(block_out_channels)
        shared = dict(
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            mid_block_add_attention=False,
        )
        self.encoder = Encoder(
            in_channels=channels,
            out_channels=latent_channels,
            down_block_types=("DownEncoderBlock2D",) * num_blocks,
            double_z=True,
            **shared,
        )
        self.decoder = Decoder(
            in_channels=latent_channels,
            out_channels=channels,
            up_block_types=("UpDecoderBlock2D",) * num_blocks,
            **shared,
        )
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    @property
    def downscale(self) -> int:
        """Pixels along one side of a latent."""
        return self.config.patch_size * 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, images: torch.Tensor) -> AutoencoderKLOutput:
        """(b, 3, h, w) in [-1, 1] -> distribution over (b, c, h / downscale, w / downscale)."""
        patches = F.pixel_unshuffle(images, self.config.patch_size)
        moments = self.quant_conv(self.encoder(patches))
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, latents: torch.Tensor) -> DecoderOutput:
        """(b, c, h, w) -> images (b, 3, h * downscale, w * downscale), nominally in [-1, 1]."""
        patches = self.decoder(self.post_quant_conv(latents))
        return DecoderOutput(sample=F.pixel_shuffle(patches, self.config.patch_size))
