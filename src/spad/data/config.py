"""Settings of the commands that make data, as values. Imports nothing heavy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tyro.conf import Positional

from spad.meshes.settings import RendererSettings

_PASSES = ("depth", "normals", "mask")
CAMERA_PRESETS = ("training", "paper", "sphere", "orbit")

# What is looked for in the renders of an object, `spad.data.checks` says how.
Check = Literal[
    "blank", "transparent", "black", "tiny", "clipped", "inside-out", "single-color", "reprojection"
]
CHECKS: tuple[Check, ...] = get_args(Check)
# A rock of one gray is a good object; a scan that lost its texture looks just like it.
REJECTING_CHECKS = tuple(name for name in CHECKS if name != "single-color")


@dataclass(frozen=True)
class RenderConfig:
    """Render views of 3D models, in the form that `spad train` and nerfstudio read."""

    assets: Positional[Path]
    """Folder of models (GLB, glTF, OBJ, PLY, STL; FBX and USD with Blender), or a .jsonl index of
    them."""
    output: Path
    """Folder for the results; the same command goes on where an earlier one stopped."""
    root: Path | None = None
    """Folder that the index's paths start from; the index's own if left out."""
    ids: Path | None = None
    """Render only the ids in this file, one a line, as `spad filter` writes it."""
    captions: Path | None = None
    """Cap3D's CSV; its captions go before those of the index."""
    renderer: Literal["embree", "blender"] = "embree"
    """embree needs nothing but a CPU; blender is slower and draws shadows and real materials."""
    drawing: RendererSettings = field(default_factory=RendererSettings)
    image_size: int = 128
    """Side of the pictures in pixels."""
    cameras: Literal["training", "paper", "sphere", "orbit"] = "training"
    """training: random ones where people look from, and sets a quarter turn apart. paper: random
    at radius 3.5, elevation -90 to 90. sphere: uniform on the sphere. orbit: evenly round."""
    num_random: int = 12
    """Views of each object from random cameras (training)."""
    num_orthogonal_sets: int = 3
    """Sets of four views of each object, a quarter turn apart (training)."""
    num_views: int = 12
    """Views of each object (paper, sphere, orbit)."""
    elevation_deg: float = 20.0
    """Above the horizon (orbit)."""
    passes: tuple[Literal["depth", "normals", "mask"], ...] = ()
    """What to write beside the colours."""
    reject: tuple[Check, ...] = REJECTING_CHECKS
    """Checks that an object must pass to be listed in objects.jsonl. All others are run too, and
    what they find is only noted. No value rejects nothing."""
    time_limit_s: float = 300.0
    """Longest time for one object, in seconds; then its worker is stopped and the next goes on."""
    memory_limit_gb: float = 8.0
    """Most memory for one worker."""
    executor: Literal["process", "ray"] = "process"
    """process: the cores of this machine. ray: a Ray cluster that shares the folders."""
    ray_address: str | None = None
    """Of a running Ray cluster; one is started on this machine if left out."""
    seed: int = 0
    """Of the cameras."""
    workers: int = 0
    """Processes; 0 takes one for each core."""
    limit: int | None = None
    """Render only the first few models."""
    pack: Path | None = None
    """Then pack the views into shards in this folder, as `spad pack` does."""

    def __post_init__(self) -> None:
        lowest = {"image_size": 1, "num_random": 0, "num_orthogonal_sets": 0, "num_views": 1}
        lowest |= {"workers": 0, "limit": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"expected {name} of at least {low}, got {value}")
        for name in ("time_limit_s", "memory_limit_gb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected a positive {name}, got {getattr(self, name)}")
        if self.pack is not None and self.pack == self.output:
            raise ValueError(f"expected a folder of its own for the shards, got {self.pack} again")
        if self.num_random + self.num_orthogonal_sets == 0:
            raise ValueError("expected some views, got num_random 0 and num_orthogonal_sets 0")
        if not -90 <= self.elevation_deg <= 90:
            raise ValueError(f"expected elevation_deg in [-90, 90], got {self.elevation_deg}")
        if self.cameras not in CAMERA_PRESETS:
            raise ValueError(f"expected cameras in {CAMERA_PRESETS}, got {self.cameras!r}")
        for name, known in (("passes", _PASSES), ("reject", CHECKS)):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"expected {name} among {known}, got {value!r}")


@dataclass(frozen=True)
class PackConfig:
    """Pack what `spad render` wrote into WebDataset tar shards with an index and checksums."""

    renders: Positional[Path]
    """Folder that `spad render` wrote."""
    output: Path
    """Folder for the shards; the same command goes on where an earlier one stopped."""
    image_format: Literal["webp", "png"] = "webp"
    """Of colours and normals. Both are lossless; WebP takes half the space."""
    objects_per_shard: int = 512
    order: Literal["mixed", "given"] = "mixed"
    """mixed: by a hash of the id, so that every shard holds a bit of everything. given: as
    objects.jsonl lists them."""
    seed: int = 0
    """Of the mixed order."""
    recolor: int = 0
    """Pack so many variants of each object in other colors, with captions that say so: of those
    with a caption that names one color of the whole. One in sixteen combinations of a color and a
    sort of thing is left out, as are held-out objects."""
    latents: str | None = None
    """Name or folder of a model whose latents and text embeddings are stored too."""
    workers: int = 0
    """Threads; 0 takes one for each core."""

    def __post_init__(self) -> None:
        for name, low in (("objects_per_shard", 1), ("workers", 0), ("recolor", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"expected {name} of at least {low}, got {getattr(self, name)}")


@dataclass(frozen=True)
class InspectConfig:
    """Show what data holds: statistics, and a sheet of objects with their captions."""

    path: Positional[Path]
    """A shard, a folder of shards, or a folder that `spad render` wrote."""
    output: Path | None = None
    """PNG file for the sheet; NAME-sheet.png in the current folder if left out."""
    objects: int = 12
    """On the sheet."""
    views: int = 6
    """Of each object on the sheet."""
    sample: int = 200
    """Most objects that the statistics are taken from, spread evenly; 0 takes all."""
    verify: bool = False
    """Compare the shards with their checksums."""

    def __post_init__(self) -> None:
        for name, low in (("objects", 1), ("views", 1), ("sample", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"expected {name} of at least {low}, got {getattr(self, name)}")
        if self.output is not None and self.output.suffix != ".png":
            raise ValueError(f"expected a .png file for the sheet, got {self.output}")
