"""`spad train --dry-run`: measured time, memory and disk of a training."""

from __future__ import annotations

import time
from statistics import mean

import torch

from spad.threads import waiting
from spad.training.config import TrainConfig
from spad.training.cost import check_space, disk_needed, duration
from spad.training.memory import card_table
from spad.training.train import Trainer


def dry_run(settings: TrainConfig) -> str:
    """Report of what `train` would cost here, measured in a step that is not kept.

    Writes nothing.

    Raises: ValueError: as `train` before its first step.
    """
    trainer = Trainer(settings)
    run = trainer.run()
    run.check()
    found = trainer.sizes()
    cards = card_table(trainer.denoiser, trainer.pipeline.vae, trainer.settings)
    seconds, waited = _measure_step(trainer)
    check_space(found, settings)
    stored = (
        "latents from the shards"
        if trainer.objects.parts == ("latents",)
        else "encoded in each step"
    )
    steps, batch_size = settings.optimizer.steps, settings.batch.batch_size
    objects = batch_size / mean(settings.batch.views)
    where = f"{trainer.accelerator.device.type} x {trainer.world_size}"
    rows = [
        (
            "trained",
            f"{found.trainable / 1e6:,.1f} M parameters; frozen {found.frozen / 1e6:,.1f} M",
        ),
        (
            "data",
            f"{trainer.objects.num_objects:,} objects of {trainer.objects.index.num_views} "
            f"views, {trainer.image_size}x{trainer.image_size}, {stored}",
        ),
        (
            "step",
            f"{batch_size:,} views, {trainer.micro_batch_size} at once on each of {where}",
        ),
        ("numbers", f"mixed precision {trainer.settings.hardware.mixed_precision}"),
        ("threads", f"{torch.get_num_threads()}, which {waiting()}"),
        (
            "memory",
            f"{found.resident / 1e9:.1f} GB for weights, gradients, optimizer and average; "
            f"{trainer.memory_gb():.1f} GB peak so far, measured",
        ),
        (
            "time",
            f"{seconds:.3g} s a step, {waited / seconds:.0%} of it waiting for data; "
            f"{steps:,} steps: {duration(seconds * steps)}",
        ),
        (
            "seen",
            f"{objects * steps:,.0f} objects, "
            f"each {objects * steps / trainer.objects.num_objects:,.0f} times",
        ),
        (
            "disk",
            f"{disk_needed(found, settings) / 1e9:.1f} GB: {settings.record.keep_last} checkpoints "
            f"of {found.checkpoint / 1e9:.1f} GB, one more being written, the model of "
            f"{found.model / 1e9:.1f} GB",
        ),
        ("output", str(settings.run_folder)),
        ("cards", "most views at once by --trainable, estimated; – does not fit"),
        *((f"  {gib} GB", ", ".join(cells)) for gib, cells in cards.items()),
    ]
    return "\n".join(f"{name:8} {text}" for name, text in rows)


def _measure_step(trainer: Trainer) -> tuple[float, float]:
    """Seconds of a step, and of these the seconds of waiting for data.

    Runs three micro-batches, times the last two, and updates the weights at learning rate 0.
    """
    started = time.perf_counter()
    batch = trainer.stream.next()
    waited = time.perf_counter() - started
    parts = list(batch.split(trainer.micro_batch_size))
    micro_seconds = []
    for _ in range(3):
        started = time.perf_counter()
        losses, _, _ = trainer.losses(parts[0])
        trainer.accelerator.backward(losses.mean())
        # Synchronizes with the device.
        losses.sum().item()
        micro_seconds.append(time.perf_counter() - started)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    started = time.perf_counter()
    trainer.optimizer.step()
    update = time.perf_counter() - started
    return sum(micro_seconds[1:]) / 2 * len(parts) + update + waited, waited
