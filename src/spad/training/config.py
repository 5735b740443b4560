"""Settings of training, as values, and its presets. Imports nothing heavy."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Interval, MinLen, MultipleOf
from tyro.conf import Positional

from spad.settings import (
    Count,
    CountOrZero,
    GuidanceScale,
    NonNegativeFloat,
    PositiveFloat,
    Seed,
    Share,
    checked,
    flag,
)

Decay = Annotated[float, Interval(ge=0, lt=1)]
Widths = Annotated[tuple[Annotated[int, Ge(16), MultipleOf(16)], ...], MinLen(1)]
VolumeWidth = Annotated[int, Ge(4), MultipleOf(4)]


@dataclass(frozen=True)
@checked
class TrainAutoencoderConfig:
    """Train the decoder of a small autoencoder whose encoder is fitted in closed form.

    The loss is the L1 distance of pixels and of their gradients. Ctrl-C saves; the same command
    resumes.
    """

    data: Path
    """Folder written by `spad render` or `spad pack`."""
    output: Path
    """Run folder; the autoencoder is saved in its `vae` folder."""
    init: Path | None = None
    """Autoencoder folder whose decoder is trained further. Its encoder does not change, so models
    trained on its latents still fit."""
    steps: Count = 2000
    """Optimizer steps."""
    batch_size: Count = 24
    """Crops per step."""
    crop_size: Count = 64
    """Side of a crop in pixels, a multiple of --patch-size."""
    patch_size: Annotated[int, Interval(ge=4, le=64)] = 16
    """Side in pixels of the square patch that one latent describes."""
    latent_channels: Count = 32
    """Principal components kept of every patch."""
    block_out_channels: Widths = (48, 96, 160)
    """Channels of the decoder's levels."""
    learning_rate: NonNegativeFloat = 1.5e-3
    """Highest learning rate."""
    warmup_steps: CountOrZero = 50
    """Steps in which the learning rate rises."""
    edge_weight: NonNegativeFloat = 0.5
    """Weight of the loss of the gradients."""
    latent_noise: NonNegativeFloat = 0.1
    """Standard deviation of the noise added to latents, whose own is about 1."""
    denoiser: Path | None = None
    """Model folder with the same encoder: the decoder also learns from latents denoised by it."""
    denoised_prob: Share = 0.75
    """Probability that a crop's latents come from --denoiser."""
    seed: Seed = 0
    """Random seed."""
    save_every_s: NonNegativeFloat = 180.0
    """Seconds between checkpoints."""
    log_every: Count = 20
    """Steps averaged in a row of loss.csv."""

    def __post_init__(self) -> None:
        if self.crop_size % self.patch_size:
            raise ValueError(
                f"expected {flag('crop_size')} in steps of {flag('patch_size')} {self.patch_size}, "
                f"got {self.crop_size}"
            )


@dataclass(frozen=True)
@checked
class TrainReconstructorConfig:
    """Train the network by which `spad reconstruct --network` gives a surface in one pass.

    Some views of an object go in, and renders of the surface that comes out are compared with
    these and others. Ctrl-C saves; the same command resumes.
    """

    data: Path
    """Folder written by `spad render` or `spad pack`."""
    output: Path
    """Run folder; the network is saved in its `model` folder."""
    steps: Count = 3000
    """Optimizer steps, each of one object."""
    views: Annotated[tuple[Annotated[int, Ge(3)], ...], MinLen(1)] = (4, 8)
    """Numbers of views that go in; each step picks one."""
    targets: CountOrZero = 4
    """Further views that the surface is rendered for."""
    image_size: Annotated[int, Interval(ge=16, le=1024)] = 128
    """Longer side of the images; larger ones are made smaller."""
    cells: Annotated[int, Interval(ge=16, le=256)] = 40
    """Grid cells along the object's longest side."""
    view_channels: Annotated[int, Interval(ge=1, le=256)] = 12
    """Features of a pixel."""
    channels: tuple[VolumeWidth, VolumeWidth] = (24, 48)
    """Channels of the volume at full and at half resolution."""
    rays: Annotated[int, Interval(ge=16, le=1_000_000)] = 4096
    """Pixels that are compared in a step."""
    drawn_prob: Share = 0.5
    """Probability that the views that go in have errors as those that a model draws."""
    learning_rate: NonNegativeFloat = 1e-3
    """Highest learning rate."""
    warmup_steps: CountOrZero = 50
    """Steps in which the learning rate rises."""
    seed: Seed = 0
    """Random seed."""
    save_every_s: NonNegativeFloat = 180.0
    """Seconds between checkpoints."""
    log_every: Count = 20
    """Steps averaged in a row of loss.csv."""


