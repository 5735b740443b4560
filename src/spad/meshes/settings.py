"""Settings of the renderers. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from spad.settings import Count, checked


@dataclass(frozen=True)
@checked
class RendererSettings:
    """How models are rendered."""

    blender_engine: Literal["cycles", "eevee", "workbench"] = "cycles"
    """Blender's render engine."""
    blender_samples: Count = 32
    """Light paths per pixel in Cycles, samples per pixel in the others."""
    blender_device: Literal["cpu", "gpu"] = "cpu"
    """Processor that Cycles renders on."""
    samples_per_side: Count = 2
    """Rays per pixel side in embree: 2 casts four rays per pixel."""
    normalize: Literal["sphere", "cube"] = "sphere"
    """Scale the object into the sphere of radius 1, or the cube of side 1."""
    up: Literal["y", "z"] | None = None
    """Up axis of the models. Default: y for glTF, z for others."""
    max_faces: Count = 2_000_000
    """Most triangles per model; larger models are not rendered."""
