"""Settings of training, as values, and its presets. Imports nothing heavy."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

Switch = Literal["on", "off"]


@dataclass(frozen=True)
class TrainAutoencoderConfig:
    """Fit the small autoencoder, train its decoder. Loss: L1 of pixels and of their gradients.

    Ctrl-C saves; the same command resumes.
    """

    data: Path
    """Folder that `spad render` or `spad pack` wrote."""
    output: Path
    """Run folder; the model goes to its `vae` folder."""
    init: Path | None = None
    """Folder of an autoencoder whose decoder to train on. Its encoder stays as it is, so models
    trained on its latents still fit."""
    steps: int = 2000
    batch_size: int = 24
    crop_size: int = 64
    """In pixels, a multiple of 16."""
    latent_channels: int = 32
    """Principal components kept of every patch of 16 x 16 pixels."""
    block_out_channels: tuple[int, ...] = (48, 96, 160)
    learning_rate: float = 1.5e-3
    warmup_steps: int = 50
    edge_weight: float = 0.5
    latent_noise: float = 0.1
    """Deviation of the noise the decoder learns to ignore; latents have about one."""
    denoiser: Path | None = None
    """Model folder with the same encoder: the decoder also learns from the latents that it makes,
    which are wrong in other ways than by noise."""
    denoised_share: float = 0.75
    """Share of crops whose latents come from `denoiser`."""
    seed: int = 0
    save_every_s: float = 180.0
    """Seconds between checkpoints."""
    log_every: int = 20
    """Steps that one row of loss.csv averages."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a model on shards, or go on with one. Ctrl-C saves; the same command resumes.

    A step takes `batch_size` views on all devices together, whatever their number and memory:
    each device takes its share `micro_batch_size` views at once and adds up the gradients. What is
    learned from in a step depends on the seed and the step alone.

    Several devices: torchrun --nproc-per-node 8 -m spad train …, or accelerate launch.
    """

    preset: Literal["mini", "two-views", "four-views"] = "mini"
    """mini: a small model from scratch, as the one in the package. two-views, four-views: the
    paper's settings, from Stable Diffusion (--init). Other flags change single settings."""
    data: Path = Path("shards")
    """Folder that `spad pack` or `spad render --pack` wrote."""
    output: Path | None = None
    """Run folder; the model goes to its `model` folder. runs/PRESET if left out."""
    objects: Path | None = None
    """Learn only from the ids in this file, one a line, and their variants. Of all, one in sixteen
    is held out."""
    init: str | None = None
    """Model to start from, a name or a folder, such as `spad init-from-sd` makes; none starts
    from scratch."""
    vae: str = "mini"
    """Model or autoencoder folder whose autoencoder a model from scratch uses."""
    dry_run: bool = False
    """Say what it would cost, after three steps that are not kept, and write nothing."""

    # What is learned
    learn: Literal["all", "new-layers", "lora"] = "all"
    """new-layers: only what a SPAD adds to Stable Diffusion. lora: that, and low-rank updates of
    the attention. Both for small GPUs."""
    train_text_encoder: Switch = "on"
    """Whether the text encoder learns too."""
    lora_rank: int = 32
    """Of the updates."""
    epipolar: Literal["exact", "original", "none"] | None = None
    """Masks of the attention between views; as --init has it if left out, else exact."""
    plucker: Switch | None = None
    """Plücker coordinates in every transformer; as --init has it if left out, else on."""
    camera_embedding: Switch | None = None
    """Camera vector beside the timestep; as --init has it if left out, else on."""
    cameras: Literal["absolute", "relative"] | None = None
    """What the camera embedding reads; as --init has it if left out, else absolute."""
    intrinsics: Switch | None = None
    """Whether it also reads the intrinsics; as --init has it if left out, else off."""
    band_width: float | None = None
    """Of exact masks, in latents; as --init has it if left out, else 2."""
    ball_radius: float | None = None
    """End exact masks where rays leave this ball about the origin, which holds the object; as
    --init has it if left out, else they go on."""
    block_out_channels: tuple[int, ...] = (160, 192)
    """Widths of a UNet from scratch, finest first."""
    text_width: int = 256
    """Of a text encoder from scratch."""

    # What a step sees
    steps: int = 2_160
    """Of the optimiser."""
    num_views: tuple[int, ...] = (1, 4)
    """Views of an object denoised together; one of these numbers is drawn for each step."""
    views: Literal["random", "orthogonal", "mixed"] = "mixed"
    """mixed: four random ones, or with equal chance four a quarter turn apart."""
    batch_size: int = 32
    """Views in a step, on all devices."""
    micro_batch_size: int | None = None
    """Views that a device takes at once; all of its share if left out."""
    clean_view_prob: float = 0.25
    """Share of objects whose view 0 is given clean, at timestep 0: image conditioning."""
    caption_dropout: float = 0.1
    """Share of captions left out, for guidance."""
    clean_view_caption_dropout: float = 0.5
    """The same where view 0 is given: what a caption says need not be looked for in the picture."""
    word_dropout: float = 0.02
    """Share of words replaced by the unknown word; for text encoders from scratch."""
    images: Path | None = None
    """Folder of pictures with metadata.jsonl ({"file_name", "text"} a line): steps of single
    pictures without cameras keep what the base model knows."""
    image_batch_prob: float = 0.3
    """Share of such steps, with --images."""

    # The loss
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the UNet predicts: the noise, the velocity, or the clean latents; as --init has it if
    left out, else sample."""
    rescale_betas_zero_snr: bool | None = None
    """End the noise schedule in noise alone (Lin et al. 2024), not with epsilon; as --init has it
    if left out, else so."""
    timestep_shift: float = 2.5
    """Above 1, noisy timesteps are drawn more often: t = s u / (1 + (s - 1) u) of uniform u (Esser
    et al. 2024)."""
    min_snr_gamma: float | None = None
    """Cap on the signal-to-noise weight (Hang et al. 2023); none weighs all timesteps alike."""
    max_x0_weight: float = 3.0
    """With --prediction-type sample: errors weigh as those of the velocity, 1 + signal-to-noise,
    but no more than this, or the least noise would outweigh all else."""
    offset_noise: float = 0.0
    """Deviation of noise that is the same all over a view; 0.1 helps to draw dark and light."""

    # The optimiser
    learning_rate: float = 1e-3
    """At its highest."""
    lr_schedule: Literal["constant", "cosine", "cooldown"] = "cooldown"
    """After the warm-up; cosine falls to a fiftieth at the last step, cooldown to nothing over the
    last quarter of the steps. Before it falls, a run can be given other --steps."""
    warmup_steps: int = 100
    """In which the learning rate rises."""
    optimizer: Literal["muon", "adamw", "adamw-8bit", "adafactor"] = "muon"
    """muon learns from scratch in fewer steps, not with --fsdp; adamw-8bit needs CUDA and
    bitsandbytes; adafactor keeps almost nothing in memory."""
    adam_beta2: float = 0.99
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    """Longer gradients are scaled down to it."""
    ema_decay: float = 0.999
    """Of the averaged weights, which are those saved and sampled with; 0 averages nothing."""

    # The machine
    device: str | None = None
    """Such as cpu, cuda or mps; the fastest there is if left out."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Of activations; weights stay in float32."""
    gradient_checkpointing: bool = False
    """Compute activations twice, to store a fraction of them."""
    compile: bool = False
    """Compile the UNet: some minutes, then faster steps on a GPU."""
    fsdp: bool = False
    """Share optimiser and weights out among the processes (FSDP) instead of copying them (DDP)."""
    num_workers: int = 0
    """Processes that read data ahead."""
    verify: bool = False
    """Compare the shards with their checksums first."""

    # What is seen and kept of it
    seed: int = 0
    """Of all that is drawn: the same one repeats the run."""
    save_every_s: float = 300.0
    """Seconds between checkpoints."""
    keep_last: int = 2
    """Checkpoints kept."""
    log_every: int = 20
    """Steps that one row of loss.csv averages."""
    sample_every: int = 500
    """Steps between sample pictures; 0 draws none."""
    sample_prompts: tuple[str, ...] = ()
    """Four captions of the data if left out."""
    num_inference_steps: int = 25
    """Denoising steps of samples."""
    trackers: tuple[str, ...] | None = None
    """Names of accelerate's trackers, such as tensorboard or wandb; tensorboard, where it is
    installed, if left out."""
    guidance_scale: float = 4.0
    """Strength of the prompt that samples, and later the model, are drawn with."""
    guidance_rescale: float = 0.7
    """How far it is kept from raising contrast."""
    save_dtype: Literal["float16", "float32"] = "float16"
    """Of the saved model."""
    description: str = ""
    """For the model card, as the next two."""
    license: str = ""
    author: str = ""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "log_every",
            "keep_last",
            "num_inference_steps",
            "lora_rank",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in (
            "clean_view_prob",
            "caption_dropout",
            "clean_view_caption_dropout",
            "word_dropout",
            "image_batch_prob",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} of 0 to 1, got {getattr(self, name)}")
        for name in ("learning_rate", "offset_noise", "warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"expected ema_decay of 0 to below 1, got {self.ema_decay}")
        for name in ("timestep_shift", "max_grad_norm", "max_x0_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        if not self.num_views or any(n < 1 or self.batch_size % n for n in self.num_views):
            raise ValueError(
                f"expected batch_size to be a multiple of num_views {self.num_views}, got "
                f"{self.batch_size}; it counts views"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "expected sample or v_prediction where the schedule ends in noise alone, got "
                "epsilon; try --no-zero-terminal-snr"
            )
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise ValueError(f"expected min_snr_gamma above 0, got {self.min_snr_gamma}")
        if self.optimizer == "muon" and self.fsdp:
            raise ValueError(
                "expected another --optimizer with --fsdp: muon needs matrices whole, got muon"
            )
        if self.learn != "all" and self.init is None:
            raise ValueError(f"expected --init with --learn {self.learn}: nothing is there to keep")

    @property
    def run_folder(self) -> Path:
        """Where the run lives."""
        return self.output or Path("runs") / self.preset


_PAPER = TrainConfig(
    preset="two-views",
    train_text_encoder="off",
    epipolar="exact",
    plucker="on",
    camera_embedding="on",
    cameras="relative",
    intrinsics="off",
    steps=40_000,
    num_views=(2,),
    views="random",
    batch_size=1152,
    micro_batch_size=16,
    clean_view_prob=0.0,
    word_dropout=0.0,
    prediction_type="epsilon",
    rescale_betas_zero_snr=False,
    timestep_shift=1.0,
    learning_rate=1e-4,
    lr_schedule="constant",
    warmup_steps=100,
    optimizer="adamw",
    adam_beta2=0.999,
    ema_decay=0.9999,
    mixed_precision="bf16",
    gradient_checkpointing=True,
    num_workers=4,
    save_every_s=1800.0,
    sample_every=1000,
    guidance_scale=7.5,
    guidance_rescale=0.0,
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
        cameras="absolute",
        intrinsics="on",
        steps=100_000,
        num_views=(4,),
        views="mixed",
        learning_rate=2e-5,
    ),
}


@dataclass(frozen=True)
class ExportConfig:
    """Put a trained model and the record of its training into one folder, ready to ship."""

    runs: Positional[tuple[Path, ...]]
    """Folders of the denoiser's runs in the order they were made; the last one is shipped."""
    data: Path
    """Folder that `spad render` or `spad pack` wrote, for the hash of what was learned from."""
    output: Path
    """Folder to make."""
    autoencoder: Path | None = None
    """Run folder of another autoencoder than that of the model."""
    description: str = ""
    license: str = ""
    author: str = ""
    guidance_scale: float = 4.0
    """Strength of the prompt that the model draws with unless told otherwise."""
    guidance_scale_with_image: float | None = None
    """The same where a picture is given; no other if left out."""
    guidance_rescale: float = 0.7
    """How far it is kept from raising contrast, unless told otherwise."""
    scheduler: Literal["ddim", "dpm++", "unipc", "euler"] | None = None
    """Solver that it draws with, unless told otherwise; that of the last run if left out."""
    num_inference_steps: int | None = None
    """Steps that it takes; as the last run's model if left out."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("expected the run folders of the denoiser, got none")
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(
                f"expected num_inference_steps of at least 1, got {self.num_inference_steps}"
            )