@dataclass(frozen=True)
@checked
class ModelConfig:
    """Trained layers and conditioning. Settings without a value are those of --init."""

    trainable: Literal["all", "new-layers", "lora"] = "all"
    """all: the whole UNet. new-layers: only the layers that SPAD adds to the base model. lora:
    these and low-rank updates of the attention. The last two need less GPU memory."""
    train_text_encoder: bool = True
    """Train the text encoders too."""
    lora_rank: Count = 32
    """Rank of the low-rank updates."""
    epipolar: Literal["exact", "original", "none"] | None = None
    """Masks of the attention between views. Default: that of --init, or exact."""
    rays: Literal["map", "qk", "both", "none"] | None = None
    """Plücker coordinates of rays. map: added to the features before every transformer. qk: added
    to the queries and keys of the attention between views. Default: that of --init, or map."""
    camera_embedding: bool | None = None
    """Camera vector added to the timestep embedding. Default: that of --init, or on."""
    cameras: Literal["absolute", "relative"] | None = None
    """Poses in the camera vector: absolute, or relative to view 0. Default: that of --init, or
    absolute."""
    intrinsics: bool | None = None
    """Intrinsics in the camera vector. Default: that of --init, or off."""
    view_attention: Literal["shared", "added"] | None = None
    """Attention between views. shared: the self-attention of --init sees all views. added: it sees
    one, and a copy of it sees all, whose output starts at zero. Default: that of --init, or
    shared."""
    band_width: PositiveFloat | None = None
    """Width of exact epipolar bands in latent pixels. Default: that of --init, or 2."""
    ball_radius: Annotated[float, Interval(ge=0.1, le=10_000)] | None = None
    """End exact epipolar bands where rays leave a ball of this radius about the origin. Default:
    that of --init, or no end."""
    block_out_channels: Annotated[tuple[Annotated[int, Ge(32), MultipleOf(32)], ...], MinLen(1)] = (
        64,
        160,
        224,
    )
    """Channels of the levels of a UNet from scratch, finest first."""
    text_width: Annotated[int, Ge(64), MultipleOf(64)] = 256
    """Width of a text encoder from scratch."""


@dataclass(frozen=True)
@checked
class BatchConfig:
    """Views, captions and images in a step."""

    views: Annotated[tuple[Count, ...], MinLen(1)] = (1, 4, 8)
    """Views of an object that are denoised together; each step draws one of these numbers."""
    view_sampling: Literal["random", "orthogonal", "mixed"] = "mixed"
    """Choice of views. orthogonal: four, a quarter turn apart. mixed: random or orthogonal with
    equal probability."""
    batch_size: Count = 64
    """Views in a step, on all devices together."""
    image_size: Annotated[int, Interval(ge=16, le=4096)] | None = None
    """Side of the images in pixels: larger ones of the data are reduced to it, and a model of
    another size given with --init learns this one. Default: the data's."""
    clean_view_prob: Share = 0.3
    """Image conditioning: probability that a random subset of an object's views is given without
    noise."""
    caption_dropout: Share = 0.1
    """Probability of an empty caption, for classifier-free guidance."""
    clean_view_caption_dropout: Share = 0.6
    """The same where views are given, so that the model must use the images."""
    word_dropout: Share = 0.02
    """Probability that a word is replaced by the unknown word; for text encoders from scratch."""
    depth_prob: Share = 0.0
    """Probability that a step gives depth maps, so that the model learns to draw on shapes that are
    given. The shards need depth."""
    images: Path | None = None
    """Folder of images with metadata.jsonl ({"file_name", "text"} a line). Steps of such images,
    without cameras, keep what the base model knows."""
    image_batch_prob: Share = 0.3
    """Probability that a step uses --images."""

    def __post_init__(self) -> None:
        if any(self.batch_size % views for views in self.views):
            raise ValueError(
                f"expected {flag('batch_size')}, which counts views, to be a multiple of "
                f"{flag('views')} {self.views}, got {self.batch_size}"
            )


