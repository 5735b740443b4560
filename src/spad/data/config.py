"""Settings of `spad render`, `spad pack` and `spad inspect`. Imports nothing heavy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from annotated_types import Interval
from tyro.conf import Positional, arg

from spad.meshes.settings import RendererSettings
from spad.settings import Count, CountOrZero, ElevationDeg, PositiveFloat, Seed, checked, flag

Check = Literal[
    "blank", "transparent", "black", "tiny", "clipped", "inside-out", "single-color", "reprojection"
]
# What `spad.data.checks` looks for in the renders of an object, in this order.
CHECKS: tuple[Check, ...] = get_args(Check)
# `single-color` only adds a note: a plain gray rock is a valid object, but looks like a scan that
# lost its texture.
REJECTING_CHECKS: tuple[Check, ...] = tuple(name for name in CHECKS if name != "single-color")


@dataclass(frozen=True)
@checked
class RenderConfig:
    """Render views of 3D models, in the form that `spad train` and nerfstudio read."""

    assets: Positional[Path]
    """Folder of models (GLB, glTF, OBJ, PLY, STL; FBX and USD with Blender), or a .jsonl index of
    them."""
    output: Path
    """Output folder. The same command resumes an earlier run."""
    root: Path | None = None
    """Folder that the index's paths are relative to. Default: the index's own folder."""
    ids: Path | None = None
    """File of ids to render, one per line, as `spad filter` writes it. Default: all."""
    captions: Path | None = None
    """Cap3D's CSV of captions, which take precedence over those of the index."""
    renderer: Literal["embree", "blender"] = "embree"
    """embree runs on any CPU; blender is slower and renders shadows and full materials."""
    drawing: RendererSettings = field(default_factory=RendererSettings)
    image_size: Count = 128
    """Side of the square images, in pixels."""
    cameras: Literal["training", "paper", "sphere", "orbit"] = "training"
    """training: random ones from usual directions, and sets of four 90° apart. paper: random at
    radius 3.5, elevation uniform in ±90°. sphere: uniform on the sphere. orbit: evenly spaced."""
    num_random: CountOrZero = 12
    """Random views per object (training)."""
    num_orthogonal_sets: CountOrZero = 3
    """Sets of four views 90° apart per object (training)."""
    # Scripts that were written before the flags had these names use the others.
    views: Annotated[Count, arg(aliases=("--num-views",))] = 12
    """Views per object (paper, sphere, orbit)."""
    elevation: Annotated[ElevationDeg, arg(aliases=("--elevation-deg",))] = 20.0
    """Degrees above the horizon (orbit)."""
    passes: tuple[Literal["depth", "normals", "mask"], ...] = ()
    """Images to write in addition to color."""
    reject: tuple[Check, ...] = REJECTING_CHECKS
    """Checks that an object must pass to be listed in objects.jsonl; the others only add a note.
    No value rejects nothing."""
    time_limit_s: PositiveFloat = 300.0
    """Time limit per object, in seconds."""
    memory_limit_gb: Annotated[float, Interval(ge=0.1, le=100_000)] = 8.0
    """Memory limit per worker, in gigabytes."""
    executor: Literal["process", "ray"] = "process"
    """process: the cores of this machine. ray: a Ray cluster that shares the folders."""
    ray_address: str | None = None
    """Address of a running Ray cluster. Default: start one on this machine."""
    seed: Seed = 0
    """Seed of the cameras."""
    workers: CountOrZero = 0
    """Worker processes; 0 is one per core."""
    limit: Count | None = None
    """Render only the first models, at most this many."""
    pack: Path | None = None
    """Also pack the views into shards in this folder, as `spad pack` does."""

    def __post_init__(self) -> None:
        if self.pack is not None and self.pack == self.output:
            raise ValueError(f"expected a folder of its own for the shards, got {self.pack} again")
        if self.num_random + self.num_orthogonal_sets == 0:
            raise ValueError(
                f"expected some views, got 0 for {flag('num_random')} and "
                f"{flag('num_orthogonal_sets')}"
            )


@dataclass(frozen=True)
@checked
class PackConfig:
    """Pack the output of `spad render` into WebDataset tar shards with an index and checksums."""

    renders: Positional[Path]
    """Output folder of `spad render`."""
    output: Path
    """Output folder. The same command resumes an earlier run."""
    image_format: Literal["webp", "png"] = "webp"
    """Format of color and normals. Both are lossless; WebP takes half the space."""
    objects_per_shard: Count = 512
    """Objects per shard."""
    order: Literal["mixed", "given"] = "mixed"
    """mixed: by a hash of the id, so that every shard is a random sample. given: the order of
    objects.jsonl."""
    seed: Seed = 0
    """Seed of the mixed order and of the colors of --recolor."""
    recolor: CountOrZero = 0
    """Most recolored variants to add per object, with matching captions. Only objects with a
    caption that names one color of the whole have any. One in sixteen combinations of color and
    kind is never made, nor are variants of held-out objects."""
    latents: str | None = None
    """Name or folder of a model; its latents and text embeddings are stored too."""
    workers: CountOrZero = 0
    """Threads; 0 is one per core."""


@dataclass(frozen=True)
@checked
class InspectConfig:
    """Show statistics of a data set, and a sheet of objects with their captions."""

    path: Positional[Path]
    """A shard, a folder of shards, or an output folder of `spad render`."""
    output: Path | None = None
    """PNG file of the sheet. Default: NAME-sheet.png in the current folder."""
    objects: Count = 12
    """Objects on the sheet."""
    views: Count = 6
    """Views per object on the sheet."""
    sample: CountOrZero = 200
    """Most objects to take statistics from, evenly spaced in the set; 0 takes all."""
    verify: bool = False
    """Compare the shards with their checksums."""

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix != ".png":
            raise ValueError(f"expected a .png file for the sheet, got {self.output}")
