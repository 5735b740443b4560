"""Statistics of renders or shards, and a sheet of objects with their captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from spad.data.config import InspectConfig
from spad.data.renders import ListedObject, read_listing, rendered_object
from spad.data.shards import (
    DEPTH_UNIT,
    INDEX,
    LARGEST_IMAGE,
    Sample,
    ShardedObject,
    is_shard_folder,
    read_shard_folder,
    scan_shard,
)
from spad.files import check_file_output, read_bytes, read_json_lines, whole_file
from spad.images.grids import prompt_grid
from spad.images.reading import on_white, open_image

# Largest width of a panel on the sheet, in pixels.
_PANEL_PX = 160
# In the head of a sheet, which may therefore be replaced.
_MARK = "spad inspect"


@dataclass(frozen=True)
class InspectReport:
    """The statistics, as lines to print, and the path of the sheet."""

    lines: tuple[str, ...]
    sheet: Path

    def __str__(self) -> str:
        return "\n".join([*self.lines, str(self.sheet)])


@dataclass(frozen=True)
class _Encoded:
    """Contents of an image file, and its place for messages."""

    where: str
    data: bytes

    def opened(self) -> Image.Image:
        return open_image(self.data, self.where)


@dataclass(frozen=True)
class _Entry:
    """An object with its image files, by kind and then by view."""

    about: ShardedObject
    images: dict[str, list[_Encoded]]


@dataclass(frozen=True)
class _Failure:
    """A line of `failed.jsonl`."""

    rest: dict[str, Any]
    kind: str = "?"
    check: str = ""


@dataclass(frozen=True)
class _Source:
    """Functions that read one object each, and lines about the whole."""

    entries: list[Callable[[], _Entry]]
    lines: list[str]
    depth_unit: float = DEPTH_UNIT


def inspect_data(settings: InspectConfig) -> InspectReport:
    """Compute statistics of a shard, a folder of shards or of renders, and draw a sheet of objects.

    Raises: ValueError: the path is none of these, or damaged.
    """
    path = Path(settings.path)
    sheet = settings.output or Path(f"{path.resolve().stem}-sheet.png")
    check_file_output(sheet, _MARK)
    source = _open(path, settings.verify)
    chosen = _evenly_spaced(len(source.entries), settings.sample or len(source.entries))
    shown = {chosen[i] for i in _evenly_spaced(len(chosen), settings.objects)}
    statistics = _Statistics(source.depth_unit)
    panels = {}
    for number in chosen:
        entry = source.entries[number]()
        statistics.add(entry)
        if number in shown:
            caption = f"{entry.about.captions[0]}  ({entry.about.uid})"
            panels[caption] = _panels(entry, settings.views)
    mark = PngInfo()
    mark.add_text("Software", _MARK)
    with whole_file(sheet) as unfinished:
        prompt_grid(panels).save(unfinished, "PNG", pnginfo=mark)
    count, total = len(chosen), len(source.entries)
    of = f"all {total:,} objects" if count == total else f"{count:,} of {total:,} objects"
    return InspectReport((*source.lines, f"computed on  {of}", *statistics.lines()), sheet)


def _open(path: Path, verify: bool) -> _Source:
    if path.is_file():
        lines = [f"shard        {path}, {path.stat().st_size / 1e6:,.1f} MB"]
        if verify:
            shards = read_shard_folder(path.parent).shards
            shard = next((one for one in shards if one.path.name == path.name), None)
            if shard is None:
                raise ValueError(f"expected {path.name} in {path.parent / INDEX}, got none")
            shard.check(whole=True)
            lines.append("checksum     as in the index")
        return _Source([partial(_from_shard, sample) for sample in scan_shard(path)], lines)
    if is_shard_folder(path):
        index = read_shard_folder(path)
        size = sum(shard.size for shard in index.shards)
        lines = [f"shards       {len(index.shards):,} in {path}, {size / 1e6:,.1f} MB"]
        if verify:
            for shard in index.shards:
                shard.check(whole=True)
            lines.append("checksums    all as in the index")
        if index.latents:
            lines.append(f"latents      of {index.latents['model']}")
        samples = [s.sample(i) for s in index.shards for i in range(len(s.uids))]
        entries = [partial(_from_shard, sample) for sample in samples]
        return _Source(entries, lines, index.depth_unit)
    if verify:
        raise ValueError(f"expected shards to verify, got none in {path}")
    entries = [partial(_from_renders, path, listed) for listed in read_listing(path)]
    return _Source(entries, [f"renders      {path}", *_rejects(path)])


def _rejects(renders: Path) -> list[str]:
    failed = renders / "failed.jsonl"
    if not failed.is_file():
        return []
    failures = [failure for _, failure in read_json_lines(failed, _Failure)]
    counts = Counter(f"check {one.check}" if one.check else one.kind for one in failures)
    return [f"rejected     {len(failures):,}: {_counted(counts)}"]


def _from_shard(sample: Sample) -> _Entry:
    images: dict[str, list[_Encoded]] = {}
    about = sample.read_object()
    for suffix, data in sample.read().items():
        view, _, rest = suffix.partition(".")
        if view.isdigit():
            kind = rest.partition(".")[0] if "." in rest else "color"
            images.setdefault(kind, []).append(_Encoded(f"{sample.shard}, {suffix}", data))
    return _Entry(about, images)


def _from_renders(renders: Path, listed: ListedObject) -> _Entry:
    about, paths = rendered_object(renders, listed)
    folder = listed.views_in(renders)
    return _Entry(
        about,
        {
            kind: [
                _Encoded(str(folder / name), read_bytes(folder / name, LARGEST_IMAGE))
                for name in names
            ]
            for kind, names in paths.items()
        },
    )


def _evenly_spaced(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _panels(entry: _Entry, count: int) -> list[Image.Image]:
    """Some views on white, each above its depth map if there is one: near is dark."""
    views = _evenly_spaced(len(entry.images["color"]), count)
    rows = [[on_white(entry.images["color"][view].opened()) for view in views]]
    if "depth" in entry.images:
        depth = [np.asarray(entry.images["depth"][view].opened()) for view in views]
        seen = np.concatenate([one[one > 0] for one in depth])
        near, far = (seen.min(), max(seen.max(), seen.min() + 1)) if len(seen) else (0, 1)
        gray = [
            np.where(one > 0, 40 + 180 * (one.astype(float) - near) / (far - near), 255)
            for one in depth
        ]
        rows.append([one.astype(np.uint8)[..., None].repeat(3, axis=-1) for one in gray])
    panels = [Image.fromarray(np.concatenate(column)) for column in zip(*rows, strict=True)]
    width, height = panels[0].size
    scale = min(1, _PANEL_PX / width)
    return [panel.resize((round(width * scale), round(height * scale))) for panel in panels]


class _Statistics:
    """Running statistics of objects."""

    def __init__(self, depth_unit: float):
        self.depth_unit = depth_unit
        self.sizes, self.notes, self.captions = Counter(), Counter(), Counter()
        self.views = Counter()
        self.numbers: dict[str, list[float]] = {}

    def add(self, entry: _Entry) -> None:
        """Add an object."""
        about, cameras = entry.about, entry.about.cameras
        self.views[len(cameras)] += 1
        self.sizes[f"{cameras.width}x{cameras.height}"] += 1
        self.captions[len(about.captions)] += 1
        self.notes.update(about.notes.keys())
        self._extend("words", [len(caption.split()) for caption in about.captions])
        for name, values in (
            ("elevation", cameras.elevation_deg),
            ("azimuth", cameras.azimuth_deg),
            ("radius", cameras.radius),
            ("fov", np.degrees(cameras.fov_rad.numpy())),
        ):
            self._extend(name, values.tolist())
        for kind, images in entry.images.items():
            self._extend(f"{kind} bytes", [len(image.data) for image in images])
        for image in entry.images["color"]:
            rgba = np.asarray(image.opened().convert("RGBA"), dtype=np.float32) / 255
            alpha = rgba[..., 3]
            self._extend("coverage", [float(alpha.mean())])
            if alpha.any():
                luma = rgba[..., :3] @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
                self._extend("brightness", [float((luma * alpha).sum() / alpha.sum())])
        for image in entry.images.get("depth", ()):
            steps = np.asarray(image.opened())
            seen = steps[steps > 0]
            if len(seen):
                self._extend(
                    "depth", [float(end) * self.depth_unit for end in (seen.min(), seen.max())]
                )

    def _extend(self, name: str, values: Sequence[float]) -> None:
        self.numbers.setdefault(name, []).extend(values)

    def lines(self) -> list[str]:
        """One line per statistic."""
        lines = [
            f"views        {_counted(self.views, 'per object')}",
            f"images       {_counted(self.sizes, 'pixels')}",
            *(
                f"{name.removesuffix(' bytes'):12} {np.mean(values):,.0f} bytes per view"
                for name, values in self.numbers.items()
                if name.endswith(" bytes")
            ),
            f"elevation    {self._range('elevation', '.1f')} degrees",
            f"azimuth      {self._range('azimuth', '.1f')} degrees",
            f"radius       {self._range('radius', '.2f')}",
            f"fov          {self._range('fov', '.1f')} degrees",
            f"coverage     {self._range('coverage', '.1%')} of the image",
        ]
        if "brightness" in self.numbers:
            lines.append(f"brightness   {self._range('brightness', '.2f')} (0: black, 1: white)")
        if "depth" in self.numbers:
            depth = self.numbers["depth"]
            lines.append(f"depth        {min(depth):.2f} to {max(depth):.2f}")
        counted = _counted(self.captions, "per object")
        lines.append(f"captions     {counted}; {self._range('words', '.0f')} words")
        if self.notes:
            lines.append(f"notes        {_counted(self.notes)}")
        return lines

    def _range(self, name: str, form: str) -> str:
        low, middle, high = np.percentile(self.numbers[name], (0, 50, 100))
        return f"{low:{form}} to {high:{form}}, median {middle:{form}}"


def _counted(counts: Counter, unit: str = "") -> str:
    """`24 per object` if all agree, else the number of objects for each value."""
    if unit and len(counts) == 1:
        return f"{next(iter(counts))} {unit}"
    return ", ".join(f"{key}: {number:,}" for key, number in counts.most_common())