@dataclass(frozen=True)
@checked
class LossConfig:
    """Noise, prediction target and loss weights."""

    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """Prediction target of the UNet: the noise, the velocity or the clean latents. Default: that of
    --init, or sample."""
    rescale_betas_zero_snr: bool | None = None
    """End the noise schedule in pure noise (Lin et al. 2024); not possible with epsilon. Default:
    as --init, or on."""
    timestep_shift: PositiveFloat = 3.0
    """Above 1, noisy timesteps are drawn more often: t = s u / (1 + (s - 1) u) of uniform u (Esser
    et al. 2024)."""
    min_snr_gamma: PositiveFloat | None = None
    """Cap on the signal-to-noise weight (Hang et al. 2023). Default: equal weights."""
    max_x0_weight: PositiveFloat = 3.0
    """With --prediction-type sample, losses are weighted by SNR + 1; this caps the weight so that
    nearly clean timesteps do not dominate."""
    snr_shift: PositiveFloat | Literal["tokens"] | None = None
    """Divide the signal-to-noise ratio of the noisiest timestep by this, of others by less. tokens:
    by the views' pixels over those of the images of the base model. Default: as --init."""
    offset_noise: NonNegativeFloat = 0.0
    """Standard deviation of noise that is constant over a view; 0.1 helps with dark and bright
    images."""

    def __post_init__(self) -> None:
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "expected sample or v_prediction where the noise schedule ends in pure noise, got "
                "epsilon; try --no-rescale-betas-zero-snr"
            )


@dataclass(frozen=True)
@checked
class OptimizerConfig:
    """Optimizer and learning rate."""

    steps: Count = 2_160
    """Optimizer steps."""
    learning_rate: NonNegativeFloat = 1e-3
    """Highest learning rate."""
    ray_rate: PositiveFloat = 1.0
    """Learning rate of the layers of --rays, as a multiple of that of the others. They start at
    zero, so that a run of a few hundred steps needs about 20 to see what they do."""
    lr_schedule: Literal["constant", "cosine", "cooldown"] = "cooldown"
    """Learning rate after the warm-up. cosine falls to a fiftieth at the last step, cooldown to 0
    over the last quarter of the steps. Before it falls, a run may be given other --steps."""
    warmup_steps: CountOrZero = 100
    """Steps in which the learning rate rises."""
    optimizer: Literal["muon", "adamw", "adamw-8bit", "adafactor"] = "muon"
    """muon needs fewer steps from scratch, and excludes --fsdp; adamw-8bit needs CUDA and
    bitsandbytes; adafactor needs the least memory."""
    adam_beta2: Decay = 0.99
    """Decay of AdamW's average of squared gradients."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Norm that larger gradients are scaled down to."""
    ema_decay: Decay = 0.999
    """Decay of the averaged weights, which are saved and sampled with; 0 turns averaging off."""


@dataclass(frozen=True)
@checked
class HardwareConfig:
    """Devices, memory and speed."""

    device: str | None = None
    """Device, such as cpu, cuda or mps. Default: the fastest available."""
    micro_batch_size: Count | None = None
    """Views that a device processes at once. Default: all of its share of --batch-size."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Data type of activations; weights are float32. auto is bf16 on a GPU that has it, and on a
    processor that is faster with it in a trial; a resumed run keeps what it has."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them."""
    compile: bool = False
    """Compile the UNet: takes minutes, then steps on a GPU are faster."""
    fsdp: bool = False
    """Shard optimizer and weights over the processes (FSDP) instead of copying them (DDP)."""
    num_workers: CountOrZero = 0
    """Processes that read data ahead."""
    verify: bool = False
    """Compare the shards with their checksums before the first step."""


