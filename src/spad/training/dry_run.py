"""What training would cost here, from a step that is not kept."""

from __future__ import annotations

import time

from spad.training.config import TrainConfig
from spad.training.cost import check_space, disk_needed, duration
from spad.training.train import Trainer


def dry_run(settings: TrainConfig) -> str:
    """What `train` would cost here, measured on a step that is not kept; writes nothing.

    Raises: ValueError: what `train` would raise before its first step.
    """
    trainer = Trainer(settings)
    run = trainer.run()
    run.check()
    found = trainer.sizes()
    seconds, waited = _measure_step(trainer)
    check_space(found, settings)
    stored = "latents from the shards" if trainer.objects.parts == ("latents",) else "encoded anew"
    objects = settings.batch_size / (sum(settings.num_views) / len(settings.num_views))
    where = f"{trainer.accelerator.device.type} x {trainer.world_size}"
    rows = [
        ("learned", f"{found.learned / 1e6:,.1f} M parameters; frozen {found.frozen / 1e6:,.1f} M"),
        (
            "data",
            f"{trainer.objects.num_objects:,} objects of {trainer.objects.index.num_views} "
            f"views, {trainer.image_size}x{trainer.image_size}, {stored}",
        ),
        (
            "step",
            f"{settings.batch_size:,} views, {trainer.micro_batch_size} at once on each of {where}",
        ),
        (
            "memory",
            f"{found.resident / 1e9:.1f} GB for weights, gradients, optimiser and average; "
            f"{trainer.memory_gb():.1f} GB at most so far, measured",
        ),
        (
            "time",
            f"{seconds:.3g} s a step, {waited / seconds:.0%} of it for data; "
            f"{settings.steps:,} steps: {duration(seconds * settings.steps)}",
        ),
        (
            "seen",
            f"{objects * settings.steps:,.0f} objects, "
            f"{objects * settings.steps / trainer.objects.num_objects:,.0f} times each",
        ),
        (
            "disk",
            f"{disk_needed(found, settings) / 1e9:.1f} GB: {settings.keep_last} checkpoints "
            f"of {found.checkpoint / 1e9:.1f} GB, one on its way, the model of "
            f"{found.model / 1e9:.1f} GB",
        ),
        ("output", str(settings.run_folder)),
    ]
    return "\n".join(f"{name:8} {text}" for name, text in rows)


def _measure_step(trainer: Trainer) -> tuple[float, float]:
    """Seconds that a step takes, and those of them that wait for data; nothing is kept.

    Three micro-batches are run, the last two are timed, and the weights updated at rate 0.
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
        # Waits for the device.
        losses.sum().item()
        micro_seconds.append(time.perf_counter() - started)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    started = time.perf_counter()
    trainer.optimizer.step()
    update = time.perf_counter() - started
    return sum(micro_seconds[1:]) / 2 * len(parts) + update + waited, waited
