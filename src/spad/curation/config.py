"""Settings of `spad filter`. Imports nothing heavy."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

# What the presets of `spad filter` ask for. SPAD, section 4, names the paper's two rules and no
# thresholds; these are ours.
_PAPER = {
    "min_likes": 3,
    "min_views": 100,
    "min_faces": 100,
    "max_faces": 500_000,
    "min_vertices": 50,
    "max_vertices": 500_000,
}
_COMMERCIAL = _PAPER | {"licenses": ("cc0", "by", "by-sa")}
_CLEAN = _COMMERCIAL | {
    "max_animations": 0,
    "exclude": ("text", "scan", "point-cloud", "scene"),
    "duplicates": ("name-and-counts", "geometry"),
}
FILTER_PRESETS = {"none": {}, "paper": _PAPER, "commercial": _COMMERCIAL, "clean": _CLEAN}


@dataclass(frozen=True)
class FilterConfig:
    """Choose objects to learn from: a list of ids, and a table of why the others were left out.

    A threshold that is left out is the preset's. What an object does not tell, no threshold
    rejects, except its license.
    """

    annotations: Positional[Path]
    """Folder of Objaverse's .json.gz annotations or one such file, or a folder of models or a
    .jsonl index of them."""
    output: Path
    """Folder to make."""
    preset: Literal["none", "paper", "commercial", "clean"] = "paper"
    """paper: popularity and size. commercial: also the license. clean: also no animation, text,
    scans, point clouds, scenes or duplicates."""
    captions: Path | None = None
    """Cap3D's CSV; objects without a caption in it are left out."""
    root: Path | None = None
    """Folder that the index's paths start from; the index's own if left out."""
    overwrite: bool = False
    """Replace the output folder if an earlier run made it."""
    min_likes: int | None = None
    min_views: int | None = None
    min_comments: int | None = None
    min_faces: int | None = None
    """Polygons."""
    max_faces: int | None = None
    min_vertices: int | None = None
    max_vertices: int | None = None
    licenses: tuple[str, ...] | None = None
    """Such as cc0 by by-sa; an object without a license is left out. No value takes any."""
    max_animations: int | None = None
    """0 leaves out what moves."""
    exclude: tuple[Literal["text", "scan", "point-cloud", "scene"], ...] | None = None
    """Kinds of objects to leave out, by the words of their name, tags and categories."""
    duplicates: tuple[Literal["name", "name-and-counts", "geometry"], ...] | None = None
    """Keep one object, the most liked, of those with the same name, or the same name, polygons and
    vertices, or the same triangles (of local models only)."""

    def __post_init__(self) -> None:
        if self.preset not in FILTER_PRESETS:
            raise ValueError(f"expected preset in {tuple(FILTER_PRESETS)}, got {self.preset!r}")
        for low, high in (("min_faces", "max_faces"), ("min_vertices", "max_vertices")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"expected {low} of at most {high}, got {least} and {most}")
        for name, value in vars(self).items():
            if name.startswith(("min_", "max_")) and value is not None and value < 0:
                raise ValueError(f"expected {name} of at least 0, got {value}")

    def with_preset(self) -> "FilterConfig":
        """These settings, with what they leave out taken from the preset.

        Raises: ValueError: a threshold contradicts one of the preset.
        """
        preset = FILTER_PRESETS[self.preset]
        return replace(self, **{k: v for k, v in preset.items() if getattr(self, k) is None})
