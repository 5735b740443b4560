"""Train the small autoencoder whose latents the `mini` model denoises."""

import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from spad.data.renders import is_held_out, load_all_images, read_renders
from spad.data.seeds import seeded
from spad.data.view_sets import PosedImages
from spad.files import whole_folder
from spad.hub.registry import load_autoencoder, load_model
from spad.images.pixels import image_tensor
from spad.model import PatchAutoencoder
from spad.model.conditioning import condition_on_cameras
from spad.settings import defaults_of
from spad.training.config import TrainAutoencoderConfig
from spad.training.run import TrainingRun, learning_rate_factor, settings_record

# Images whose patches the principal components are computed from.
IMAGES_FOR_COMPONENTS = 2048
# Of 1000: from nearly clean to uncertain outlines.
DENOISED_TIMESTEPS = (20, 600)


def random_places(
    images: np.ndarray, count: int, size: int, multiple: int, generator: torch.Generator
) -> list[tuple[int, int, int, int]]:
    """Object, view, row and column of `count` random crops of `images` (n, v, h, w, 3).

    Rows and columns are in units of `multiple` pixels.
    """
    num_objects, num_views, height, width = images.shape[:4]

    def draw(high: int) -> list[int]:
        return torch.randint(high, (count,), generator=generator).tolist()

    places = (
        draw(num_objects),
        draw(num_views),
        draw((height - size) // multiple + 1),
        draw((width - size) // multiple + 1),
    )
    return list(zip(*places, strict=True))


def crops_at(
    images: np.ndarray, places: list[tuple[int, int, int, int]], size: int, multiple: int
) -> torch.Tensor:
    """Crops (b, 3, size, size) in [-1, 1] at places of `random_places`."""
    crops = [
        images[n, v, row * multiple :, col * multiple :][:size, :size] for n, v, row, col in places
    ]
    return image_tensor(np.stack(crops))


def random_crops(
    images: np.ndarray, count: int, size: int, multiple: int, generator: torch.Generator
) -> torch.Tensor:
    """`count` random crops of `images` (n, v, h, w, 3), at multiples of `multiple` pixels."""
    places = random_places(images, count, size, multiple, generator)
    return crops_at(images, places, size, multiple)


@torch.inference_mode()
def denoised_latents(
    objects: list[PosedImages], images: np.ndarray, model: Path, seed: int
) -> torch.Tensor:
    """Latents (n, v, c, h, w), unscaled, of every view, noised and denoised in one step.

    They lack detail in the same way as sampled latents. Timesteps are uniform in
    `DENOISED_TIMESTEPS`.
    """
    pipeline = load_model(model, dtype=torch.float32)
    unet, scheduler, vae = pipeline.unet.eval(), pipeline.scheduler, pipeline.vae.eval()
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for views, pixels in zip(tqdm(objects, desc="denoising", unit="object"), images, strict=True):
        clean = vae.encode(image_tensor(pixels)).latent_dist.mode() * vae.config.scaling_factor
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(*DENOISED_TIMESTEPS, clean.shape[:1], generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        text = pipeline.encode_text(views.captions[:1]).repeated(len(clean))
        size = clean.shape[-2:]
        conditioning = condition_on_cameras(unet, views.cameras, *size, num_views=1, text=text)
        predicted = unet(noisy[:, None], timesteps[:, None], text, conditioning).sample[:, 0]
        signal = scheduler.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
        spread = (1 - signal.square()).sqrt()
        kind = scheduler.config.prediction_type
        if kind == "sample":
            estimate = predicted
        elif kind == "v_prediction":
            estimate = signal * noisy - spread * predicted
        else:
            estimate = (noisy - spread * predicted) / signal
        rows.append((estimate / vae.config.scaling_factor).half())
    return torch.stack(rows)


def image_gradients(images: torch.Tensor) -> torch.Tensor:
    """Differences of horizontally and vertically adjacent pixels, as one vector."""
    return torch.cat([images.diff(dim=-1).flatten(), images.diff(dim=-2).flatten()])


def fit_autoencoder(settings: TrainAutoencoderConfig, images: np.ndarray) -> PatchAutoencoder:
    """The autoencoder of `settings.init`, or one with linear layers fitted to `images`.

    Args:
        images: uint8 (n, v, h, w, 3).

    Raises: ValueError: `settings.init` has no autoencoder.
    """
    torch.manual_seed(settings.seed)
    if settings.init is not None:
        if not (settings.init / "config.json").is_file():
            raise ValueError(f"expected an autoencoder in {settings.init}, got no config.json")
        model = load_autoencoder(settings.init)
        if not isinstance(model, PatchAutoencoder):
            raise ValueError(
                f"expected a PatchAutoencoder in {settings.init}, got {type(model).__name__}"
            )
        return model
    model = PatchAutoencoder(
        patch_size=settings.patch_size,
        latent_channels=settings.latent_channels,
        block_out_channels=settings.block_out_channels,
        sample_size=images.shape[2],
    )
    whole = images.shape[2]
    generator = seeded(settings.seed, 2**31)
    model.fit_components(random_crops(images, IMAGES_FOR_COMPONENTS, whole, whole, generator))
    return model


def train_autoencoder(settings: TrainAutoencoderConfig) -> Path:
    """Train on renders, save to `settings.output / "vae"` and return that folder.

    The folder is first written before the first step, since the encoder is final by then: a
    denoiser can train on its latents meanwhile.
    """
    objects = [o for o in read_renders(settings.data) if not is_held_out(o.uid)]
    if not objects:
        raise ValueError(
            f"expected training objects in {settings.data}, got none: one in sixteen is held out "
            "by a hash of its id"
        )
    images = load_all_images(objects)
    if settings.crop_size > min(images.shape[2:4]):
        raise ValueError(
            f"expected --crop-size of at most {min(images.shape[2:4])}, the size of the images in "
            f"{settings.data}, got {settings.crop_size}"
        )
    model = fit_autoencoder(settings, images)
    if settings.crop_size % model.downscale:
        raise ValueError(
            f"expected --crop-size in steps of {model.downscale}, the patches of {settings.init}, "
            f"got {settings.crop_size}"
        )
    folder = settings.output / "vae"
    denoised = None
    if settings.denoiser is not None:
        denoised = denoised_latents(objects, images, settings.denoiser, settings.seed)
    cells = settings.crop_size // model.downscale
    trainable = list(model.refiner.parameters())
    optimizer = torch.optim.AdamW(
        trainable, settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
    )

    def train_step(step: int) -> dict[str, float]:
        factor = learning_rate_factor("cosine", step, settings.warmup_steps, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        generator = seeded(settings.seed, step)
        places = random_places(
            images, settings.batch_size, settings.crop_size, model.downscale, generator
        )
        target = crops_at(images, places, settings.crop_size, model.downscale)
        latents = model.encode(target).latent_dist.mode()
        # Sampled latents are never exact.
        deviation = settings.latent_noise / model.config["scaling_factor"]
        latents = latents + deviation * torch.randn(latents.shape, generator=generator)
        if denoised is not None:
            estimates = torch.stack(
                [denoised[n, v, :, row:, col:][:, :cells, :cells] for n, v, row, col in places]
            )
            is_denoised = torch.rand(len(places), generator=generator) < settings.denoised_prob
            latents = torch.where(is_denoised[:, None, None, None], estimates.float(), latents)
        result = model.decode(latents).sample
        l1 = F.l1_loss(result, target)
        edges = F.l1_loss(image_gradients(result), image_gradients(target))
        optimizer.zero_grad(set_to_none=True)
        (l1 + settings.edge_weight * edges).backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        mse = F.mse_loss(result.detach(), target).item()
        return {"l1": l1.item(), "edges": edges.item(), "psnr": 10 * math.log10(4 / mse)}

    def save(_step: int) -> None:
        with whole_folder(folder, overwrite=True, mark="config.json") as unfinished:
            model.save_pretrained(unfinished)

    run = TrainingRun(
        settings.output,
        {"model": model, "optimizer": optimizer},
        settings_record(settings, without=("data", "output")),
        settings.steps,
        settings.save_every_s,
        settings.log_every,
        defaults_of(TrainAutoencoderConfig),
        may_change=("save_every_s", "log_every"),
        watched=("l1", "edges"),
    )
    with run.opened() as start:
        save(start)
        run.run(train_step, start, on_checkpoint=save)
    return folder
