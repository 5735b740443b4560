"""Settings of `spad reconstruct`. Imports nothing heavy: the command line reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Interval
from tyro.conf import Positional

from spad.settings import CountOrZero, checked, flag

MODEL_SUFFIXES = (".glb", ".obj", ".ply", ".stl")


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
    about one a pixel, at most 128."""
    delight: bool = False
    """Divide the light out of the colors; for views of `spad render`, whose light is known."""
    splat: Path | None = None
    """Also write the model as Gaussian splats: a .ply file."""
    turntable: Path | None = None
    """Turntable of the model to write too: .webp or .gif."""
    hold_out: CountOrZero = 0
    """Number of views kept out of the model, to score it by."""
    most_views: Annotated[int, Ge(3)] = 32
    """Most views to use: those that look from the most different sides."""
    device: str | None = None
    """Device to fit the surface on, such as cpu or cuda. Default: the fastest available."""

    def __post_init__(self) -> None:
        for name, suffixes in (
            ("output", MODEL_SUFFIXES),
            ("splat", (".ply",)),
            ("turntable", (".webp", ".gif")),
        ):
            path = getattr(self, name)
            if path is not None and path.suffix.lower() not in suffixes:
                raise ValueError(
                    f"expected {flag(name)} to end in {' or '.join(suffixes)}, got {path}"
                )
        if self.splat is not None and self.splat == self.output:
            raise ValueError(f"expected two files, got {self.splat} for --output and --splat")
