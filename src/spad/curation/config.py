"""Settings of `spad filter`. Imports nothing heavy."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from spad.settings import CountOrZero, checked, flag

# SPAD, section 4, filters by popularity and size but gives no thresholds: these are ours.
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
@checked
class FilterConfig:
    """Select objects by their metadata: a list of ids, and a table with the reasons of rejections.

    A missing value never fails a threshold; a missing
    license is rejected.
    """

    annotations: Positional[Path]
    """Folder of Objaverse's .json.gz annotations or one such file, or a folder of models or a
    .jsonl index of them."""
    output: Path
    """Output folder, which must be new."""
    preset: Literal["none", "paper", "commercial", "clean"] = "paper"
    """paper: popularity and size. commercial: also the license. clean: also no animation, text,
    scans, point clouds, scenes or duplicates."""
    captions: Path | None = None
    """Cap3D's CSV of captions; objects without a caption in it are rejected."""
    root: Path | None = None
    """Folder that the index's paths are relative to. Default: the index's own folder."""
    overwrite: bool = False
    """Replace the output folder of an earlier run."""
    min_likes: CountOrZero | None = None
    """Least number of likes. Default: the preset's."""
    min_views: CountOrZero | None = None
    """Least number of views on Sketchfab. Default: the preset's."""
    min_comments: CountOrZero | None = None
    """Least number of comments. Default: the preset's."""
    min_faces: CountOrZero | None = None
    """Least number of polygons. Default: the preset's."""
    max_faces: CountOrZero | None = None
    """Most polygons. Default: the preset's."""
    min_vertices: CountOrZero | None = None
    """Least number of vertices. Default: the preset's."""
    max_vertices: CountOrZero | None = None
    """Most vertices. Default: the preset's."""
    licenses: tuple[str, ...] | None = None
    """Accepted licenses, such as cc0 by by-sa; an object without a license is rejected. No value
    accepts any. Default: the preset's."""
    max_animations: CountOrZero | None = None
    """Most animations; 0 rejects animated models. Default: the preset's."""
    exclude: tuple[Literal["text", "scan", "point-cloud", "scene"], ...] | None = None
    """Kinds of objects to reject, recognized by words of their name, tags and categories. Default:
    the preset's."""
    duplicates: tuple[Literal["name", "name-and-counts", "geometry"], ...] | None = None
    """Keep only the most liked of the objects with the same name, the same name, polygon and vertex
    counts, or the same triangles (local models only). Default: the preset's."""

    def __post_init__(self) -> None:
        for low, high in (("min_faces", "max_faces"), ("min_vertices", "max_vertices")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"expected {flag(low)} of at most {flag(high)}, got {least} and {most}"
                )

    def with_preset(self) -> "FilterConfig":
        """These settings, with thresholds that are None taken from the preset.

        Raises: ValueError: a threshold contradicts one of the preset.
        """
        preset = FILTER_PRESETS[self.preset]
        return replace(self, **{k: v for k, v in preset.items() if getattr(self, k) is None})