@dataclass(frozen=True)
@checked
class RecordConfig:
    """Checkpoints, logs, sample images and the saved model."""

    save_every_s: NonNegativeFloat = 300.0
    """Seconds between checkpoints."""
    keep_last: Count = 2
    """Number of checkpoints kept."""
    log_every: Count = 20
    """Steps averaged in a row of loss.csv."""
    sample_every: CountOrZero = 500
    """Steps between sample images; 0 turns them off."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sample images. Default: four captions of the data."""
    num_inference_steps: Count = 25
    """Denoising steps of the sample images."""
    trackers: tuple[str, ...] | None = None
    """Names of accelerate's trackers, such as tensorboard or wandb. Default: tensorboard if
    installed."""
    guidance_scale: GuidanceScale = 4.0
    """Strength of the prompt in sample images, and the saved model's default."""
    guidance_rescale: Share = 0.7
    """Correction of the contrast that guidance adds; 0 is none. Also the saved model's default."""
    save_dtype: Literal["float16", "float32"] = "float16"
    """Data type of the saved weights."""
    description: str = ""
    """Description in the model card."""
    license: str = ""
    """License in the model card."""
    author: str = ""
    """Author in the model card."""


# Settings that change nothing of the result but rounding; a resumed run may have others.
MAY_CHANGE = frozenset(
    field.name for group in (HardwareConfig, RecordConfig) for field in fields(group)
) - {"mixed_precision", "fsdp"}


@dataclass(frozen=True)
@checked
class TrainConfig:
    """Train a model on shards, or continue from a model. Ctrl-C saves; the same command resumes.

    A step processes `batch_size` views on all devices together: each device takes its share,
    `micro_batch_size` views at once, and accumulates the gradients. The data of a step depend only
    on the seed and the step.

    Several devices: torchrun --nproc-per-node 8 -m spad train …, or accelerate launch.
    """

    preset: Literal["mini", "two-views", "four-views", "sdxl"] = "mini"
    """Default values of all settings. mini: a small model from scratch, as the one in the package.
    two-views, four-views: those of the paper, from Stable Diffusion (--init). sdxl: four views,
    from a frozen Stable Diffusion XL (--init)."""
    data: Path = Path("shards")
    """Folder written by `spad pack` or `spad render --pack`."""
    output: Path | None = None
    """Run folder; the model is saved in its `model` folder. Default: runs/PRESET."""
    objects: Path | None = None
    """File of object ids, one a line: train only on these and their variants. One object in sixteen
    is always held out."""
    init: str | None = None
    """Model to start from: a name or a folder, such as `spad init-from-base` makes. Default: train
    from scratch."""
    vae: str = "mini"
    """Model or autoencoder folder whose autoencoder a model from scratch uses."""
    seed: Seed = 0
    """Random seed; the same seed repeats the run."""
    dry_run: bool = False
    """Measure time, memory and disk in three steps that are not kept, and write nothing."""
    model: ModelConfig = ModelConfig()
    batch: BatchConfig = BatchConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    hardware: HardwareConfig = HardwareConfig()
    record: RecordConfig = RecordConfig()

    def __post_init__(self) -> None:
        if self.optimizer.optimizer == "muon" and self.hardware.fsdp:
            raise ValueError(
                "expected another --optimizer with --fsdp: muon needs unsharded matrices, got muon"
            )
        if self.model.trainable == "lora" and self.hardware.fsdp:
            raise ValueError("expected --trainable lora without --fsdp: there is little to shard")
        # Other presets ask for --init whatever is trained.
        is_from_scratch = self.init is None and self.preset == "mini"
        if self.model.trainable != "all" and is_from_scratch:
            raise ValueError(
                f"expected --init with --trainable {self.model.trainable}: a model from scratch "
                "has no weights to freeze"
            )

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return self.output or Path("runs") / self.preset


