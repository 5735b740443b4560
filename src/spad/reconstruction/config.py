"""Settings of `spad reconstruct`, `texture` and `distill`. Imports nothing heavy: the command line
reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Interval
from tyro.conf import Positional

from spad.settings import Count, CountOrZero, GuidanceScale, NonNegativeFloat, Seed, checked, flag

MODEL_SUFFIXES = (".glb", ".obj", ".ply", ".stl")
_ANIMATIONS = (".webp", ".gif")


@dataclass(frozen=True)
@checked
class ReconstructConfig:
    """Make a watertight 3D model with a texture from views of one object with cameras.

    Views come from spad generate or render, nerfstudio, COLMAP or Blender. Their background must be
    transparent or white, or given with --masks.
    """

    source: Positional[Path]
    """Folder of views with cameras, or a camera file."""
    output: Path | None = None
    """Model to write: .glb, .obj, .ply or .stl. Default: spad-out/SOURCE.glb."""
    overwrite: bool = False
    """Replace a model that is there."""
    masks: Path | None = None
    """Folder of masks named as the images: white is the object."""
    faces: Annotated[int, Interval(ge=100, le=1_000_000)] = 10_000
    """Most triangles of the model."""
    texture_size: Annotated[int, Interval(ge=64, le=8192)] | None = None
    """Side of the texture in texels. Default: four times that of the images, 512 to 2048."""
    cells: Annotated[int, Interval(ge=24, le=512)] | None = None
    """Grid cells along the object's longest side; more show thinner parts and take longer. Default:
    by the object's thickness, at most 160, and 1.5 a pixel."""
    smoothness: NonNegativeFloat | None = None
    """How much the surface is kept from bending; above 0.3 its mesh is evened out, too. Default:
    0.5 for views of spad generate, which disagree in detail, else 0.3."""
    network: Path | None = None
    """Folder of a network of `spad train-reconstructor` that gives the surface in one pass.
    Default: one is fitted."""
    delight: bool = False
    """Divide the light out of the colors; for views of `spad render`, whose light is known."""
    splat: Path | None = None
    """Also write the model as Gaussian splats: .ply, or .glb with glTF's extension for them."""
    turntable: Path | None = None
    """Turntable of the model to write too: .webp or .gif."""
    hold_out: CountOrZero = 0
    """Number of views kept out of the model, to score it by."""
    most_views: Annotated[int, Ge(3)] = 32
    """Most views to use: those that look from the most different sides."""
    device: str | None = None
    """Device to fit the surface on, such as cpu or cuda. Default: the fastest available."""

    def __post_init__(self) -> None:
        _check_suffix("output", self.output, MODEL_SUFFIXES)
        _check_suffix("splat", self.splat, (".ply", ".glb"))
        _check_suffix("turntable", self.turntable, _ANIMATIONS)
        if self.splat is not None and self.splat == self.output:
            raise ValueError(f"expected two files, got {self.splat} for --output and --splat")
        if self.network is not None and self.smoothness is not None:
            raise ValueError(
                "expected --smoothness or --network, got both: a network is not fitted"
            )


@dataclass(frozen=True)
@checked
class TextureConfig:
    """Draw a prompt on a 3D model that has no colors, or others.

    Gray images of the model, with noise, are where the multi-view model starts from; what it draws
    is projected on the surface. The shape stays, and so do texture coordinates that fit.
    """

    mesh: Positional[Path]
    """Model to texture: .glb, .gltf, .obj, .ply or .stl."""
    prompt: Positional[str]
    """Text that describes the object and its colors, such as "a red mushroom"."""
    output: Path | None = None
    """Model to write: .glb, .obj, .ply or .stl; spad-out/MESH-PROMPT.glb if left out."""
    overwrite: bool = False
    """Replace a model that is there."""
    model: str = "mini"
    """Name of a model (see `spad models`) or a model folder."""
    views: Annotated[int, Interval(ge=3, le=64)] = 8
    """Views that are drawn on the surface, all around it."""
    strength: Annotated[float, Interval(gt=0, le=1)] = 0.8
    """Share of the denoising that is done: the lower, the nearer to gray and to the shape."""
    negative_prompt: str = ""
    """Text that guidance pushes the result away from."""
    guidance_scale: GuidanceScale | None = None
    """Strength of the prompt. Default: the model's."""
    steps: Count | None = None
    """Denoising steps. Default: the model's."""
    seed: Seed = 0
    """Seed of the noise."""
    up: Literal["y", "z"] | None = None
    """Axis that points up in the file. Default: y for glTF, else z."""
    unwrap: bool = False
    """Lay the texture out anew, in place of the file's own texture coordinates."""
    texture_size: Annotated[int, Interval(ge=64, le=8192)] = 512
    """Side of the texture in texels."""
    turntable: Path | None = None
    """Turntable of the textured model to write too: .webp or .gif."""
    device: str | None = None
    """Device, such as cpu or cuda. Default: the fastest."""

    def __post_init__(self) -> None:
        _check_suffix("output", self.output, MODEL_SUFFIXES)
        _check_suffix("turntable", self.turntable, _ANIMATIONS)


@dataclass(frozen=True)
@checked
class DistillConfig:
    """Make a 3D model from a text alone, by score distillation of a multi-view model.

    Renders of a model that starts as a ball are made what the multi-view model expects, in many
    small steps. It takes minutes to hours; spad generate --mesh takes seconds. Ctrl-C keeps what
    is done, the same command resumes. Images of the progress are beside the output.
    """

    prompt: Positional[str]
    """Text that describes one object, such as "a red mushroom"."""
    output: Path | None = None
    """Model to write: .glb, .obj, .ply or .stl; spad-out/PROMPT.glb if left out."""
    overwrite: bool = False
    """Replace a model that is there."""
    model: str = "mini"
    """Name of a model (see `spad models`) or a model folder."""
    negative_prompt: str = ""
    """Text that guidance pushes the result away from."""
    steps: Count = 1000
    """Steps, each with four views."""
    guidance_scale: GuidanceScale | None = None
    """Strength of text guidance. Default: 50 for models that predict noise, 10 for others."""
    seed: Seed = 0
    """Seed of cameras and noise."""
    cells: Annotated[int, Interval(ge=16, le=256)] = 64
    """Of the grid along each side."""
    render_size: Annotated[int, Interval(ge=16, le=512)] = 64
    """Side of the images that the grid is rendered to in a step, before they are enlarged to those
    of the model."""
    faces: Annotated[int, Interval(ge=100, le=1_000_000)] = 10_000
    """Triangles of the model, at most."""
    texture_size: Annotated[int, Interval(ge=64, le=8192)] = 512
    """Side of the texture in texels."""
    show_every: Count = 100
    """Steps from one image of the progress to the next."""
    device: str | None = None
    """Device, such as cpu or cuda. Default: the fastest."""

    def __post_init__(self) -> None:
        _check_suffix("output", self.output, MODEL_SUFFIXES)


def _check_suffix(name: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Raises: ValueError: the file of a flag ends otherwise."""
    if path is not None and path.suffix.lower() not in suffixes:
        raise ValueError(f"expected {flag(name)} to end in {' or '.join(suffixes)}, got {path}")
