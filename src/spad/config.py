"""Settings of every long job, as values. Imports nothing heavy: the command line reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

_NORMALIZATIONS = ("sphere", "cube")
_PASSES = ("depth", "normals", "mask")


@dataclass(frozen=True)
class AutoencoderTraining:
    """Fit the small autoencoder, train its decoder. Loss: L1 of pixels and of their gradients."""

    data: Path
    """Folder that `spad render` wrote."""
    output: Path
    """Run folder; the model goes to its `vae` folder."""
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
    seed: int = 0
    save_every_s: float = 180.0
    """Seconds between checkpoints."""
    log_every: int = 20
    """Steps that one row of loss.csv averages."""


@dataclass(frozen=True)
class DenoiserTraining:
    """Train a MultiViewUNet and its text encoder from scratch, or go on from a saved model."""

    data: Path
    """Folder that `spad render` wrote."""
    output: Path
    """Run folder; the pipeline goes to its `model` folder."""
    vae: Path
    """Folder of a trained autoencoder."""
    init: Path | None = None
    """Pipeline folder whose UNet and text encoder to start from."""
    steps: int = 5000
    views_per_object: tuple[int, ...] = (1,)
    """Views denoised together; one of these numbers is drawn for every step."""
    views_per_step: int = 48
    """Batch size in views, so that every step costs about the same."""
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    text_dropout: float = 0.1
    word_dropout: float = 0.02
    """Share of words replaced by the unknown word, so that unknown words do no harm later."""
    clean_view_share: float = 0.25
    """Share of steps of several views that hold view 0 clean at timestep 0."""
    min_snr_gamma: float | None = None
    """Cap on the signal-to-noise weight; none weighs all timesteps alike. Small latents need the
    noisy timesteps, where text decides the shape, and this weight all but drops them."""
    ema_decay: float = 0.999
    block_out_channels: tuple[int, ...] = (160, 192)
    text_width: int = 256
    band_width: float = 2.0
    prediction_type: Literal["v_prediction", "epsilon"] = "v_prediction"
    seed: int = 0
    save_every_s: float = 180.0
    """Seconds between checkpoints."""
    log_every: int = 20
    """Steps that one row of loss.csv averages."""


@dataclass(frozen=True)
class Export:
    """Put a trained model and the record of its training into one folder, ready to ship."""

    runs: Positional[tuple[Path, ...]]
    """Folders of the denoiser's runs in the order they were made; the last one is shipped."""
    autoencoder: Path
    """Run folder of the autoencoder."""
    data: Path
    """Folder that `spad render` wrote, for the hash of what was learned from."""
    output: Path
    """Folder to make."""
    description: str = ""
    licence: str = ""
    author: str = ""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("expected the run folders of the denoiser, got none")


@dataclass(frozen=True)
class RenderConfig:
    """Render views of 3D models, in the form that `spad train` and nerfstudio read."""

    assets: Positional[Path]
    """Folder of models (GLB, glTF, OBJ, PLY, STL), or a .jsonl index of them."""
    output: Path
    """Folder for the results; the same command goes on where an earlier one stopped."""
    root: Path | None = None
    """Folder that the index's paths start from; the index's own if left out."""
    image_size: int = 128
    """Side of the pictures in pixels."""
    num_random: int = 12
    """Views of each object from random cameras."""
    num_orthogonal_sets: int = 3
    """Sets of four views of each object, a quarter turn apart."""
    samples_per_side: int = 2
    """Rays along each side of a pixel: 2 casts four a pixel."""
    passes: tuple[Literal["depth", "normals", "mask"], ...] = ()
    """What to write beside the colours."""
    normalize: Literal["sphere", "cube"] = "sphere"
    """Fit the object into the sphere of radius 1, or the cube of side 1."""
    up: Literal["y", "z"] | None = None
    """The models' up axis; y for glTF and z for others if left out."""
    seed: int = 0
    """Of the cameras."""
    workers: int = 0
    """Processes; 0 takes one for each core."""
    limit: int | None = None
    """Render only the first few models."""

    def __post_init__(self) -> None:
        lowest = {"image_size": 1, "num_random": 0, "num_orthogonal_sets": 0}
        lowest |= {"samples_per_side": 1, "workers": 0, "limit": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"expected {name} of at least {low}, got {value}")
        if self.num_random + self.num_orthogonal_sets == 0:
            raise ValueError("expected some views, got num_random 0 and num_orthogonal_sets 0")
        if self.normalize not in _NORMALIZATIONS:
            raise ValueError(f"expected normalize in {_NORMALIZATIONS}, got {self.normalize!r}")
        for name in self.passes:
            if name not in _PASSES:
                raise ValueError(f"expected passes among {_PASSES}, got {name!r}")


@dataclass(frozen=True)
class Generation:
    """Draw one object, or several, from the cameras you ask for.

    Cameras stand on an orbit (--views, --elevation, --azimuth, --radius, --fov-deg) or come from
    a file (--cameras). What is left out takes the model's own default.
    """

    prompt: Positional[str | None] = None
    """What to draw: one object, as in "a blue fish"."""
    prompts: Path | None = None
    """Text file of prompts, one per line, instead of a prompt."""
    negative_prompt: str = ""
    """What to lead away from."""
    views: int | None = None
    """Number of pictures of each object; 4 if nothing else says."""
    elevation: tuple[float, ...] | None = None
    """Degrees above the horizon: one value, or one per view."""
    azimuth: tuple[float, ...] | None = None
    """Degrees counter-clockwise seen from above, -90 is the front: one value, or one per view.
    Evenly round from -60 if left out."""
    radius: tuple[float, ...] | None = None
    """Distance from the object, whose radius is 1: one value, or one per view."""
    fov_deg: tuple[float, ...] | None = None
    """Field of view across the picture, degrees: one value, or one per view."""
    cameras: Path | None = None
    """Poses instead of an orbit: transforms.json, a COLMAP text model or Blender cameras."""
    image: Path | None = None
    """Picture of the object as the first camera sees it; the other views are drawn to fit."""
    model: str = "mini"
    """Name of an embedded model (see `spad models`) or a folder."""
    output: Path | None = None
    """Folder to make; spad-out/PROMPT-SEED if left out."""
    overwrite: bool = False
    """Replace the output folder if an earlier run made it."""
    seed: int = 0
    """Of the starting noise. The same seed on the same machine draws the same pictures."""
    cfg_scale: float | None = None
    """Strength of the prompt; 1 turns guidance off."""
    blob_sigma: float | None = None
    """Size of the blob that sampling starts from, in half pictures."""
    ddim_steps: int | None = None
    """Denoising steps, of any scheduler."""
    scheduler: str | None = None
    """ddim, dpm++, unipc or euler."""
    size: int | None = None
    """Side of the pictures in pixels."""
    device: str | None = None
    """Such as cpu, cuda or mps; the fastest there is if left out."""
