"""SPADPipeline: a prompt and cameras in, one consistent picture per camera out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import (
    DiffusionPipeline,
)
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from spad.cameras import Cameras
from spad.images.pixels import picture_tensor
from spad.model import current_class
from spad.model.conditioning import condition_on_cameras
from spad.model.deep_cache import DeepFeatureCache
from spad.model.schedulers import SCHEDULERS
from spad.model.unet import MultiViewUNet
from spad.model.word_tokenizer import tokenize


@dataclass
class SPADOutput(BaseOutput):
    """`images[i][j]` shows prompt i from camera j; `latents` is (b, v, c, h, w), scaled."""

    images: list[list[Image.Image]]
    latents: Tensor


def gaussian_blob(height: int, width: int, sigma: float) -> Tensor:
    """A dark Gaussian blob on white, (3, height, width) in [-1, 1]; the corners are white.

    Sampling starts from it, noised, which keeps backgrounds white. `sigma` is in units of half
    the picture. Source: the release's `blob_sigma`; the paper does not mention it.
    """
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    density = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    density = density / density.max()
    return (1 - 2 * (density - density.min())).expand(3, height, width)


class SPADPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Multi-view text-to-image diffusion; every view is denoised together with all others.

    Components are those of a Stable Diffusion pipeline, with a `MultiViewUNet` as `unet`. Any
    diffusers scheduler for ε- or v-prediction fits; see `use_scheduler`. `prompt_prefix` stands
    before every prompt, as it did in training, but not before negative ones.

    Source: SPAD (Kant et al., CVPR 2024).
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self, vae, text_encoder, tokenizer, unet: MultiViewUNet, scheduler, prompt_prefix: str = ""
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
        )
        self.register_to_config(prompt_prefix=prompt_prefix)

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As diffusers has it. Older folders name modules that are part of `spad.model` now."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, value in config.items():
            if isinstance(value, list) and len(value) == 2:
                config[name] = list(current_class(*value))
        return loaded

    @property
    def vae_downscale(self) -> int:
        """Pixels along one side of a latent."""
        return getattr(self.vae, "downscale", 2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures the model was trained on."""
        return self.unet.config.sample_size * self.vae_downscale

    def use_scheduler(self, name: str) -> None:
        """Sample with one of `SCHEDULERS` on the model's own noise schedule.

        `original` is DDIM at the timesteps of SPAD's release.
        """
        if name not in SCHEDULERS:
            raise ValueError(f"expected a scheduler among {', '.join(SCHEDULERS)}, got {name!r}")
        self.scheduler = SCHEDULERS[name].from_config(self.scheduler.config)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        cameras: Cameras,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        blob_sigma: float = 0.5,
        seed: int = 0,
        image: Image.Image | None = None,
        deep_cache_interval: int = 1,
        callback_on_step_end: Callable[["SPADPipeline", int, Tensor, dict], dict] | None = None,
        cfg_scale: float | None = None,
    ) -> SPADOutput:
        """Draw every prompt from all cameras.

        Args:
            cameras: their picture size is that of the result, and must suit the autoencoder.
            negative_prompt: what guidance leads away from.
            num_inference_steps: 1 to the number of training steps.
            guidance_scale: strength of text guidance; 1 turns it off. Cameras are never dropped.
            guidance_rescale: 0 to 1, how far guidance may not raise contrast; see `guide`.
            blob_sigma: size of the blob that sampling starts from, see `gaussian_blob`.
            seed: of the starting noise, the same for every prompt, so that a prompt's pictures
                do not depend on its place in the list.
            image: picture that the first camera sees; the other views are drawn to fit it. It is
                held clean at timestep 0 and returned as the autoencoder renders it.
            deep_cache_interval: the deep blocks run on every so many steps alone; see
                `spad.model.deep_cache`.
            callback_on_step_end: called as `(pipeline, step, timestep, {"latents": ...})`; it may
                return a dictionary with other latents.
            cfg_scale: another name of `guidance_scale`, the release's.

        Raises: ValueError: an argument is out of range; the message says which and what to try.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        guidance_scale = guidance_scale if cfg_scale is None else cfg_scale
        self._check(prompts, cameras, num_inference_steps, guidance_scale, blob_sigma)
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(f"expected a guidance_rescale of 0 to 1, got {guidance_rescale}")
        device, dtype = self._execution_device, self.unet.dtype
        cameras = cameras.to(device)
        height, width = (s // self.vae_downscale for s in (cameras.height, cameras.width))
        guided = guidance_scale != 1
        asked = [self.config.prompt_prefix + prompt for prompt in prompts]
        text = self.encode_text([negative_prompt] * len(prompts) * guided + asked)
        views = condition_on_cameras(self.unet, cameras, height, width, text=text)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = self._start(cameras, blob_sigma, seed).expand(len(prompts), -1, -1, -1, -1)
        given = None
        if image is not None:
            pixels = picture_tensor(image, cameras.height, cameras.width)
            given = self._encode_picture(pixels)
        cache = DeepFeatureCache(self.unet, deep_cache_interval)
        with cache, self.progress_bar(total=num_inference_steps) as progress:
            for step, timestep in enumerate(self.scheduler.timesteps):
                cache.begin(step)
                scaled = self.scheduler.scale_model_input(latents, timestep)
                timesteps = timestep.expand(latents.shape[:2])
                if given is not None:
                    scaled = torch.cat([given.expand_as(scaled[:, :1]), scaled[:, 1:]], dim=1)
                    timesteps = torch.cat([torch.zeros_like(timesteps[:, :1]), timesteps[:, 1:]], 1)
                copies = 2 if guided else 1
                predicted = self.unet(
                    scaled.to(dtype).repeat(copies, 1, 1, 1, 1),
                    timesteps.repeat(copies, 1),
                    text,
                    views,
                ).sample.float()
                if guided:
                    predicted = self.guide(predicted, guidance_scale, guidance_rescale)
                # In float32 whatever the model's type: small steps add up.
                latents = self.scheduler.step(predicted, timestep, latents).prev_sample.float()
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, step, timestep, {"latents": latents})
                    latents = (changed or {}).get("latents", latents)
                progress.update()
        if given is not None:
            latents = torch.cat([given.expand_as(latents[:, :1]), latents[:, 1:]], dim=1)
        return SPADOutput(images=[self.decode(one) for one in latents], latents=latents)

    @staticmethod
    def guide(predicted: Tensor, guidance_scale: float, rescale: float = 0.0) -> Tensor:
        """Classifier-free guidance; the first half of the batch (2 b, v, c, h, w) is without text.

        With `rescale` the result's deviation over an object moves that share of the way back to
        that of the prediction with text (Lin et al. 2024, section 3.4), so that strong guidance
        does not oversaturate models whose schedule ends in noise.
        """
        without_text, with_text = predicted.chunk(2)
        guided = without_text + guidance_scale * (with_text - without_text)
        if rescale == 0:
            return guided
        over = tuple(range(1, guided.ndim))
        ratio = with_text.std(over, keepdim=True) / guided.std(over, keepdim=True)
        return guided * (1 + rescale * (ratio - 1))

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings (b, length, d)."""
        ids = tokenize(self.tokenizer, prompts).to(self._execution_device)
        return self.text_encoder(ids).last_hidden_state.to(self.unet.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor, views_at_once: int = 8) -> list[Image.Image]:
        """Scaled latents (v, c, h, w) -> pictures."""
        pixels = torch.cat(
            [
                self.vae.decode((part / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
                for part in latents.split(views_at_once)
            ]
        )
        levels = pixels.float().add(1).mul(127.5).round().clamp(0, 255).byte()
        return [Image.fromarray(view) for view in levels.movedim(1, -1).cpu().numpy()]

    def _encode_picture(self, pixels: Tensor) -> Tensor:
        """Picture (3, h, w) in [-1, 1] -> scaled latents (1, 1, c, h, w), without sampling."""
        moved = pixels[None].to(self._execution_device, self.vae.dtype)
        mode = self.vae.encode(moved).latent_dist.mode() * self.vae.config.scaling_factor
        return mode[None].float()

    def _start(self, cameras: Cameras, blob_sigma: float, seed: int) -> Tensor:
        """The blob's latents at the noise level of the first step, (1, v, c, h, w)."""
        blob = self._encode_picture(gaussian_blob(cameras.height, cameras.width, blob_sigma))
        blob = blob.expand(-1, len(cameras), -1, -1, -1)
        # Drawn on the CPU, so that a seed means the same on every device.
        noise = torch.randn(blob.shape, generator=torch.Generator().manual_seed(seed)).to(blob)
        first = self.scheduler.timesteps[:1]
        return self.scheduler.add_noise(blob, noise, first).float()

    def _check(self, prompts, cameras, num_inference_steps, guidance_scale, blob_sigma) -> None:
        if not prompts or not all(p.strip() for p in prompts):
            raise ValueError("expected a prompt, got an empty one; describe one object")
        for name, size in (("height", cameras.height), ("width", cameras.width)):
            if size % self.vae_downscale:
                raise ValueError(
                    f"expected a picture {name} divisible by {self.vae_downscale}, got {size}; "
                    f"try {max(1, round(size / self.vae_downscale)) * self.vae_downscale}"
                )
        config = self.scheduler.config
        # Steps start at the offset, so the last of them would fall off the schedule's end.
        most = config.num_train_timesteps - config.get("steps_offset", 0)
        if not 1 <= num_inference_steps <= most:
            raise ValueError(f"expected 1 to {most} steps, got {num_inference_steps}")
        if not 0 <= guidance_scale <= 100:
            raise ValueError(f"expected a guidance scale of 0 to 100, got {guidance_scale}; try 5")
        if not blob_sigma > 0:
            raise ValueError(f"expected a positive blob_sigma, got {blob_sigma}; try 0.2 to 0.7")
