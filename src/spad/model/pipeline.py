"""SPADPipeline: a prompt and cameras in, one consistent image per camera out."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spad.cameras import Cameras
from spad.images.pixels import fitted_image_tensor
from spad.model import current_class
from spad.model.conditioning import condition_on_cameras
from spad.model.deep_cache import DeepFeatureCache
from spad.model.schedulers import SCHEDULERS
from spad.model.unet import MultiViewUNet
from spad.model.word_tokenizer import tokenize


@dataclass
class SPADOutput(BaseOutput):
    """Images of every prompt from every camera.

    Attributes:
        images: `images[i][j]` shows prompt i from camera j.
        latents: scaled latents (b, v, c, h, w).
    """

    images: list[list[Image.Image]]
    latents: Tensor


def gaussian_blob(height: int, width: int, sigma: float) -> Tensor:
    """Dark Gaussian blob with white corners, (3, height, width) in [-1, 1].

    Sampling starts from it with noise added, which keeps backgrounds white. `sigma` is in units of
    half the image.

    Source: the release's `blob_sigma`; the paper does not mention it.
    """
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    density = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    density = density / density.max()
    return (1 - 2 * (density - density.min())).expand(3, height, width)


class SPADPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Multi-view text-to-image diffusion; all views of an object are denoised together.

    Components are those of a Stable Diffusion pipeline, with a `MultiViewUNet` as `unet`. Any
    diffusers scheduler for ε-, v- or x0-prediction fits; see `use_scheduler`. `prompt_prefix` is
    put before every prompt, as in training, but not before negative ones. Threads may share a
    pipeline.

    Source: SPAD (Kant et al., CVPR 2024).
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        vae: ModelMixin,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: MultiViewUNet,
        scheduler: SchedulerMixin,
        prompt_prefix: str = "",
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
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Configuration of a folder as diffusers loads it, with present names of former classes."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, value in config.items():
            if isinstance(value, list) and len(value) == 2:
                config[name] = list(current_class(*value))
        return loaded

    @property
    def vae_downscale(self) -> int:
        """Side of the image area behind one latent, in pixels."""
        return getattr(self.vae, "downscale", 2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def image_size(self) -> int:
        """Side of the training images in pixels."""
        return self.unet.config.sample_size * self.vae_downscale

    def use_scheduler(self, name: str) -> None:
        """Choose one of `SCHEDULERS`, with the noise schedule that the model was trained on.

        `original` is DDIM at the timesteps of SPAD's release.

        Raises: ValueError: there is no such scheduler.
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
        """Sample images of every prompt from all cameras.

        Args:
            cameras: cameras of one object. Their image size is that of the result; it must be
                divisible by `vae_downscale`.
            negative_prompt: text that guidance pushes the result away from.
            num_inference_steps: denoising steps, from 1 to the length of the noise schedule.
            guidance_scale: strength of text guidance; 1 turns it off. Guidance is by text only,
                both of its branches see the cameras.
            guidance_rescale: 0 to 1, how much of the contrast added by guidance is removed; see
                `guide`.
            blob_sigma: size of the blob that sampling starts from; see `gaussian_blob`.
            seed: seed of the starting noise, which is the same for every prompt, so that the
                images of a prompt do not depend on its place in the list.
            image: image of the object from the first camera; the other views are sampled to fit.
                It is held clean at timestep 0 and returned as the autoencoder reconstructs it.
            deep_cache_interval: number of steps for which deep features are used; see
                `spad.model.deep_cache`.
            callback_on_step_end: called as `(pipeline, step, timestep, {"latents": ...})`; it may
                return a dictionary with other latents.
            cfg_scale: alias of `guidance_scale`, the release's name.

        Raises: ValueError: an argument is out of range; the message says which and what to try.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        guidance_scale = guidance_scale if cfg_scale is None else cfg_scale
        self._check(prompts, cameras, num_inference_steps)
        if not 0 <= guidance_scale <= 100:
            raise ValueError(f"expected a guidance_scale of 0 to 100, got {guidance_scale}; try 5")
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(f"expected a guidance_rescale of 0 to 1, got {guidance_rescale}")
        if not blob_sigma > 0:
            raise ValueError(f"expected a positive blob_sigma, got {blob_sigma}; try 0.2 to 0.7")
        device, dtype = self._execution_device, self.unet.dtype
        cameras = cameras.to(device)
        height, width = (s // self.vae_downscale for s in (cameras.height, cameras.width))
        guided = guidance_scale != 1
        prefixed = [self.config["prompt_prefix"] + prompt for prompt in prompts]
        text = self.encode_text([negative_prompt] * len(prompts) * guided + prefixed)
        views = condition_on_cameras(self.unet, cameras, height, width, text=text)

        # A scheduler keeps the state of one run; another thread has its own.
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps, device=device)
        blob = self._encode_image(gaussian_blob(cameras.height, cameras.width, blob_sigma))
        blob = blob.expand(-1, len(cameras), -1, -1, -1)
        # Drawn on the CPU, so that a seed means the same on every device.
        noise = torch.randn(blob.shape, generator=torch.Generator().manual_seed(seed)).to(blob)
        latents = scheduler.add_noise(blob, noise, scheduler.timesteps[:1]).float()
        latents = latents.expand(len(prompts), -1, -1, -1, -1)
        given = None
        if image is not None:
            given = self._encode_image(fitted_image_tensor(image, cameras.height, cameras.width))
        cache = DeepFeatureCache(self.unet, deep_cache_interval)
        # torch's decorator hides the method's signature.
        bar = self.progress_bar(total=num_inference_steps)  # pyright: ignore[reportCallIssue]
        with cache, bar as progress:
            for step, timestep in enumerate(scheduler.timesteps):
                cache.begin(step)
                scaled = scheduler.scale_model_input(latents, timestep)
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
                # In float32 whatever the model's type, as small steps add up.
                latents = scheduler.step(predicted, timestep, latents).prev_sample.float()
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, step, timestep, {"latents": latents})
                    latents = (changed or {}).get("latents", latents)
                progress.update()
        if given is not None:
            latents = torch.cat([given.expand_as(latents[:, :1]), latents[:, 1:]], dim=1)
        return SPADOutput(images=[self.decode(one) for one in latents], latents=latents)

    @staticmethod
    def guide(predicted: Tensor, guidance_scale: float, rescale: float = 0.0) -> Tensor:
        """Classifier-free guidance of a batch (2 b, v, c, h, w), whose first half is without text.

        `rescale` moves the result's standard deviation over an object from that of plain guidance
        (0) to that of the prediction with text (1), so that strong guidance does not oversaturate
        models whose schedule ends in pure noise.

        Source: Lin et al. 2024, section 3.4.
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
        """Scaled latents (v, c, h, w) -> images."""
        pixels = torch.cat(
            [
                self.vae.decode((part / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
                for part in latents.split(views_at_once)
            ]
        )
        levels = pixels.float().add(1).mul(127.5).round().clamp(0, 255).byte()
        return [Image.fromarray(view) for view in levels.movedim(1, -1).cpu().numpy()]

    def _encode_image(self, pixels: Tensor) -> Tensor:
        """Image (3, h, w) in [-1, 1] -> scaled latents (1, 1, c, h, w), without noise."""
        moved = pixels[None].to(self._execution_device, self.vae.dtype)
        mode = self.vae.encode(moved).latent_dist.mode() * self.vae.config.scaling_factor
        return mode[None].float()

    def _check(self, prompts: list[str], cameras: Cameras, num_inference_steps: int) -> None:
        if not prompts or not all(p.strip() for p in prompts):
            raise ValueError("expected a prompt, got an empty one; describe one object")
        for name, size in (("height", cameras.height), ("width", cameras.width)):
            if size % self.vae_downscale:
                raise ValueError(
                    f"expected an image {name} divisible by {self.vae_downscale}, got {size}; "
                    f"try {max(1, round(size / self.vae_downscale)) * self.vae_downscale}"
                )
        config = self.scheduler.config
        # Timesteps are shifted by the offset, so the last ones would leave the schedule.
        most = config.num_train_timesteps - config.get("steps_offset", 0)
        if not 1 <= num_inference_steps <= most:
            raise ValueError(f"expected 1 to {most} steps, got {num_inference_steps}")
