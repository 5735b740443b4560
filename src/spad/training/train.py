"""Train a denoiser on shards with accelerate, on one device or many, with exact resume."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    PartialState,
)
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spad.data.renders import data_hash
from spad.data.seeds import seeded
from spad.data.workers import peak_memory_gb
from spad.files import read_json, whole_file
from spad.hub.registry import resolve_device
from spad.model.autoencoder import encode_scaled, encoder_hash
from spad.model.text import TokenIds
from spad.model.unet import MultiViewUNet
from spad.settings import defaults_of
from spad.threads import waiting
from spad.training.batches import (
    Batch,
    CaptionedImages,
    latents_or_images,
    open_objects,
    read_captions,
)
from spad.training.build import (
    Denoiser,
    build_pipeline,
    is_ray_layer,
    noise_scheduler,
    set_trainable,
)
from spad.training.checkpoint_parts import EMAState, OptimizerState, Stream, TrainableWeights
from spad.training.config import MAY_CHANGE, HardwareConfig, OptimizerConfig, TrainConfig
from spad.training.cost import Sizes, check_space, sizes
from spad.training.frozen import narrow_frozen
from spad.training.muon import Muon
from spad.training.objective import NoisedBatch, Objective
from spad.training.precision import choose_precision
from spad.training.run import (
    SAMPLES,
    SETTINGS,
    TrainingRun,
    cooldown_start,
    learning_rate_factor,
    settings_record,
)
from spad.training.samples import as_array, draw_samples, sample_prompts
from spad.training.save import save_pipeline, unsharded_copy

logger = logging.getLogger(__name__)

# Equal ranges of timesteps whose errors are logged apart.
NOISE_LEVELS = 4
_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """The model, the data and the optimizer of a training, with its step.

    The constructor writes nothing.

    Raises: ValueError: the settings do not fit the data, the model or the hardware.
    """

    def __init__(self, settings: TrainConfig):
        self.settings = settings
        processes = PartialState(cpu=_is_on_cpu(settings.hardware))
        self.rank, self.world_size = processes.process_index, processes.num_processes
        self._check_shares()
        objects = open_objects(settings, self.rank, self.world_size)
        # A tokenizer of whole words needs every caption; those of the other presets have subwords.
        self.captions = read_captions(objects, all_of_them=settings.preset == "mini")
        if objects.index.height != objects.index.width:
            raise ValueError(
                f"expected square images, got {objects.index.height}x{objects.index.width}"
            )
        self.image_size = settings.batch.image_size or objects.index.height
        if self.image_size > objects.index.height:
            raise ValueError(
                f"expected --image-size of at most {objects.index.height}, the size of the images "
                f"of {settings.data}, got {self.image_size}"
            )
        self.pipeline = build_pipeline(settings, self.image_size, self.captions)
        encoder = encoder_hash(self.pipeline.vae)
        with_depth = settings.batch.depth_prob > 0
        self.objects = latents_or_images(objects, encoder, self.image_size, with_depth)
        if self.objects.parts[0] == "images" and self.image_size == objects.index.height:
            logger.info("images are encoded in every step; spad pack --latents encodes them once")
        self.images = None
        if settings.batch.images is not None:
            self.images = CaptionedImages(settings.batch.images, self.image_size)
        self.objective = Objective(noise_scheduler(self.pipeline), settings)
        set_trainable(self.pipeline, settings)
        if settings.hardware.mixed_precision == "auto":
            self._choose_precision(processes)
        self.accelerator = _accelerator(self.settings, self.pipeline.unet)
        logger.info("%d threads %s", torch.get_num_threads(), waiting())
        self._prepare()

    def _choose_precision(self, processes: PartialState) -> None:
        """Settle mixed precision: as the run has it that is resumed, or by `choose_precision`."""
        settings = self.settings
        earlier = settings.run_folder / SETTINGS
        if earlier.is_file():
            chosen = str(read_json(earlier, dict).get("mixed_precision", "no"))
        else:
            choice = ["", ""]
            if self.rank == 0:
                assert processes.device is not None
                choice = list(choose_precision(processes.device, self._try_step))
            chosen, reason = broadcast_object_list(choice)
            logger.info("mixed precision %s: %s", chosen, reason)
        hardware = replace(settings.hardware, mixed_precision=chosen)
        self.settings = replace(settings, hardware=hardware)

    def _try_step(self) -> None:
        """A forward and backward pass on one object, which leaves nothing behind."""
        pipeline, num_views = self.pipeline, max(self.settings.batch.views)
        side, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
        denoiser = Denoiser(pipeline)
        denoiser(
            torch.zeros(1, num_views, channels, side, side),
            torch.zeros(1, num_views, dtype=torch.int64),
            TokenIds.of(pipeline.tokenizers, [""]),
            pipeline.own_cameras(num_views),
        ).sum().backward()
        denoiser.zero_grad(set_to_none=True)

    def _check_shares(self) -> None:
        for num_views in self.settings.batch.views:
            objects = self.settings.batch.batch_size // num_views
            if objects % self.world_size:
                raise ValueError(
                    f"expected objects per step in multiples of {self.world_size} processes, got "
                    f"{objects} objects of {num_views} views; try another --batch-size"
                )

    def _prepare(self) -> None:
        """Move the modules to the device and wrap the trainable ones."""
        settings, device = self.settings, self.accelerator.device
        self.pipeline.vae.to(device).eval()
        self.denoiser = Denoiser(self.pipeline)
        dtype = _NARROW.get(settings.hardware.mixed_precision)
        originals = {}
        # FSDP shards weights of one type only.
        if dtype is not None and not settings.hardware.fsdp:
            originals = narrow_frozen(self.denoiser, dtype)
        self.originals = originals if self.accelerator.is_main_process else {}
        self._set_modes()
        if settings.hardware.gradient_checkpointing:
            self.denoiser.unet.enable_gradient_checkpointing()
        optimizer = _optimizer(self.denoiser.trainable(), settings.optimizer)
        _set_ray_rate(optimizer, self.denoiser, settings.optimizer.ray_rate)
        self.model, self.optimizer = self.accelerator.prepare(self.denoiser, optimizer)
        if settings.hardware.compile:
            # The compiler would unroll the block list of the banded backend.
            self.denoiser.unet.attention_backend = "sdpa"
            self.denoiser.unet.compile()
        self.trainable = list(self.denoiser.trainable().values())
        self.ema = None
        if settings.optimizer.ema_decay:
            self.ema = EMAModel(
                self.trainable, decay=settings.optimizer.ema_decay, use_ema_warmup=True, power=0.75
            )
        self.stream = Stream(self.objects, settings.hardware.num_workers, self.image_size)

    def _set_modes(self) -> None:
        """Training mode for trainable modules, evaluation mode for frozen ones."""
        self.denoiser.unet.train()
        for encoder in self.denoiser.text_encoders:
            encoder.train(self.settings.model.train_text_encoder)

    @property
    def micro_batch_size(self) -> int:
        """Views that this device processes at once."""
        share = self.settings.batch.batch_size // self.world_size
        return self.settings.hardware.micro_batch_size or share

    def next_batch(self, step: int) -> Batch:
        """This process's share of a step."""
        settings = self.settings
        if self.images is not None:
            drawn = torch.rand((), generator=seeded(settings.seed, "kind", step)).item()
            if drawn < settings.batch.image_batch_prob:
                return self.images.batch(
                    settings.seed, step, settings.batch.batch_size, self.rank, self.world_size
                )
        batch = self.stream.next()
        if batch.depth is not None:
            drawn = torch.rand((), generator=seeded(settings.seed, "depth", step)).item()
            if drawn >= settings.batch.depth_prob:
                return replace(batch, depth=None)
        return batch

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, NoisedBatch]:
        """Losses (b,) of objects, errors (b, v) of their views, and the noised (micro-)batch."""
        device = self.accelerator.device
        clean = self.latents(batch.views.to(device), batch.are_pixels)
        noised = self.objective.make_batch(clean, batch.keys)
        cameras = None if batch.cameras is None else batch.cameras.to(device)
        depth = None if batch.depth is None else batch.depth.to(device)
        tokens = self.tokens(batch, noised.has_clean_view).to(device)
        predicted = self.model(noised.noisy, noised.timesteps, tokens, cameras, depth)
        errors = self.objective.errors(predicted, noised)
        return self.objective.losses(errors, noised), errors, noised

    def latents(self, views: Tensor, are_pixels: bool) -> Tensor:
        """Scaled latents (b, v, c, h, w), float32, of a batch's views."""
        if not are_pixels:
            return views.float()
        flat = encode_scaled(self.pipeline.vae, views.flatten(0, 1))
        return flat.unflatten(0, views.shape[:2]).float()

    def tokens(self, batch: Batch, has_clean_view: Tensor) -> TokenIds:
        """Token ids of captions, with caption and word dropout.

        Args:
            has_clean_view: (b,) bool.
        """
        settings, tokenizers = self.settings.batch, self.pipeline.tokenizers
        rates = (settings.caption_dropout, settings.clean_view_caption_dropout)
        prefix = "" if batch.cameras is None else self.pipeline.config["prompt_prefix"]
        generators = [seeded(self.settings.seed, "text", key) for key in batch.keys]
        dropped = [
            torch.rand((), generator=g).item() < rates[is_given]
            for g, is_given in zip(generators, has_clean_view.tolist(), strict=True)
        ]
        prompts = [
            "" if drop else prefix + caption
            for drop, caption in zip(dropped, batch.captions, strict=True)
        ]
        tokens = TokenIds.of(tokenizers, prompts)
        if settings.word_dropout:
            # Only a model from scratch, which has one tokenizer, knows of unknown words.
            (tokenizer,), (ids,) = tokenizers, tokens.ids
            chance = torch.stack([torch.rand(ids.shape[1], generator=g) for g in generators])
            is_word = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
            unknown = is_word & (chance < settings.word_dropout)
            tokens = replace(tokens, ids=(ids.masked_fill(unknown, _unknown_id(tokenizer)),))
        return tokens

    def train_step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns the numbers to log."""
        settings, accelerator = self.settings.optimizer, self.accelerator
        factor = learning_rate_factor(
            settings.lr_schedule, step, settings.warmup_steps, settings.steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor * group.get("rate", 1.0)
        started = time.perf_counter()
        batch = self.next_batch(step)
        waited = time.perf_counter() - started
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(batch.split(self.micro_batch_size))
        sums = torch.zeros(1 + 2 * NOISE_LEVELS, device=accelerator.device)
        for part in parts:
            # Gradients are synchronized once a step, with the last part.
            is_last = part is parts[-1]
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                losses, errors, noised = self.losses(part)
                accelerator.backward(losses.sum() / len(batch.keys))
            sums += self._sums(losses, errors, noised) / len(batch.keys)
        norm = accelerator.clip_grad_norm_(self.trainable, settings.max_grad_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.step(self.trainable)
        sums = accelerator.reduce(sums, "mean")
        assert isinstance(sums, Tensor) and norm is not None
        loss, *level_sums = sums.tolist()
        seconds = time.perf_counter() - started
        objects = len(batch.keys) * self.world_size
        return {
            "loss": loss,
            "objects_per_s": objects / seconds,
            "gradient_norm": float(norm),
            "learning_rate": settings.learning_rate * factor,
            "data_wait": waited / seconds,
            "memory_gb": self.memory_gb(),
        } | _by_noise_level(level_sums)

    def _sums(self, losses: Tensor, errors: Tensor, noised: NoisedBatch) -> Tensor:
        """(1 + 2 * NOISE_LEVELS,): sum of losses, sums of errors and numbers of views by level."""
        level = noised.timesteps * NOISE_LEVELS // self.objective.num_timesteps
        each = [(level == n) & noised.loss_mask for n in range(NOISE_LEVELS)]
        errors = errors.detach()
        numbers = [losses.detach().sum(), *(errors[at].sum() for at in each)]
        return torch.stack([*numbers, *(at.sum().float() for at in each)])

    def memory_gb(self) -> float:
        """Peak memory of this process in GB: of the GPU, or else of the host."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return peak_memory_gb()

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Context in which the modules have the averaged weights."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.trainable)
        self.ema.copy_to(self.trainable)
        try:
            yield
        finally:
            self.ema.restore(self.trainable)

    def draw_samples(self, step: int) -> None:
        """Write sample images to the run folder and the trackers."""
        prompts = sample_prompts(self.settings, self.captions)
        self.denoiser.eval()
        with self.ema_weights(), self.accelerator.autocast():
            grid = draw_samples(self.pipeline, self.settings, prompts)
        self._set_modes()
        if not self.accelerator.is_main_process:
            return
        with whole_file(self.settings.run_folder / SAMPLES / f"step-{step:08d}.png") as unfinished:
            grid.save(unfinished)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                # TensorBoard expects channels first unless told.
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": as_array(grid)}, step, **options)

    def save_model(self) -> Path:
        """Write the model with averaged weights, and its card, to the run's `model` folder."""
        settings, folder = self.settings, self.settings.run_folder / "model"
        with self.ema_weights():
            trained = {
                name: unsharded_copy(module, self.originals, f"{name}.")
                for name, module in self.denoiser.named_children()
            }
        if self.accelerator.is_main_process:
            count = self.objects.num_objects
            save_pipeline(folder, self.pipeline, trained, settings, self.captions, count)
        return folder

    def parts(self) -> dict[str, Any]:
        """Parts of a checkpoint by name."""
        # Accelerate's optimizer wraps torch's.
        optimizer = self.optimizer.optimizer
        parts: dict[str, Any] = {
            "denoiser": TrainableWeights(self.denoiser),
            "optimizer": OptimizerState(self.denoiser, optimizer, self.settings.hardware.fsdp),
            "stream": self.stream,
        }
        if self.ema is not None:
            parts["ema"] = EMAState(self.ema)
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return parts

    def sizes(self) -> Sizes:
        """Numbers of parameters and bytes that they need."""
        return sizes(self.denoiser, self.pipeline.vae, self.settings)

    def run(self) -> TrainingRun:
        """Loop, log and checkpoints of this training."""
        settings, accelerator = self.settings, self.accelerator
        is_fp16 = settings.hardware.mixed_precision == "fp16"
        recorded = settings_record(settings, without=("data", "output", "dry_run"))
        run = TrainingRun(
            settings.run_folder,
            self.parts(),
            recorded | {"data_sha256": data_hash(settings.data)},
            settings.optimizer.steps,
            settings.record.save_every_s,
            settings.record.log_every,
            defaults_of(TrainConfig),
            settings.record.keep_last,
            MAY_CHANGE,
            # In fp16 gradients may overflow: the scaler skips such steps.
            watched=("loss",) if is_fp16 else ("loss", "gradient_norm"),
            is_main=accelerator.is_main_process,
            any_process=self._any_process,
        )
        schedule, steps = settings.optimizer.lr_schedule, settings.optimizer.steps
        is_constant = schedule == "constant"
        if schedule == "cooldown":
            steps = min(steps, run.saved_settings().get("steps", steps))
            is_constant = run.steps_done <= cooldown_start(steps)
        return replace(run, may_change=MAY_CHANGE | {"steps"}) if is_constant else run

    def _any_process(self, flag: bool) -> bool:
        if self.world_size == 1:
            return flag
        device = self.accelerator.device
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=device), "sum"))


