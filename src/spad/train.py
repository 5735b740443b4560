"""Train a MultiViewUNet on renders: captions and cameras in, views out."""

import copy
import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel, compute_snr
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from spad.autoencoder import PatchAutoencoder, encode_scaled, encoder_hash
from spad.cameras import Cameras
from spad.conditioning import condition_on_cameras
from spad.config import DenoiserTraining
from spad.data.viewpoints import quarter_turns
from spad.data.views import (
    ObjectViews,
    data_hash,
    image_tensor,
    is_held_out,
    listing_path,
    load_all_images,
    read_renders,
)
from spad.model import MultiViewUNet
from spad.models import SHARD_SIZE, load_model, save_model_manifest
from spad.pipeline import SPADPipeline
from spad.text import build_text_encoder, build_tokenizer, tokenize
from spad.training_run import TrainingRun, step_generator, warmup_cosine, write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentViews:
    """All training views of all objects, encoded, in memory.

    `latents` is (n, v, c, h, w), scaled to unit variance; `cameras` holds n * v views in the same
    order; `token_ids[i]` is (captions, length). `right_angles` lists, per object, groups of four
    views a quarter turn apart.
    """

    latents: Tensor
    cameras: Cameras
    token_ids: list[Tensor]
    right_angles: list[list[list[int]]]


def encode_views(objects: list[ObjectViews], vae: PatchAutoencoder, folder: Path) -> Tensor:
    """Scaled latents (n, v, c, h, w) of all views, float16, read from a cache in `folder`.

    The cache is named by the encoder, by the list of the folder's objects, which holds the hashes
    of their pictures, and by the ids that are encoded.
    """
    encoder = encoder_hash(vae)
    names = "\n".join([data_hash(folder), *(o.uid for o in objects)])
    key = hashlib.sha256(names.encode()).hexdigest()[:12]
    cache = folder / f"latents-{encoder}-{key}.safetensors"
    for path in (cache, _unnamed_cache(folder / f"latents-{encoder}.safetensors", folder, objects)):
        if path is not None and path.is_file():
            return load_file(path)["latents"]
    rows = []
    with torch.inference_mode():
        for views in tqdm(load_all_images(objects), desc="encoding", unit="object"):
            rows.append(encode_scaled(vae, image_tensor(views)))
    latents = torch.stack(rows).contiguous()
    write_atomically(cache, lambda path: save_file({"latents": latents}, path))
    return latents


def _unnamed_cache(path: Path, folder: Path, objects: list[ObjectViews]) -> Path | None:
    """A cache of earlier versions, which did not name its objects: if as many, and no older."""
    if not path.is_file() or path.stat().st_mtime < listing_path(folder).stat().st_mtime:
        return None
    with safe_open(path, "pt") as file:
        return path if file.get_slice("latents").get_shape()[0] == len(objects) else None


def _schedule_end(zero_terminal_snr: bool) -> dict:
    """Where the noise schedule ends, and which of its timesteps sampling takes."""
    if not zero_terminal_snr:
        return {"steps_offset": 1, "set_alpha_to_one": False}
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


