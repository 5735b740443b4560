"""Train a denoiser on shards, with accelerate: on one device or many, without losing a run."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from diffusers.training_utils import EMAModel
from torch import Tensor

from spad.data.renders import data_hash
from spad.data.seeds import seeded
from spad.hub.registry import resolve_device
from spad.model.autoencoder import encode_scaled, encoder_hash
from spad.model.word_tokenizer import tokenize
from spad.training.batches import (
    Batch,
    Pictures,
    latents_or_pictures,
    open_objects,
    read_captions,
)
from spad.training.build import Denoiser, build_pipeline, learned_scheduler, set_trainable
from spad.training.checkpoint_parts import AverageState, LearnedWeights, OptimizerState, Stream
from spad.training.config import TrainConfig
from spad.training.cost import Sizes, check_space, sizes
from spad.training.muon import Muon
from spad.training.objective import NoisedBatch, Objective
from spad.training.run import SAMPLES, TrainingRun, cooldown_start, learning_rate_factor, recorded
from spad.training.samples import as_array, draw_samples, sample_prompts
from spad.training.save import save_pipeline, unsharded_copy

logger = logging.getLogger(__name__)

# Settings that change nothing of what is learned, but for rounding.
MAY_CHANGE = frozenset(
    "micro_batch_size gradient_checkpointing compile device num_workers verify save_every_s "
    "keep_last log_every sample_every sample_prompts num_inference_steps trackers guidance_scale "
    "guidance_rescale save_dtype description license author".split()
)
NOISE_LEVELS = 4


class Trainer:
    """A model, its data, and one step of its training.

    Raises, while it is made: ValueError: whatever of the settings does not fit the data, the model
        or the machine; before the first step, and before anything is written.
    """

    def __init__(self, settings: TrainConfig):
        self.settings = settings
        self.accelerator = _accelerator(settings)
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self._check_shares()
        objects = open_objects(settings, self.rank, self.world_size)
        # Tokenizers of whole words are given all; the other presets have word parts.
        self.captions = read_captions(objects, all_of_them=settings.preset == "mini")
        if objects.index.height != objects.index.width:
            raise ValueError(
                f"expected square pictures, got {objects.index.height}x{objects.index.width}"
            )
        self.image_size = objects.index.height
        self.pipeline = build_pipeline(settings, self.image_size, self.captions)
        self.objects = latents_or_pictures(objects, encoder_hash(self.pipeline.vae))
        if self.objects.parts == ("images",):
            logger.info("pictures are encoded in every step; spad pack --latents does it once")
        self.pictures = None
        if settings.images is not None:
            self.pictures = Pictures(settings.images, self.image_size, self.image_size)
        self.objective = Objective(learned_scheduler(self.pipeline), settings)
        set_trainable(self.pipeline, settings)
        self._prepare()

    def _check_shares(self) -> None:
        for num_views in self.settings.num_views:
            objects = self.settings.batch_size // num_views
            if objects % self.world_size:
                raise ValueError(
                    f"expected the {objects} objects of a step with {num_views} views to share out "
                    f"among {self.world_size} processes; try another --batch-size"
                )

    def _prepare(self) -> None:
        """Move everything where it runs; what learns becomes one wrapped module."""
        settings, device = self.settings, self.accelerator.device
        self.pipeline.vae.to(device).eval()
        self.denoiser = Denoiser(self.pipeline.unet, self.pipeline.text_encoder)
        self._set_modes()
        if settings.gradient_checkpointing:
            self.denoiser.unet.enable_gradient_checkpointing()
        optimizer = _optimizer(self.denoiser.learned(), settings)
        self.model, self.optimizer = self.accelerator.prepare(self.denoiser, optimizer)
        if settings.compile:
            # A plan of blocks is a long list, which the compiler would write out.
            self.denoiser.unet.attention_backend = "sdpa"
            self.denoiser.unet.compile()
        self.learned = list(self.denoiser.learned().values())
        self.average = None
        if settings.ema_decay:
            self.average = EMAModel(
                self.learned, decay=settings.ema_decay, use_ema_warmup=True, power=0.75
            )
        self.stream = Stream(self.objects, settings.num_workers)

    def _set_modes(self) -> None:
        """What learns behaves as in training, what is frozen as in use."""
        self.denoiser.unet.train()
        self.denoiser.text_encoder.train(self.settings.train_text_encoder == "on")

    @property
    def micro_batch_size(self) -> int:
        """Views that this device takes at once."""
        return self.settings.micro_batch_size or self.settings.batch_size // self.world_size

    def next_batch(self, step: int) -> Batch:
        """This process's share of a step."""
        settings = self.settings
        is_picture_step = False
        if self.pictures is not None:
            drawn = torch.rand((), generator=seeded(settings.seed, "kind", step)).item()
            is_picture_step = drawn < settings.image_batch_prob
        if not is_picture_step:
            return self.stream.next()
        return self.pictures.batch(
            settings.seed, step, settings.batch_size, self.rank, self.world_size
        )

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, NoisedBatch]:
        """Losses of the objects of a (micro-)batch (b,), errors of their views (b, v)."""
        device = self.accelerator.device
        clean = self._latents(batch.views.to(device), batch.are_pixels)
        question = self.objective.ask(clean, batch.keys)
        cameras = None if batch.cameras is None else batch.cameras.to(device)
        token_ids = self._token_ids(batch, question.has_clean_view).to(device)
        predicted = self.model(question.noisy, question.timesteps, token_ids, cameras)
        errors = self.objective.errors(predicted, question)
        return self.objective.losses(errors, question), errors, question

    def _latents(self, views: Tensor, are_pixels: bool) -> Tensor:
        if not are_pixels:
            return views.float()
        flat = encode_scaled(self.pipeline.vae, views.flatten(0, 1))
        return flat.unflatten(0, views.shape[:2]).float()

    def _token_ids(self, batch: Batch, has_clean_view: Tensor) -> Tensor:
        """(b, length); captions and words are dropped as often as the settings ask.

        Args:
            is_given: (b,) bool, of which objects view 0 is given.
        """
        settings, tokenizer = self.settings, self.pipeline.tokenizer
        shares = (settings.caption_dropout, settings.clean_view_caption_dropout)
        prefix = "" if batch.cameras is None else self.pipeline.config.prompt_prefix
        generators = [seeded(settings.seed, "text", key) for key in batch.keys]
        dropped = [
            torch.rand((), generator=g).item() < shares[given]
            for g, given in zip(generators, has_clean_view.tolist(), strict=True)
        ]
        prompts = [
            "" if drop else prefix + caption
            for drop, caption in zip(dropped, batch.captions, strict=True)
        ]
        ids = tokenize(tokenizer, prompts)
        if settings.word_dropout:
            chance = torch.stack([torch.rand(ids.shape[1], generator=g) for g in generators])
            is_word = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
            unknown = is_word & (chance < settings.word_dropout)
            ids = torch.where(unknown, tokenizer.unk_token_id, ids)
        return ids

    def train_step(self, step: int) -> dict[str, float]:
        """One optimiser step; returns the numbers to log."""
        settings, accelerator = self.settings, self.accelerator
        factor = learning_rate_factor(
            settings.lr_schedule, step, settings.warmup_steps, settings.steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        started = time.perf_counter()
        batch = self.next_batch(step)
        waited = time.perf_counter() - started
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(batch.split(self.micro_batch_size))
        sums = torch.zeros(1 + 2 * NOISE_LEVELS, device=accelerator.device)
        for part in parts:
            # Processes add their gradients up once a step.
            alone = accelerator.no_sync(self.model) if part is not parts[-1] else nullcontext()
            with alone:
                losses, errors, question = self.losses(part)
                accelerator.backward(losses.sum() / len(batch.keys))
            sums += self._sums(losses, errors, question) / len(batch.keys)
        norm = accelerator.clip_grad_norm_(self.learned, settings.max_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.step(self.learned)
        sums = accelerator.reduce(sums, "mean").tolist()
        seconds = time.perf_counter() - started
        objects = len(batch.keys) * self.world_size
        return {
            "loss": sums[0],
            "objects_per_s": objects / seconds,
            "gradient_norm": float(norm),
            "learning_rate": settings.learning_rate * factor,
            "data_wait": waited / seconds,
            "memory_gb": self.memory_gb(),
        } | _by_noise_level(sums[1:])

    def _sums(self, losses: Tensor, errors: Tensor, question: NoisedBatch) -> Tensor:
        """Sum of the losses, then of errors and of views at each level of noise."""
        total = self.objective.scheduler.config.num_train_timesteps
        level = question.timesteps * NOISE_LEVELS // total
        each = [(level == n) & question.loss_mask for n in range(NOISE_LEVELS)]
        errors = errors.detach()
        numbers = [losses.detach().sum(), *(errors[at].sum() for at in each)]
        return torch.stack([*numbers, *(at.sum().float() for at in each)])

    def memory_gb(self) -> float:
        """The most memory this process has used: of the GPU, or else of the machine."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        if sys.platform == "win32":
            return psutil.Process().memory_info().peak_wset / 1e9
        import resource  # Windows has none

        # Kilobytes, on a Mac bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones."""
        if self.average is None:
            yield
            return
        self.average.store(self.learned)
        self.average.copy_to(self.learned)
        try:
            yield
        finally:
            self.average.restore(self.learned)

    def draw_samples(self, step: int) -> None:
        """Pictures of fixed prompts, cameras and seed, in the run's folder and to trackers."""
        prompts = sample_prompts(self.settings, self.captions)
        self.denoiser.eval()
        with self.averaged(), self.accelerator.autocast():
            grid = draw_samples(self.pipeline, self.settings, prompts)
        self._set_modes()
        if not self.accelerator.is_main_process:
            return
        folder = self.settings.run_folder / SAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        grid.save(folder / f"step-{step:08d}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                # It alone would take the first dimension for the colours.
                form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": as_array(grid)}, step, **form)

    def save_model(self) -> Path:
        """Write the model with averaged weights and its card to the run's `model` folder."""
        settings, folder = self.settings, self.settings.run_folder / "model"
        with self.averaged():
            modules = [unsharded_copy(m) for m in (self.denoiser.unet, self.denoiser.text_encoder)]
        if self.accelerator.is_main_process:
            save_pipeline(
                folder, self.pipeline, *modules, settings, self.captions, self.objects.num_objects
            )
        return folder

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds, by name."""
        # Accelerate's optimiser wraps torch's.
        optimizer = self.optimizer.optimizer
        parts: dict[str, Any] = {
            "denoiser": LearnedWeights(self.denoiser),
            "optimizer": OptimizerState(self.denoiser, optimizer, self.settings.fsdp),
            "stream": self.stream,
        }
        if self.average is not None:
            parts["average"] = AverageState(self.average)
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return parts

    def sizes(self) -> Sizes:
        """Parameters, and bytes of what is kept of them."""
        return sizes(self.denoiser, self.pipeline.vae, self.settings)

    def run(self) -> TrainingRun:
        """The run that `settings` describe."""
        settings, accelerator = self.settings, self.accelerator
        said = recorded(settings, without=("data", "output", "dry_run"))
        run = TrainingRun(
            settings.run_folder,
            self.parts(),
            said | {"data_sha256": data_hash(settings.data)},
            settings.steps,
            settings.save_every_s,
            settings.log_every,
            settings.keep_last,
            MAY_CHANGE,
            # In fp16 the loss is scaled up, and a step whose gradients overflow is skipped.
            watched=("loss",) if settings.mixed_precision == "fp16" else ("loss", "gradient_norm"),
            is_main=accelerator.is_main_process,
            agree=self._agree,
        )
        is_steady = settings.lr_schedule == "constant"
        if settings.lr_schedule == "cooldown":
            steps = min(settings.steps, run.saved_settings().get("steps", settings.steps))
            is_steady = run.steps_done <= cooldown_start(steps)
        return replace(run, may_change=MAY_CHANGE | {"steps"}) if is_steady else run

    def _agree(self, flag: bool) -> bool:
        if self.world_size == 1:
            return flag
        device = self.accelerator.device
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=device), "sum"))


def train(settings: TrainConfig) -> Path:
    """Train, or go on where an earlier call stopped; returns the folder of the model.

    Raises: ValueError: something does not fit, before the first step. Interrupted: after Ctrl-C or
        SIGTERM, saved. FloatingPointError: the loss became NaN. OSError: no space on the disk.
    """
    trainer = Trainer(settings)
    run = trainer.run()
    accelerator = trainer.accelerator
    with run.opened() as start:
        check_space(trainer.sizes(), settings)
        if accelerator.log_with:
            accelerator.init_trackers("spad")

        def after_log(done: int, means: Mapping[str, float]) -> None:
            accelerator.log({k: v for k, v in means.items() if not math.isnan(v)}, step=done)

        def on_checkpoint(done: int) -> None:
            if settings.sample_every:
                trainer.draw_samples(done)
            trainer.save_model()

        run.run(trainer.train_step, start, after_log, settings.sample_every, on_checkpoint)
        accelerator.end_training()
    return settings.run_folder / "model"


def _accelerator(settings: TrainConfig) -> Accelerator:
    if settings.device is not None:
        device = resolve_device(settings.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    is_cpu = settings.device == "cpu" or resolve_device(None).type == "cpu"
    if settings.mixed_precision == "fp16" and is_cpu:
        raise ValueError("expected --mixed-precision bf16 or no on a CPU, got fp16")
    if settings.optimizer == "adamw-8bit" and is_cpu:
        raise ValueError("expected --optimizer adamw or adafactor on a CPU, got adamw-8bit")
    if settings.fsdp and settings.learn == "lora":
        raise ValueError("expected --learn lora without --fsdp: there is little to share out")
    trackers = settings.trackers
    if trackers is None:
        trackers = ("tensorboard",) if find_spec("tensorboard") else ()
    plugin = None
    if settings.fsdp:
        # One unit: the model's layers are called from outside of one another.
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="NO_WRAP")
    return Accelerator(
        cpu=is_cpu,
        mixed_precision=settings.mixed_precision,
        log_with=list(trackers) or None,
        project_dir=settings.run_folder,
        fsdp_plugin=plugin,
        kwargs_handlers=[
            # Steps of single pictures leave what knows of cameras alone.
            DistributedDataParallelKwargs(find_unused_parameters=settings.images is not None)
        ],
    )


def _optimizer(
    learned: Mapping[str, torch.nn.Parameter], settings: TrainConfig
) -> torch.optim.Optimizer:
    parameters = list(learned.values())
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, rate, weight_decay=decay)
    options = {"betas": (0.9, settings.adam_beta2), "weight_decay": decay}
    if settings.optimizer == "adamw-8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, rate, **options)
    if settings.optimizer == "muon":
        return Muon(learned, rate, **options)
    return torch.optim.AdamW(parameters, rate, fused=True, **options)


def _by_noise_level(sums: list[float]) -> dict[str, float]:
    """Mean error of each quarter of the timesteps, the least noisy first; NaN where none fell."""
    edges = [1000 * n // NOISE_LEVELS for n in range(NOISE_LEVELS + 1)]
    return {
        f"error_{edges[n]}_{edges[n + 1]}": sums[n] / sums[NOISE_LEVELS + n]
        if sums[NOISE_LEVELS + n]
        else math.nan
        for n in range(NOISE_LEVELS)
    }
