"""Settings of `spad convert`, `spad init-from-base` and `spad download`. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from spad.settings import Count, checked


@dataclass(frozen=True)
@checked
class ConvertConfig:
    """Convert a checkpoint of the original release to a model folder with safetensors."""

    checkpoint: Positional[Path]
    """Checkpoint file (.ckpt) in the original's layout."""
    output: Positional[Path]
    """Model folder to make."""
    clip: Path | None = None
    """Folder with the files of CLIP's tokenizer (vocab.json, merges.txt, …), and a config.json if
    the text encoder is not ViT-L/14. Default: the hub's cache."""
    config: Path | None = None
    """Configuration of the checkpoint (YAML or JSON). Default: that of the released models."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged weights (ema), with which the original samples, or those of the last step (raw)."""
    dtype: Literal["float32", "float16"] = "float32"
    """Data type of the saved weights; float16 halves their size."""
    name: str = ""
    """Name of the model. Default: the output folder's name."""


@dataclass(frozen=True)
@checked
class InitFromBaseConfig:
    """Make an untrained SPAD from Stable Diffusion 1.5, 2.1-base or XL, as a start for training."""

    source: Positional[Path]
    """Base model: a folder in diffusers' layout, or one .ckpt or .safetensors file. The names sd15,
    sd21 and sdxl say where such files are."""
    output: Positional[Path]
    """Model folder to make."""
    clip: Path | None = None
    """Folder with the files of CLIP's tokenizer, for a single file. Default: the hub's cache."""
    image_size: Count | None = None
    """Side in pixels of the images that it will be trained on. Default: 256, or 512 for Stable
    Diffusion XL."""
    cameras: Literal["absolute", "relative"] = "absolute"
    """Poses for the camera embedding: absolute, as in the release's four-view model, or relative
    to the first view, as in its two-view model."""
    intrinsics: bool = True
    """Give the camera embedding the intrinsics too, as in the release's four-view model."""
    epipolar: Literal["exact", "original", "none"] = "exact"
    """Epipolar masks of the attention between views: exact ones or those of the release."""
    dtype: Literal["float32", "float16"] = "float32"
    """Data type of the saved weights; float16 halves their size."""


@dataclass(frozen=True)
@checked
class DownloadConfig:
    """Download a released model from the Hugging Face hub, convert it and install it.

    Resumes an interrupted download. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are
    respected; models are installed in $SPAD_HOME/models, or ~/.cache/spad/models.
    """

    model: Positional[str]
    """Name of the model: spad_two_views or spad_four_views."""
    yes: bool = False
    """Download without asking."""
    clip: Path | None = None
    """Folder with the files of CLIP's tokenizer. Default: they are downloaded."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged weights (ema), with which the original samples, or those of the last step (raw)."""
    dtype: Literal["float32", "float16"] = "float32"
    """Data type of the installed weights; float16 halves their size."""
    keep_original: bool = False
    """Keep the original checkpoint in the hub's cache after the conversion."""
