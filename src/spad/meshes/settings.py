"""Settings of the renderers, as values. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

_NORMALIZATIONS = ("sphere", "cube")


@dataclass(frozen=True)
class RendererSettings:
    """How models are drawn."""

    blender_engine: Literal["cycles", "eevee", "workbench"] = "cycles"
    blender_samples: int = 32
    """Light paths a pixel in Cycles, samples a pixel in the others."""
    blender_device: Literal["cpu", "gpu"] = "cpu"
    samples_per_side: int = 2
    """Rays along each side of a pixel: 2 casts four a pixel."""
    normalize: Literal["sphere", "cube"] = "sphere"
    """Fit the object into the sphere of radius 1, or the cube of side 1."""
    up: Literal["y", "z"] | None = None
    """The models' up axis; y for glTF and z for others if left out."""
    max_faces: int = 2_000_000
    """Models of more triangles are not drawn."""

    def __post_init__(self) -> None:
        for name in ("blender_samples", "samples_per_side", "max_faces"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.normalize not in _NORMALIZATIONS:
            raise ValueError(f"expected normalize in {_NORMALIZATIONS}, got {self.normalize!r}")
