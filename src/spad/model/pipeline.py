"""SPADPipeline: a prompt and cameras in, one consistent image per camera out."""

import copy
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import (
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import get_device
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spad.cameras import Cameras
from spad.model import current_class
from spad.model.arguments import check_callback_tensors, check_sampling, one_of, sized
from spad.model.autoencoder import PatchAutoencoder
from spad.model.bases import TextReading, base_of
from spad.model.conditioning import condition_on_cameras
from spad.model.deep_cache import DeepFeatureCache
from spad.model.finite import cast
from spad.model.folders import (
    INDEX,
    GenerationDefaults,
    Vocabulary,
    find_folder,
    read_defaults,
    read_vocabulary,
)
from spad.model.held_views import held_views
from spad.model.hub_files import write_hub_files
from spad.model.output import SPADOutput, formatted, pil_images
from spad.model.precision import resolve_dtype
from spad.model.prompts import Prompts, check_length
from spad.model.schedulers import SCHEDULERS
from spad.model.start import gaussian_blob, starting_noise
from spad.model.text import TextEmbeddings, TokenIds, encode_tokens
from spad.model.unet import MultiViewUNet
from spad.model.vocabulary import describe_reading, read_prompt

logger = logging.getLogger(__name__)

# Number of views where neither cameras nor a number is given.
DEFAULT_VIEWS = 4
# Pixels of the views that are decoded at once: of eight of 256 x 256.
_DECODED_AREA = 8 * 256 * 256


class SPADPipeline(DiffusionPipeline, StableDiffusionXLLoraLoaderMixin):
    """Multi-view text-to-image diffusion; all views of an object are denoised together.

    Components are those of a Stable Diffusion pipeline, with a `MultiViewUNet` as `unet`; those of
    Stable Diffusion XL have a second text encoder and tokenizer. Any
    diffusers scheduler for ε-, v- or x0-prediction fits; see `use_scheduler`. `prompt_prefix` is
    put before every prompt, as in training, but not before negative ones. Threads may share a
    pipeline, and pipelines their components.

    `defaults` are the settings for generation that the model was made for, and `vocabulary` the
    words of a model that knows no others; prompts are read with its synonyms. `save_pretrained`
    writes both.

    Source: SPAD (Kant et al., CVPR 2024).
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["text_encoder_2", "tokenizer_2"]
    _callback_tensor_inputs = ["latents", "pred_original_sample"]
    _interrupt = False
    _guidance_scale: float | None = None
    # Whether the data type follows the device.
    has_auto_dtype = False

    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoder,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: MultiViewUNet,
        scheduler: SchedulerMixin,
        prompt_prefix: str = "",
        defaults: GenerationDefaults | dict | None = None,
        vocabulary: Vocabulary | dict | None = None,
        text_encoder_2: PreTrainedModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )
        if not isinstance(defaults, GenerationDefaults):
            defaults = GenerationDefaults(**(defaults or {}))
        if isinstance(vocabulary, Vocabulary):
            vocabulary = dataclasses.asdict(vocabulary)
        self.register_to_config(
            prompt_prefix=prompt_prefix,
            defaults=dataclasses.asdict(defaults),
            vocabulary=vocabulary,
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> "SPADPipeline":
        """Load a pipeline, on the CPU.

        Args:
            pretrained_model_name_or_path: name of an embedded or installed model (see
                `spad models`), a folder, or a repository on the Hugging Face hub.
            kwargs: as of diffusers, such as `revision` and `local_files_only`. `dtype` may be
                "auto", and is by default: bfloat16 on devices that are fast at it, wherever the
                pipeline is moved to, else float32.

        Raises: ValueError: a released model is not installed, or a setting in the folder is
            malformed. OSError: there is no such model, or it is not complete.
        """
        folder = find_folder(pretrained_model_name_or_path)
        given = kwargs.pop("torch_dtype", None)
        asked = kwargs.pop("dtype", None) or given or "auto"
        is_mapped = kwargs.get("device_map") is not None
        device = torch.device(get_device() if is_mapped else "cpu")
        kwargs["dtype"] = asked if isinstance(asked, dict) else resolve_dtype(asked, device)
        pipeline = super().from_pretrained(folder or pretrained_model_name_or_path, **kwargs)
        pipeline.register_to_config(_name_or_path=os.fspath(pretrained_model_name_or_path))
        pipeline.has_auto_dtype = asked == "auto" and not is_mapped
        if "scheduler" not in kwargs:
            pipeline.use_own_scheduler()
        # channels_last makes CPU inference about 14 % faster.
        pipeline.unet.to(memory_format=torch.channels_last)
        return pipeline

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Configuration of a folder as diffusers loads it, with what older folders have elsewhere.

        These are present names of former classes, default settings, and a vocabulary.
        """
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, value in config.items():
            if isinstance(value, list) and len(value) == 2:
                config[name] = list(current_class(*value))
        folder = Path(args[0]) if args else None
        if folder is not None and (folder / INDEX).is_file():
            config["defaults"] = dataclasses.asdict(read_defaults(folder))
            vocabulary = read_vocabulary(folder)
            config["vocabulary"] = vocabulary and dataclasses.asdict(vocabulary)
        return loaded

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """`model_index.json` without modules of the repository or of spad, for `download`.

        diffusers would run the former and look in the repository for the latter.
        """
        config = super()._dict_from_json_file(json_file, *args, **kwargs)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = cls.__name__
        for name, value in config.items():
            if isinstance(value, list) and len(value) == 2:
                module, class_name = current_class(*value)
                config[name] = ["diffusers" if module == "spad.model" else module, class_name]
        return config

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the pipeline with its default settings and its vocabulary, as diffusers does."""
        name = next((n for n, kind in SCHEDULERS.items() if type(self.scheduler) is kind), None)
        self.register_to_config(defaults={**self.config["defaults"], "scheduler": name})
        super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_folder(
        self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Upload a saved pipeline for `push_to_hub`, with what it needs on the hub."""
        write_hub_files(Path(working_dir), repo_id)
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> "SPADPipeline":
        """Move the pipeline, convert it, or both, as diffusers does.

        A data type that was chosen automatically follows the device.
        """
        super().to(*args, **kwargs)
        if kwargs.get("dtype") or any(isinstance(arg, torch.dtype) for arg in args):
            self.has_auto_dtype = False
        elif self.has_auto_dtype:
            self._convert(resolve_dtype("auto", self.device))
        return self

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Move one component at a time to the GPU, as diffusers does."""
        self._settle_dtype(device)
        super().enable_model_cpu_offload(gpu_id, device)  # pyright: ignore[reportArgumentType]

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Move one layer at a time to the GPU, as diffusers does."""
        self._settle_dtype(device)
        super().enable_sequential_cpu_offload(gpu_id, device)  # pyright: ignore[reportArgumentType]

    def enable_group_offload(self, onload_device: torch.device, *args: Any, **kwargs: Any) -> None:
        """Move a few layers at a time to the GPU, as diffusers does."""
        self._settle_dtype(onload_device)
        # diffusers writes weights to disk only if they are contiguous.
        self.unet.to(memory_format=torch.contiguous_format)
        super().enable_group_offload(onload_device, *args, **kwargs)

    def _settle_dtype(self, device: torch.device | str | None) -> None:
        """Choose the data type for a device that components will move to, where it is automatic."""
        if self.has_auto_dtype:
            self.has_auto_dtype = False
            self._convert(resolve_dtype("auto", torch.device(device or get_device())))

    def _convert(self, dtype: torch.dtype) -> None:
        for part in self.components.values():
            if isinstance(part, nn.Module):
                cast(part, dtype)

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """Load LoRA layers, of Stable Diffusion 1.5 or XL as the model is, as diffusers does."""
        if self.text_encoder_2 is not None:
            super().load_lora_weights(*args, **kwargs)
        else:
            # Its methods are those of XL, but for this one.
            StableDiffusionLoraLoaderMixin.load_lora_weights(
                self,  # pyright: ignore[reportArgumentType]
                *args,
                **kwargs,
            )

    @property
    def tokenizers(self) -> list[PreTrainedTokenizerBase]:
        """The tokenizer of each text encoder."""
        return [one for one in (self.tokenizer, self.tokenizer_2) if one is not None]

    @property
    def text_encoders(self) -> list[PreTrainedModel]:
        """One text encoder, or two."""
        return [one for one in (self.text_encoder, self.text_encoder_2) if one is not None]

    @property
    def text_reading(self) -> TextReading:
        """How the UNet reads texts."""
        return base_of(self.unet.config).reading

    @property
    def defaults(self) -> GenerationDefaults:
        """The model's own settings for generation."""
        return GenerationDefaults(**self.config["defaults"])

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Known words of a model whose tokens are whole words; None: it reads any word."""
        own = self.config["vocabulary"]
        if own is None:
            return None
        return Vocabulary(tuple(own["captions"]), tuple(map(tuple, own["synonyms"])))

    @property
    def name(self) -> str:
        """Name of the model, for messages."""
        return Path(self.config.get("_name_or_path") or "the model").name

    @property
    def interrupt(self) -> bool:
        """Whether sampling is to stop after this step; a callback sets `_interrupt`."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float | None:
        """Strength of text guidance in a callback; None elsewhere."""
        return self._guidance_scale

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

    def use_own_scheduler(self) -> None:
        """Choose the scheduler that the model was made for, if there is one."""
        name = self.defaults.scheduler
        if name is not None and type(self.scheduler) is not SCHEDULERS.get(name):
            self.use_scheduler(name)

    def own_cameras(self, num_views: int = DEFAULT_VIEWS) -> Cameras:
        """Cameras evenly round the object, as the model was made for, with its image size."""
        own = self.defaults
        return Cameras.ring(
            num_views,
            own.elevation_deg,
            own.start_azimuth_deg,
            own.radius,
            math.radians(own.fov_deg),
            self.image_size,
            self.image_size,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        cameras: Cameras | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        blob_sigma: float | None = None,
        seed: int | None = None,
        image: Image.Image | None = None,
        views: Mapping[int, Image.Image] | None = None,
        deep_cache_interval: int = 1,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | TextEmbeddings | None = None,
        negative_prompt_embeds: Tensor | TextEmbeddings | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cfg_scale: float | None = None,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> SPADOutput:
        """Sample images of every prompt from all cameras.

        An argument of None is the model's own; see `defaults`.

        Args:
            prompt: text that describes one object, or several. Words that the model does not know
                are replaced by known synonyms, or named in a warning.
            cameras: cameras of one object. Their image size is that of the result, and must be
                divisible by `vae_downscale`; cameras without a size get `image_size`.
            negative_prompt: text that guidance pushes the result away from, one or one per prompt.
            num_inference_steps: denoising steps, from 1 to the length of the noise schedule.
            guidance_scale: strength of text guidance; 1 turns it off. Guidance is by text only,
                both of its branches see the cameras.
            guidance_rescale: 0 to 1, how much of the contrast added by guidance is removed; see
                `guide`.
            blob_sigma: size of the blob that sampling starts from; see `gaussian_blob`.
            seed: seed of the starting noise, 0 by default. It is the same for every prompt, so
                that the images of a prompt do not depend on its place in the list; the k-th images
                of a prompt have the noise of `seed + k`.
            image: image of the object from the first camera, short for `views={0: image}`.
            views: images of the object by index of their camera; the other views are sampled to
                fit. They are held clean at timestep 0 and returned as the autoencoder reconstructs
                them.
            deep_cache_interval: number of steps for which deep features are used; see
                `spad.model.deep_cache`.
            num_images_per_prompt: image sets of every prompt.
            generator: source of the starting noise instead of `seed`: one for all, or one per
                image set.
            latents: starting noise itself, of a standard normal distribution, (b, v, c, h, w) or
                (1, v, c, h, w).
            prompt_embeds: text embeddings (b, length, d) instead of prompts, or what `encode_text`
                gives.
            negative_prompt_embeds: the same instead of `negative_prompt`.
            output_type: format of `images`; see `SPADOutput`.
            return_dict: whether to return a `SPADOutput` rather than a tuple of its fields.
            callback_on_step_end: called as `(pipeline, step, timestep, tensors)`; it may return a
                dictionary with other latents. The pipeline has this run's scheduler; setting its
                `_interrupt` ends the run.
            callback_on_step_end_tensor_inputs: tensors for the callback: "latents" and
                "pred_original_sample", the current estimate of the final latents.
            cfg_scale: alias of `guidance_scale`, the release's name.
            prompt_2, negative_prompt_2: texts for the second text encoder, if there is one; those
                for the first by default.
            pooled_prompt_embeds, negative_pooled_prompt_embeds: pooled embeddings (b, d) beside
                embeddings that are tensors, for models that read them.
            depth: shape of the object, for a model that was trained with depth: (v, h, w) z-depth
                of every pixel in world units, 0 or infinity where nothing is visible.

        Raises: ValueError: an argument is out of range; the message says which and what to try.
        """
        own, device, dtype = self.defaults, self._execution_device, self.unet.dtype
        cameras = self.own_cameras() if cameras is None else cameras
        cameras = sized(cameras, self.image_size, self.vae_downscale, self.name).to(device)
        held = held_views(image, views, cameras, self._encode_image)
        steps = own.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = one_of("guidance_scale", guidance_scale, "cfg_scale", cfg_scale)
        scale = own.guidance(held is not None) if scale is None else scale
        rescale = own.guidance_rescale if guidance_rescale is None else guidance_rescale
        sigma = own.blob_sigma if blob_sigma is None else blob_sigma
        config = self.scheduler.config
        check_sampling(config, steps, scale, rescale, sigma, num_images_per_prompt, output_type)
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        check_callback_tensors(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        positive = Prompts.positive(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds)
        negative = Prompts.negative(
            *(negative_prompt, negative_prompt_2),
            *(negative_prompt_embeds, negative_pooled_prompt_embeds),
            count=len(positive),
        )
        texts = [one.repeated(num_images_per_prompt) for one in self._texts(negative, positive)]
        is_guided, count = scale != 1, len(texts[1])
        text = TextEmbeddings.cat(texts if is_guided else texts[1:])
        blob = self._encode_image(gaussian_blob(cameras.height, cameras.width, sigma))
        blob = blob.expand(count, len(cameras), -1, -1, -1)
        noise = starting_noise(blob, seed, generator, latents, num_images_per_prompt)
        height, width = blob.shape[-2:]
        conditioning = condition_on_cameras(
            self.unet, cameras, height, width, text=text, depth=depth
        )

        # A callback sees this run alone; another thread has its own.
        run = copy.copy(self)
        self._interrupt, run._guidance_scale = False, scale
        run.scheduler = scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps, device=device)
        current = scheduler.add_noise(blob, noise, scheduler.timesteps[:1]).float()
        cache = DeepFeatureCache(self.unet, deep_cache_interval)
        # torch's decorator hides the method's signature.
        bar = self.progress_bar(total=steps)  # pyright: ignore[reportCallIssue]
        with cache, bar as progress:
            for step, timestep in enumerate(scheduler.timesteps):
                cache.begin(step)
                scaled = scheduler.scale_model_input(current, timestep)
                timesteps = timestep.expand(current.shape[:2])
                if held is not None:
                    scaled = held.put_into(scaled)
                    timesteps = timesteps.masked_fill(held.is_held, 0)
                copies = 2 if is_guided else 1
                predicted = self.unet(
                    scaled.to(dtype).repeat(copies, 1, 1, 1, 1),
                    timesteps.repeat(copies, 1),
                    text,
                    conditioning,
                ).sample.float()
                if is_guided:
                    predicted = self.guide(predicted, run._guidance_scale, rescale)
                # In float32 whatever the model's type, as small steps add up.
                stepped = scheduler.step(predicted, timestep, current)
                current = stepped.prev_sample.float()
                if callback_on_step_end is not None:
                    tensors = {"latents": current}
                    if "pred_original_sample" in callback_on_step_end_tensor_inputs:
                        estimate = _estimate(scheduler, stepped)
                        tensors["pred_original_sample"] = (
                            estimate if held is None else held.put_into(estimate)
                        )
                    tensors = {k: tensors[k] for k in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(run, step, timestep, tensors)
                    current = (changed or {}).get("latents", current)
                progress.update()
                if run._interrupt or self._interrupt:
                    break
        if held is not None:
            current = held.put_into(current)
        output = SPADOutput(images=formatted(current, output_type, self._pixels), latents=current)
        self.maybe_free_model_hooks()
        # The type is that of the default.
        return output if return_dict else output.to_tuple()  # pyright: ignore[reportReturnType]

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

    def read_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Prompts in words that the model knows; replaced and unknown words are logged."""
        vocabulary = self.vocabulary
        if vocabulary is None:
            return list(prompts)
        readings = [read_prompt(p, vocabulary.captions, vocabulary.synonyms) for p in prompts]
        for reading in readings:
            for sentence in describe_reading(reading, vocabulary.captions, self.name):
                logger.warning(sentence)
        return [reading.prompt for reading in readings]

    @torch.no_grad()
    def encode_text(
        self, texts: Sequence[str], second: Sequence[str] | None = None
    ) -> TextEmbeddings:
        """Embeddings of texts as they are, without `prompt_prefix`; cut off where the text encoder
        ends.

        Args:
            second: texts for the second text encoder. Default: the same.
        """
        lists = [texts] if second is None else [texts, second]
        tokens = TokenIds.of(self.tokenizers, *lists).to(self._execution_device)
        return encode_tokens(self.text_encoders, tokens, self.text_reading).to(self.unet.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Scaled latents (v, c, h, w) -> images."""
        return pil_images(self._pixels(latents))

    def _pixels(self, latents: Tensor) -> Tensor:
        """Scaled latents (v, c, h, w) -> images (v, 3, h, w), float32, nominally in [-1, 1]."""
        dtype = self._vae_dtype()
        # As many at once as have the area of a few small ones.
        area = latents.shape[-2] * latents.shape[-1] * self.vae_downscale**2
        at_once = min(8, max(1, _DECODED_AREA // area))
        return torch.cat(
            [
                self.vae.decode((part / self.vae.config.scaling_factor).to(dtype)).sample
                for part in latents.split(at_once)
            ]
        ).float()

    def _encode_image(self, pixels: Tensor) -> Tensor:
        """Image (3, h, w) in [-1, 1] -> scaled latents (1, 1, c, h, w), without noise."""
        moved = pixels[None].to(self._execution_device, self._vae_dtype())
        mode = self.vae.encode(moved).latent_dist.mode() * self.vae.config.scaling_factor
        return mode[None].float()

    def _vae_dtype(self) -> torch.dtype:
        """Data type of the autoencoder, after it became float32 where float16 would overflow."""
        overflows = (
            self.vae.config.get("force_upcast", False) and base_of(self.unet.config).exceeds_float16
        )
        if overflows and self.vae.dtype == torch.float16:
            logger.info("the autoencoder of %s overflows in float16; it is float32", self.name)
            cast(self.vae, torch.float32)
        return self.vae.dtype

    def _texts(self, negative: Prompts, positive: Prompts) -> list[TextEmbeddings]:
        """Embeddings of negative prompts and of prompts, as many of each."""
        prefix, texts, seconds = self.config["prompt_prefix"], [], []
        for given, before in ((negative, ""), (positive, prefix)):
            read = self.read_prompts(given.texts)
            texts += [before + one for one in read]
            others = read if given.second is None else self.read_prompts(given.second)
            seconds += [before + one for one in others]
        is_split = seconds != texts
        if is_split and len(self.tokenizers) == 1:
            raise ValueError(f"expected no prompt_2 for {self.name}, which has one text encoder")
        check_length(self.tokenizer, texts)
        if is_split:
            check_length(self.tokenizers[1], seconds)
        encoded = None
        if texts:
            encoded = self.encode_text(texts, seconds if is_split else None)
        place, embeds = 0, []
        for given in (negative, positive):
            one = given.embeds
            if one is None:
                assert encoded is not None
                one = encoded[place : place + len(given.texts)]
                place += len(given.texts)
            if (one.pooled is not None) != self.text_reading.is_pooled:
                wanted = "with" if self.text_reading.is_pooled else "without"
                raise ValueError(
                    f"expected prompt_embeds {wanted} pooled_prompt_embeds for {self.name}"
                )
            embeds.append(one.to(self._execution_device, self.unet.dtype))
        if len(embeds[0]) == 1 and negative.embeds is None:
            embeds[0] = embeds[0].repeated(len(positive))
        if embeds[0].shapes() != embeds[1].shapes():
            raise ValueError(
                "expected embeddings of prompts and negative prompts of one shape, got "
                f"{embeds[1].shapes()} and {embeds[0].shapes()}"
            )
        return embeds


def _estimate(scheduler: Any, stepped: Any) -> Tensor:
    """Estimate of the final latents that a scheduler's step was based on."""
    estimate = getattr(stepped, "pred_original_sample", None)
    if estimate is None and getattr(scheduler, "model_outputs", None):
        # Multistep solvers keep it for the steps that follow.
        estimate = scheduler.model_outputs[-1]
    if estimate is None:
        raise ValueError(
            f"expected a scheduler that gives pred_original_sample, got {type(scheduler).__name__}"
        )
    return estimate.float()
