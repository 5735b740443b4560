"""What a model makes of its text and cameras: errors of clean latents with right and wrong ones.

    python benchmarks/bench_conditioning.py MODEL SHARDS [--image-size 64] [--objects ids.txt]

From noise alone (timestep 999) and from much noise (850), the model predicts the clean latents of
four views of 48 objects: with their caption and cameras, without caption, with the caption of
another object, and with the cameras of another. `mean` predicts the mean of all views. A model that
does as well with another's cameras does not use them. SHARDS are those it learns from.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from spad.training.batches import Batch
from spad.training.config import BatchConfig, HardwareConfig, TrainConfig
from spad.training.train import Trainer

TIMESTEPS = (999, 850)
OBJECTS, VIEWS = 16, 4
BATCHES = 3


def errors(trainer: Trainer, batch: Batch, timestep: int, seed: int) -> dict[str, float]:
    """Mean squared error of clean latents for each kind of conditioning."""
    clean = trainer.latents(batch.views, batch.are_pixels)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    timesteps = torch.full(clean.shape[:2], timestep)
    flat = [x.flatten(0, 1) for x in (clean, noise, timesteps)]
    noisy = trainer.objective.scheduler.add_noise(*flat).unflatten(0, clean.shape[:2])
    captions, cameras = batch.captions, batch.cameras
    num_objects, num_views = clean.shape[:2]
    others = torch.arange(num_objects * num_views).roll(num_views).tolist()
    asked = {
        "right": (captions, cameras),
        "no caption": ([""] * num_objects, cameras),
        "another's caption": (captions[-1:] + captions[:-1], cameras),
        "another's cameras": (captions, cameras[others]),
    }
    found = {"mean": (clean - clean.mean((0, 1))).square().mean().item()}
    for name, (texts, poses) in asked.items():
        no_views = torch.zeros(num_objects, dtype=torch.bool)
        tokens = trainer.tokens(replace(batch, captions=texts), no_views)
        predicted = trainer.denoiser(noisy, timesteps, tokens, poses)
        found[name] = (predicted - clean).square().mean().item()
    return found


def measure(settings: TrainConfig) -> dict[tuple[int, str], float]:
    """Means over batches by timestep and kind of conditioning.

    Raises: ValueError: the model does not predict clean latents.
    """
    trainer = Trainer(settings)
    if trainer.objective.prediction_type != "sample":
        raise ValueError(
            f"expected a model that predicts clean latents, got {settings.init}, which predicts "
            f"{trainer.objective.prediction_type}"
        )
    trainer.denoiser.eval()
    sums: dict[tuple[int, str], float] = {}
    with torch.no_grad():
        for number in range(BATCHES):
            batch = trainer.next_batch(number)
            for timestep in TIMESTEPS:
                for name, error in errors(trainer, batch, timestep, number).items():
                    key = (timestep, name)
                    sums[key] = sums.get(key, 0.0) + error / BATCHES
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("shards", type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--objects", type=Path)
    asked = parser.parse_args()
    settings = TrainConfig(
        data=asked.shards,
        output=Path("unused"),
        init=asked.model,
        objects=asked.objects,
        seed=7,
        batch=BatchConfig(
            views=(VIEWS,),
            view_sampling="random",
            batch_size=OBJECTS * VIEWS,
            image_size=asked.image_size,
            clean_view_prob=0.0,
            caption_dropout=0.0,
            word_dropout=0.0,
        ),
        hardware=HardwareConfig(device="cpu", mixed_precision="no"),
    )
    found = measure(settings)
    print(f"| {asked.model} | " + " | ".join(f"t = {t}" for t in TIMESTEPS) + " |")
    print("|---|" + "---|" * len(TIMESTEPS))
    for name in dict.fromkeys(name for _, name in found):
        print(f"| {name} | " + " | ".join(f"{found[t, name]:.3f}" for t in TIMESTEPS) + " |")


if __name__ == "__main__":
    main()
