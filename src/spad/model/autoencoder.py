"""A small image autoencoder for latent diffusion that trains in minutes on a CPU."""

import hashlib

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import (
    AutoencoderMixin,
    Decoder,
    DecoderOutput,
    DiagonalGaussianDistribution,
)
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

# Log variance of an encoding without noise.
CERTAIN = -30.0


class PatchAutoencoder(ModelMixin, AutoencoderMixin, ConfigMixin):
    """Principal components of square patches as latents, and a decoder that sharpens them.

    Same interface as diffusers' `AutoencoderKL`: `encode(x).latent_dist`, `decode(z).sample`,
    `config.scaling_factor`. Images are (b, 3, h, w) in [-1, 1] with h and w divisible by
    `downscale`; latents are (b, latent_channels, h / downscale, w / downscale). White patches
    have latents of zero.

    The encoder is linear: it projects every patch, minus white, on the principal components of
    the training images. The decoder is its inverse plus the output of a small convolutional
    network, which sees neighboring patches and has no attention, so that it can be trained on
    crops. The encoder needs no training, so the denoiser can be trained before the decoder.

    `enable_slicing` decodes one image at a time, `enable_tiling` images larger than `sample_size`
    in tiles of that size, which differ slightly from the whole.

    Raises: ValueError: `patch_size` does not suit the number of blocks.
    """

    # The module that saved folders name.
    __module__ = "spad.model"
    # What diffusers moves to the GPU in groups, since `forward` is never called.
    _group_offload_block_modules = ["encoder", "decoder", "refiner"]

    @register_to_config
    def __init__(
        self,
        patch_size: int = 16,
        latent_channels: int = 32,
        block_out_channels: tuple[int, ...] = (48, 96, 160),
        norm_num_groups: int = 16,
        scaling_factor: float = 1.0,
        sample_size: int = 128,
    ):
        super().__init__()
        self.use_slicing = self.use_tiling = False
        num_ups = len(block_out_channels) - 1
        self.pixels_per_cell = patch_size // 2**num_ups
        if self.pixels_per_cell * 2**num_ups != patch_size:
            raise ValueError(
                f"expected a patch size divisible by {2**num_ups} for "
                f"{len(block_out_channels)} blocks, got {patch_size}"
            )
        patch_channels = 3 * patch_size**2
        self.encoder = nn.Conv2d(patch_channels, latent_channels, 1, bias=False)
        self.decoder = nn.Conv2d(latent_channels, patch_channels, 1, bias=False)
        self.refiner = Decoder(
            in_channels=latent_channels,
            out_channels=3 * self.pixels_per_cell**2,
            up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=1,
            norm_num_groups=norm_num_groups,
            mid_block_add_attention=False,
        )
        nn.init.zeros_(self.refiner.conv_out.weight)
        assert self.refiner.conv_out.bias is not None
        nn.init.zeros_(self.refiner.conv_out.bias)

    @property
    def downscale(self) -> int:
        """Side of the patch behind one latent, in pixels."""
        return self.config["patch_size"]

    @apply_forward_hook
    def encode(self, images: Tensor) -> AutoencoderKLOutput:
        """(b, 3, h, w) in [-1, 1] -> a distribution without noise, (b, c, h / 16, w / 16)."""
        mean = self.encoder(self._patches(images))
        moments = torch.cat([mean, torch.full_like(mean, CERTAIN)], dim=1)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    @apply_forward_hook
    def decode(self, latents: Tensor) -> DecoderOutput:
        """(b, c, h, w) -> images (b, 3, 16 h, 16 w), nominally in [-1, 1]."""
        parts = latents.split(1) if self.use_slicing else [latents]
        decode = self._decode_tiles if self.use_tiling else self._decode
        return DecoderOutput(sample=torch.cat([decode(part) for part in parts]))

    def _decode(self, latents: Tensor) -> Tensor:
        linear = F.pixel_shuffle(self.decoder(latents), self.config["patch_size"])
        refined = F.pixel_shuffle(self.refiner(latents), self.pixels_per_cell)
        return 1 + linear + refined

    def _decode_tiles(self, latents: Tensor) -> Tensor:
        """Decode overlapping tiles, and keep the middle of each."""
        height, width = latents.shape[-2:]
        patch = self.config["patch_size"]
        side = self.config["sample_size"] // patch
        margin = side // 4
        step = max(1, side - 2 * margin)
        rows = []
        for top in range(0, height, step):
            first_row = max(0, top - margin)
            row = []
            for left in range(0, width, step):
                first = max(0, left - margin)
                tile = latents[..., first_row : top + step + margin, first : left + step + margin]
                y, x = ((top - first_row) * patch, (left - first) * patch)
                row.append(self._decode(tile)[..., y : y + step * patch, x : x + step * patch])
            rows.append(torch.cat(row, dim=-1))
        return torch.cat(rows, dim=-2)

    @torch.no_grad()
    def fit_components(self, images: Tensor) -> None:
        """Set the linear parts and `scaling_factor` from training images (b, 3, h, w) in [-1, 1].

        A component of standard deviation s is divided by sqrt(s): the first ones, which carry
        shape and color, stay the largest, but the last ones are not lost in the first noise.
        """
        patches = self._patches(images).movedim(1, -1).flatten(0, -2).double()
        variances, basis = torch.linalg.eigh(patches.T @ patches / len(patches))
        kept = self.config["latent_channels"]
        basis, deviations = basis.flip(1)[:, :kept].T, variances.flip(0)[:kept].sqrt()
        scales = deviations.rsqrt()[:, None]
        self.encoder.weight.copy_((basis * scales)[..., None, None])
        self.decoder.weight.copy_((basis / scales).T[..., None, None])
        self.register_to_config(scaling_factor=deviations.mean().rsqrt().item())

    def _patches(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images - 1, self.config["patch_size"])


def encoder_hash(vae: ModelMixin) -> str:
    """Hash of an encoder, which identifies its latents; the decoder does not count."""
    digest = hashlib.sha256()
    for part in (vae.encoder, getattr(vae, "quant_conv", None)):
        for weight in part.state_dict().values() if part is not None else ():
            digest.update(weight.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.inference_mode()
def encode_scaled(vae: ModelMixin, images: Tensor) -> Tensor:
    """Images (b, 3, h, w) in [-1, 1] -> latents (b, c, h', w') of about unit variance, float16."""
    posterior = vae.encode(images.to(vae.dtype)).latent_dist
    return (posterior.mode() * vae.config.scaling_factor).half()
