"""Settings of `spad convert`, `spad init-from-sd` and `spad download`. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from spad.settings import checked


@dataclass(frozen=True)
@checked
class ConvertConfig:
    """Turn a checkpoint of the original release into a model folder of safetensors."""

    checkpoint: Positional[Path]
    """The original's .ckpt file."""
    output: Positional[Path]
    """Folder to make."""
    clip: Path | None = None
    """Folder with the files of CLIP's tokenizer (vocab.json, merges.txt, …), and a config.json if
    the text encoder is not ViT-L/14; the hub's cache if left out."""
    config: Path | None = None
    """The original's configuration (YAML or JSON), if it is not a released one."""
    weights: Literal["ema", "raw"] = "ema"
    """The averaged weights, which the original samples with, or those of the last step."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the weights; float16 takes half the space."""
    name: str = ""
    """Of the model; that of the folder if left out."""


@dataclass(frozen=True)
@checked
class InitFromSDConfig:
    """Widen Stable Diffusion 1.5 to an untrained SPAD: what training starts from."""

    source: Positional[Path]
    """Folder in diffusers' layout, or a single .ckpt or .safetensors file."""
    output: Positional[Path]
    """Folder to make."""
    clip: Path | None = None
    """Folder with the files of CLIP's tokenizer, for a single file; the hub's cache if left out."""
    cameras: Literal["absolute", "relative"] = "absolute"
    """What the camera embedding reads: the release's four views absolute, its two relative."""
    intrinsics: bool = True
    """Whether the camera embedding reads the intrinsics too, as the release's four views."""
    epipolar: Literal["exact", "original", "none"] = "exact"
    """Masks of the attention between views."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the weights."""


@dataclass(frozen=True)
@checked
class DownloadConfig:
    """Fetch a released model from the Hugging Face hub, convert it, install it.

    Goes on where an earlier call stopped. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE hold;
    the model goes to the folder SPAD_HOME.
    """

    model: Positional[str]
    """spad_two_views or spad_four_views."""
    yes: bool = False
    """Fetch without asking."""
    clip: Path | None = None
    """Folder with the files of CLIP's tokenizer, instead of fetching them."""
    weights: Literal["ema", "raw"] = "ema"
    """The averaged weights, which the original samples with, or those of the last step."""
    dtype: Literal["float16", "float32"] = "float32"
    """Of the installed weights; float16 takes half the space."""
    keep_original: bool = False
    """Leave the original in the hub's cache after the conversion."""