class DenoiserTrainer:
    """A UNet, its text encoder, and one step of their training."""

    def __init__(self, settings: DenoiserTraining):
        torch.manual_seed(settings.seed)
        self.settings = settings
        objects = [o for o in read_renders(settings.data) if not is_held_out(o.uid)]
        self.vae = PatchAutoencoder.from_pretrained(settings.vae).eval()
        self.tokenizer, self.text_encoder, self.unet = self._models(objects)
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type=settings.prediction_type,
            **_schedule_end(settings.zero_terminal_snr),
        )
        self.data = LatentViews(
            latents=encode_views(objects, self.vae, settings.data),
            cameras=Cameras.cat([o.cameras for o in objects]),
            token_ids=[tokenize(self.tokenizer, o.captions) for o in objects],
            right_angles=[quarter_turns(o.cameras) for o in objects],
        )
        self.parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2
        )
        self.ema = EMAModel(
            self.parameters, decay=settings.ema_decay, use_ema_warmup=True, power=0.75
        )
        self.no_caption = tokenize(self.tokenizer, [""])[0]
        self.captions = sorted({caption for o in objects for caption in o.captions})

    def _models(self, objects) -> tuple[PreTrainedTokenizerFast, CLIPTextModel, MultiViewUNet]:
        settings = self.settings
        if settings.init is not None:
            pipeline = load_model(settings.init)
            return pipeline.tokenizer, pipeline.text_encoder, pipeline.unet
        tokenizer = build_tokenizer(caption for o in objects for caption in o.captions)
        levels = len(settings.block_out_channels)
        unet = MultiViewUNet(
            sample_size=objects[0].cameras.height // self.vae.downscale,
            in_channels=self.vae.config.latent_channels,
            out_channels=self.vae.config.latent_channels,
            block_out_channels=settings.block_out_channels,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            cross_attention_dim=settings.text_width,
            attention_head_dim=tuple(c // 32 for c in settings.block_out_channels),
            norm_num_groups=16,
            band_width=settings.band_width,
        )
        return tokenizer, build_text_encoder(tokenizer, settings.text_width), unet

    def batch(self, step: int) -> tuple[Tensor, Cameras, Tensor, torch.Generator]:
        """Latents (b, v, c, h, w), cameras of b * v views, token ids (b, l), the randomness."""
        settings, data = self.settings, self.data
        generator = step_generator(settings.seed, step)

        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        num_views = settings.views_per_object[draw(len(settings.views_per_object))]
        num_objects, views_each = data.latents.shape[:2]
        picks, token_ids = [], []
        for _ in range(max(1, settings.views_per_step // num_views)):
            index = draw(num_objects)
            groups = data.right_angles[index] if num_views == 4 else []
            if groups and draw(2):
                views = groups[draw(len(groups))]
            else:
                views = torch.randperm(views_each, generator=generator)[:num_views].tolist()
            picks += [index * views_each + view for view in views]
            captions = data.token_ids[index]
            token_ids.append(captions[draw(len(captions))])
        ids = self._drop_text(torch.stack(token_ids), generator)
        latents = data.latents.flatten(0, 1)[picks].unflatten(0, (-1, num_views))
        return latents.float(), data.cameras[picks], ids, generator

    def _drop_text(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        is_word = ids >= len(self.tokenizer.all_special_ids)
        drop_word = torch.rand(ids.shape, generator=generator) < self.settings.word_dropout
        ids = torch.where(is_word & drop_word, self.tokenizer.unk_token_id, ids)
        drop_all = torch.rand(len(ids), 1, generator=generator) < self.settings.text_dropout
        return torch.where(drop_all, self.no_caption, ids)

    def loss(self, step: int) -> Tensor:
        """Denoising loss of one step. With a clean view, that view is given and not scored."""
        settings = self.settings
        clean, cameras, token_ids, generator = self.batch(step)
        batch, num_views = clean.shape[:2]
        noise = torch.randn(clean.shape, generator=generator)
        steps = self._draw_timesteps(batch, generator)
        timesteps = steps[:, None].repeat(1, num_views)
        scored = torch.ones(batch, num_views, dtype=torch.bool)
        if num_views > 1:
            given = torch.rand(batch, generator=generator) < settings.clean_view_share
            scored[given, 0] = False
            timesteps = torch.where(scored, timesteps, 0)
        flat = [x.flatten(0, 1) for x in (clean, noise, timesteps)]
        noisy = self.scheduler.add_noise(*flat).unflatten(0, (batch, num_views))
        noisy = torch.where(scored[..., None, None, None], noisy, clean)
        if settings.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(*flat).unflatten(0, (batch, num_views))
        else:
            target = noise
        text = self.text_encoder(token_ids).last_hidden_state
        views = condition_on_cameras(self.unet, cameras, *clean.shape[-2:], num_views)
        predicted = self.unet(noisy, timesteps, text, views).sample
        errors = (predicted - target).square().mean(dim=(-3, -2, -1))
        return (errors * self._snr_weight(timesteps))[scored].mean()

    def _draw_timesteps(self, batch: int, generator: torch.Generator) -> Tensor:
        uniform, shift = torch.rand(batch, generator=generator), self.settings.timestep_shift
        shifted = shift * uniform / (1 + (shift - 1) * uniform)
        total = self.scheduler.config.num_train_timesteps
        return (shifted * total).long().clamp(max=total - 1)

    def _snr_weight(self, timesteps: Tensor) -> Tensor:
        """Min-SNR weights (Hang et al. 2023), for the quantity that is predicted."""
        if self.settings.min_snr_gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        snr = compute_snr(self.scheduler, timesteps.flatten()).view(timesteps.shape)
        capped = snr.clamp(max=self.settings.min_snr_gamma)
        return capped / (snr + 1 if self.settings.prediction_type == "v_prediction" else snr)

    def train_step(self, step: int) -> dict[str, float]:
        """One optimiser step; returns the numbers to log."""
        settings = self.settings
        factor = warmup_cosine(step, settings.warmup_steps, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        loss = self.loss(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.ema.step(self.parameters)
        return {"loss": loss.item(), "gradient_norm": norm.item()}

    def save_pipeline(self, folder: Path) -> None:
        """Write the pipeline with averaged weights, half precision, whole or not at all."""
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        averaged = [copy.deepcopy(m).half() for m in (self.vae, self.text_encoder, self.unet)]
        self.ema.restore(self.parameters)
        vae, text_encoder, unet = averaged
        pipeline = SPADPipeline(vae, text_encoder, self.tokenizer, unet, self.scheduler)
        pipeline.save_pretrained(temporary, max_shard_size=SHARD_SIZE)
        description = f"trained on {len(self.data.token_ids)} objects"
        save_model_manifest(temporary, self.settings.output.name, description, self.captions)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)


def train_denoiser(settings: DenoiserTraining) -> Path:
    """Train from renders; the pipeline is saved to `settings.output / "model"` and returned."""
    trainer = DenoiserTrainer(settings)
    folder = settings.output / "model"
    parts = {
        "unet": trainer.unet,
        "text_encoder": trainer.text_encoder,
        "optimizer": trainer.optimizer,
        "ema": trainer.ema,
    }
    run = TrainingRun.of(settings, parts)
    run.run(trainer.train_step, after_save=lambda _: trainer.save_pipeline(folder))
    return folder
