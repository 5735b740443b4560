"""Train the small autoencoder whose latents the `mini` model denoises."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from spad.autoencoder import PatchAutoencoderKL
from spad.config import AutoencoderTraining
from spad.data.views import image_tensor, is_held_out, load_all_images, read_renders
from spad.training_run import TrainingRun, step_generator, warmup_cosine


def random_crops(images: np.ndarray, count: int, size: int, generator) -> torch.Tensor:
    """`count` random crops of `images` (n, v, h, w, 3), each from another random view."""
    num_objects, num_views, height, width = images.shape[:4]

    def draw(high: int) -> list[int]:
        return torch.randint(high, (count,), generator=generator).tolist()

    places = zip(
        draw(num_objects),
        draw(num_views),
        draw(height - size + 1),
        draw(width - size + 1),
        strict=True,
    )
    crops = [images[n, v, row : row + size, col : col + size] for n, v, row, col in places]
    return image_tensor(np.stack(crops))


def image_gradients(images: torch.Tensor) -> torch.Tensor:
    """Differences of neighbouring pixels, both directions, flattened into one vector."""
    return torch.cat([images.diff(dim=-1).flatten(), images.diff(dim=-2).flatten()])


def train_autoencoder(settings: AutoencoderTraining) -> Path:
    """Train from renders, save to `settings.output / "vae"` and return that folder."""
    objects = [o for o in read_renders(settings.data) if not is_held_out(o.uid)]
    images = load_all_images(objects)
    torch.manual_seed(settings.seed)
    model = PatchAutoencoderKL(sample_size=images.shape[2]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
    )

    def train_step(step: int) -> dict[str, float]:
        factor = warmup_cosine(step, settings.warmup_steps, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        generator = step_generator(settings.seed, step)
        target = random_crops(images, settings.batch_size, settings.crop_size, generator)
        posterior = model.encode(target).latent_dist
        result = model.decode(posterior.sample(generator)).sample
        l1 = F.l1_loss(result, target)
        edges = F.l1_loss(image_gradients(result), image_gradients(target))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + settings.edge_weight * edges + settings.kl_weight * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mse = F.mse_loss(result.detach(), target).item()
        return {"l1": l1.item(), "kl": kl.item(), "psnr": 10 * math.log10(4 / mse)}

    run = TrainingRun(
        folder=settings.output,
        parts={"model": model, "optimizer": optimizer},
        settings={k: v for k, v in dataclasses.asdict(settings).items() if k not in ("data", "output")},
        total_steps=settings.steps,
    )
    run.run(train_step)
    model.register_to_config(scaling_factor=latent_scaling(model, images, settings.seed))
    folder = settings.output / "vae"
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def latent_scaling(model: PatchAutoencoderKL, images: np.ndarray, seed: int) -> float:
    """One over the standard deviation of the latents, so that scaled latents have unit variance."""
    sample = random_crops(images, 256, images.shape[2], step_generator(seed, 2**31))
    return 1.0 / model.encode(sample).latent_dist.mean.std().item()
