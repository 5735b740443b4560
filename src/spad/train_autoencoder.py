"""Train the small autoencoder whose latents the `mini` model denoises."""

import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from spad.autoencoder import PatchAutoencoder
from spad.config import AutoencoderTraining
from spad.data.views import image_tensor, is_held_out, load_all_images, read_renders
from spad.training_run import TrainingRun, step_generator, warmup_cosine

# Pictures whose patches the principal components are taken from: 64 patches each.
PICTURES_FOR_COMPONENTS = 2048


def random_crops(
    images: np.ndarray, count: int, size: int, multiple: int, generator: torch.Generator
) -> torch.Tensor:
    """`count` crops of random views in `images` (n, v, h, w, 3), at multiples of `multiple`."""
    num_objects, num_views, height, width = images.shape[:4]

    def draw(high: int) -> list[int]:
        return torch.randint(high, (count,), generator=generator).tolist()

    places = zip(
        draw(num_objects),
        draw(num_views),
        draw((height - size) // multiple + 1),
        draw((width - size) // multiple + 1),
        strict=True,
    )
    crops = [
        images[n, v, row * multiple :, col * multiple :][:size, :size] for n, v, row, col in places
    ]
    return image_tensor(np.stack(crops))


def image_gradients(images: torch.Tensor) -> torch.Tensor:
    """Differences of neighbouring pixels, both directions, flattened into one vector."""
    return torch.cat([images.diff(dim=-1).flatten(), images.diff(dim=-2).flatten()])


def fit_autoencoder(settings: AutoencoderTraining, images: np.ndarray) -> PatchAutoencoder:
    """An autoencoder with its linear parts set from `images` (n, v, h, w, 3), untrained else.

    Or the one in `settings.init`.
    """
    torch.manual_seed(settings.seed)
    if settings.init is not None:
        if not (settings.init / "config.json").is_file():
            raise ValueError(f"expected an autoencoder in {settings.init}, found no config.json")
        return PatchAutoencoder.from_pretrained(settings.init, torch_dtype=torch.float32)
    model = PatchAutoencoder(
        latent_channels=settings.latent_channels,
        block_out_channels=settings.block_out_channels,
        sample_size=images.shape[2],
    )
    whole = images.shape[2]
    generator = step_generator(settings.seed, 2**31)
    model.fit_components(random_crops(images, PICTURES_FOR_COMPONENTS, whole, whole, generator))
    return model


def train_autoencoder(settings: AutoencoderTraining) -> Path:
    """Train from renders, save to `settings.output / "vae"` and return that folder.

    The folder is written once before the first step, with the linear parts: a denoiser can train
    on their latents while the decoder learns.
    """
    objects = [o for o in read_renders(settings.data) if not is_held_out(o.uid)]
    images = load_all_images(objects)
    model = fit_autoencoder(settings, images)
    folder = settings.output / "vae"
    model.save_pretrained(folder)
    learned = list(model.refiner.parameters())
    optimizer = torch.optim.AdamW(
        learned, settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
    )

    def train_step(step: int) -> dict[str, float]:
        factor = warmup_cosine(step, settings.warmup_steps, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        generator = step_generator(settings.seed, step)
        target = random_crops(
            images, settings.batch_size, settings.crop_size, model.downscale, generator
        )
        latents = model.encode(target).latent_dist.mode()
        # What the denoiser will hand over is never exact.
        deviation = settings.latent_noise / model.config.scaling_factor
        latents = latents + deviation * torch.randn(latents.shape, generator=generator)
        result = model.decode(latents).sample
        l1 = F.l1_loss(result, target)
        edges = F.l1_loss(image_gradients(result), image_gradients(target))
        optimizer.zero_grad(set_to_none=True)
        (l1 + settings.edge_weight * edges).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        mse = F.mse_loss(result.detach(), target).item()
        return {"l1": l1.item(), "edges": edges.item(), "psnr": 10 * math.log10(4 / mse)}

    run = TrainingRun.of(settings, {"model": model, "optimizer": optimizer})
    run.run(train_step, after_save=lambda _: model.save_pretrained(folder))
    return folder