def train(settings: TrainConfig) -> Path:
    """Train, or resume a run, and return the folder of the model.

    Raises: ValueError: the settings do not fit, before the first step. Interrupted: Ctrl-C or
        SIGTERM, after saving. FloatingPointError: the loss became NaN. OSError: the disk is full.
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
            if settings.record.sample_every:
                trainer.draw_samples(done)
            trainer.save_model()

        run.run(trainer.train_step, start, after_log, settings.record.sample_every, on_checkpoint)
        accelerator.end_training()
    return settings.run_folder / "model"


def _is_on_cpu(hardware: HardwareConfig) -> bool:
    """Whether a training runs on the CPU; of several GPUs, the one that was asked for is chosen."""
    if hardware.device is not None:
        device = resolve_device(hardware.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    return hardware.device == "cpu" or resolve_device(None).type == "cpu"


def _accelerator(settings: TrainConfig, unet: MultiViewUNet) -> Accelerator:
    hardware = settings.hardware
    is_cpu = _is_on_cpu(hardware)
    if hardware.mixed_precision == "fp16" and is_cpu:
        raise ValueError("expected --mixed-precision bf16 or no on a CPU, got fp16")
    if settings.optimizer.optimizer == "adamw-8bit" and is_cpu:
        raise ValueError("expected --optimizer adamw or adafactor on a CPU, got adamw-8bit")
    trackers = settings.record.trackers
    if trackers is None:
        trackers = ("tensorboard",) if find_spec("tensorboard") else ()
    plugin = None
    if hardware.fsdp:
        # One unit: spad calls parts of the model outside of its forward pass.
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    # Steps of single images use no camera layers, steps without depth none of depth.
    uses_less = settings.batch.images is not None or unet.depth_projection is not None
    return Accelerator(
        cpu=is_cpu,
        mixed_precision=hardware.mixed_precision,
        log_with=list(trackers) or None,
        project_dir=settings.run_folder,
        fsdp_plugin=plugin,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=uses_less)],
    )


def _optimizer(
    trainable: Mapping[str, torch.nn.Parameter], settings: OptimizerConfig
) -> torch.optim.Optimizer:
    parameters = list(trainable.values())
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, rate, weight_decay=decay)
    options = {"betas": (0.9, settings.adam_beta2), "weight_decay": decay}
    if settings.optimizer == "adamw-8bit":
        # An extra for CUDA.
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit(parameters, rate, **options)
    if settings.optimizer == "muon":
        return Muon(trainable, rate, **options)
    return torch.optim.AdamW(parameters, rate, fused=True, **options)


def _set_ray_rate(optimizer: torch.optim.Optimizer, denoiser: Denoiser, rate: float) -> None:
    """Move the layers of `--rays` into groups of their own, whose learning rate is a multiple.

    Raises: ValueError: another rate than 1, and no such layer is trained.
    """
    if rate == 1:
        return
    rays = {id(p) for name, p in denoiser.trainable().items() if is_ray_layer(name)}
    if not rays:
        raise ValueError(
            f"expected --rays map, qk or both with --ray-rate {rate:g}, got no layers of rays"
        )
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in rays]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in rays]
            optimizer.param_groups.append({**group, "params": moved, "rate": rate})


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int:
    number = tokenizer.unk_token_id
    assert isinstance(number, int)
    return number


def _by_noise_level(sums: list[float]) -> dict[str, float]:
    """Mean error of each noise level, the least noisy first; NaN for one without views."""
    edges = [1000 * n // NOISE_LEVELS for n in range(NOISE_LEVELS + 1)]
    return {
        f"error_{edges[n]}_{edges[n + 1]}": sums[n] / sums[NOISE_LEVELS + n]
        if sums[NOISE_LEVELS + n]
        else math.nan
        for n in range(NOISE_LEVELS)
    }