_PAPER = TrainConfig(
    preset="two-views",
    model=ModelConfig(
        train_text_encoder=False,
        epipolar="exact",
        rays="map",
        camera_embedding=True,
        cameras="relative",
        intrinsics=False,
    ),
    batch=BatchConfig(
        views=(2,), view_sampling="random", batch_size=1152, clean_view_prob=0.0, word_dropout=0.0
    ),
    loss=LossConfig(prediction_type="epsilon", rescale_betas_zero_snr=False, timestep_shift=1.0),
    optimizer=OptimizerConfig(
        steps=40_000,
        learning_rate=1e-4,
        lr_schedule="constant",
        optimizer="adamw",
        adam_beta2=0.999,
        ema_decay=0.9999,
    ),
    hardware=HardwareConfig(
        micro_batch_size=16, mixed_precision="bf16", gradient_checkpointing=True, num_workers=4
    ),
    record=RecordConfig(
        save_every_s=1800.0, sample_every=1000, guidance_scale=7.5, guidance_rescale=0.0
    ),
)
# Source of the two from the paper: SPAD, section 4 and its supplement; the release's
# configurations for cameras and learning rates. The paper does not say whether its batch of 1152
# to 1728 counts objects or views.
PRESETS: dict[str, TrainConfig] = {
    "mini": TrainConfig(),
    "two-views": _PAPER,
    "four-views": replace(
        _PAPER,
        preset="four-views",
        model=replace(_PAPER.model, cameras="absolute", intrinsics=True),
        batch=replace(_PAPER.batch, views=(4,), view_sampling="mixed"),
        optimizer=replace(_PAPER.optimizer, steps=100_000, learning_rate=2e-5),
    ),
    # Source: MV-Adapter (Huang et al. 2024), section 4, for the frozen base, the learning rate and
    # its warm-up, and the shift of noise.
    "sdxl": replace(
        _PAPER,
        preset="sdxl",
        model=replace(
            _PAPER.model,
            trainable="new-layers",
            view_attention="added",
            cameras="absolute",
            intrinsics=True,
        ),
        batch=replace(_PAPER.batch, views=(4,), view_sampling="mixed", batch_size=64),
        loss=replace(_PAPER.loss, snr_shift="tokens"),
        optimizer=replace(_PAPER.optimizer, steps=50_000, learning_rate=5e-5, warmup_steps=2000),
        hardware=replace(_PAPER.hardware, micro_batch_size=4),
        record=replace(_PAPER.record, guidance_scale=5.0),
    ),
}


@dataclass(frozen=True)
@checked
class ExportConfig:
    """Write a trained model and the record of its training to one folder, ready to publish."""

    runs: Annotated[Positional[tuple[Path, ...]], MinLen(1)]
    """Run folders of `spad train` in chronological order; the model of the last one is exported."""
    data: Path
    """Folder written by `spad render` or `spad pack`; its hash is recorded."""
    output: Path
    """Output folder; must not exist."""
    autoencoder: Path | None = None
    """Run folder of `spad train-autoencoder`. Default: the autoencoder of the model."""
    description: str = ""
    """Description in the model card."""
    license: str = ""
    """License in the model card."""
    author: str = ""
    """Author in the model card."""
    guidance_scale: GuidanceScale = 4.0
    """The model's default strength of text guidance."""
    guidance_scale_with_image: GuidanceScale | None = None
    """The model's default strength of text guidance with an input image. Default:
    --guidance-scale."""
    guidance_rescale: Share = 0.7
    """The model's default share of the contrast added by guidance that is removed."""
    scheduler: Literal["ddim", "dpm++", "unipc", "euler"] | None = None
    """The model's default sampler. Default: that of the last run."""
    num_inference_steps: Count | None = None
    """The model's default number of denoising steps. Default: that of the last run."""
    hub: bool = False
    """Add what the Hugging Face hub and diffusers need: files that name the classes of the
    pipeline, and the header of the model card."""
