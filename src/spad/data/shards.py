"""Layout and reading of folders of WebDataset tar shards, which `spad.data.pack` writes.

A folder has `index.json` and the tars. In a tar, the members of an object are consecutive: first
`KEY.json` (id, captions, cameras), then `KEY.latents.npy` and `KEY.text.npy` if precomputed, then
the images of view 0, 1, …: `KEY.000.webp` and, if rendered, `KEY.000.depth.png`,
`KEY.000.normals.png` and `KEY.000.mask.png`. The part of a member's name after KEY is its suffix.
The index has the offset of each object, so that objects can be read one by one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, get_args
from urllib.parse import quote

import numpy as np
import torch
from annotated_types import MinLen

from spad.cameras import Cameras
from spad.files import file_hash, inside, parse_json, read_json, short
from spad.settings import Count, PositiveFloat, checked

INDEX, JOURNAL = "index.json", "packing.jsonl"
Format = Literal["spad shards 1"]
(FORMAT,) = get_args(Format)
BLOCK = 512
# World units per step of the 16-bit depth maps of `spad render`.
DEPTH_UNIT = 1e-3
_LONGEST_KEY = 80
# A hundred bytes or so for each object.
_LARGEST_INDEX = 1 << 30
# Of a rendered view, and of anything in a shard, in bytes.
LARGEST_IMAGE = 1 << 28
_LARGEST_MEMBER = 1 << 28


@dataclass(frozen=True)
class ShardedObject:
    """The content of `KEY.json`.

    Attributes:
        captions: at least one caption.
        cameras: cameras of all views.
        object_from_asset: 4 x 4 transform from the model file's coordinates to the world; None if
            unknown.
        notes: findings of the checks of `spad render`, by check.
        made: how the views were made: renderer, hashes of its settings and of the model file.
    """

    uid: str
    captions: tuple[str, ...]
    cameras: Cameras
    object_from_asset: list[list[float]] | None
    notes: Mapping[str, str]
    made: Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """Location of an object: the bytes `start` to `end` of a shard, and its id in the index."""

    shard: Path
    start: int
    end: int
    uid: str | None = None

    def read(self, suffixes: Collection[str] | None = None) -> dict[str, bytes]:
        """Its members by suffix. None: all.

        Raises: ValueError: the shard is truncated or modified, or has no such member.
        """
        found = {}
        with open(self.shard, "rb") as file:
            for _, name, size in _walk(file, self.shard, self.start, self.end):
                suffix = name.partition(".")[2]
                if suffixes is None or suffix in suffixes:
                    found[suffix] = file.read(size)
                    if len(found[suffix]) < size:
                        raise _damaged(self.shard, file.tell())
                    if suffixes is not None and len(found) == len(suffixes):
                        break
        if missing := sorted(set(suffixes or ()) - found.keys()):
            raise ValueError(
                f"{self.shard}: expected {missing[0]} of the object at byte {self.start}, got none"
            )
        return found

    def read_object(self) -> ShardedObject:
        """Its `KEY.json`. Raises: ValueError: as `read`, or the JSON is malformed or of another."""
        where = f"{self.shard}, byte {self.start}"
        found = parse_object(self.read({"json"})["json"], where)
        if self.uid not in (None, found.uid):
            raise ValueError(
                f"{where}: expected {short(self.uid)}, as in {INDEX}, got {short(found.uid)}"
            )
        return found


@dataclass(frozen=True)
class Shard:
    """One tar. Object i has the id `uids[i]`, the row `rows[i]` in the list that was packed, and
    the bytes `offsets[i]` to `offsets[i + 1]`.
    """

    path: Path
    size: int
    sha256: str
    uids: tuple[str, ...]
    rows: tuple[int, ...]
    offsets: tuple[int, ...]

    def sample(self, index: int) -> Sample:
        """Location of object `index`."""
        return Sample(self.path, self.offsets[index], self.offsets[index + 1], self.uids[index])

    def check(self, whole: bool = False) -> None:
        """Compare the file's size with the index, and if `whole` also its hash.

        Raises: ValueError: it is missing, truncated or modified.
        """
        size = self.path.stat().st_size if self.path.is_file() else None
        if size != self.size:
            got = "no such file" if size is None else f"{size:,}"
            raise ValueError(
                f"{self.path}: expected {self.size:,} bytes, as in {INDEX}, got {got}; copy it "
                "again, or run the same spad pack"
            )
        if whole and file_hash(self.path) != self.sha256:
            raise ValueError(
                f"{self.path}: expected the checksum of {INDEX}, got another; copy it again, or "
                "run the same spad pack"
            )


@dataclass(frozen=True)
class ShardFolder:
    """The content of `index.json`.

    Attributes:
        num_views: views per object.
        height, width: image size in pixels.
        pictures: suffix of each kind of image, after the number of the view: `color` (RGBA, sRGB,
            straight alpha), `depth` (16 bit, in steps of `depth_unit` world units, 0 where nothing
            is visible), `normals` (world normal n as n / 2 + 1 / 2, alpha where there is a
            surface), `mask`.
        latents: None, or the precomputed latents: `model`, `encoder` (hash) and `no_caption`, the
            file with the text embedding of the empty prompt.
        settings: settings of `spad pack`.
    """

    path: Path
    num_views: int
    height: int
    width: int
    pictures: Mapping[str, str]
    depth_unit: float
    latents: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    shards: tuple[Shard, ...]

    @property
    def num_objects(self) -> int:
        """Number of objects in all shards."""
        return sum(len(shard.uids) for shard in self.shards)

    def suffix(self, kind: str, view: int) -> str:
        """Suffix of the member with an image."""
        return f"{view:03d}.{self.pictures[kind]}"


@dataclass(frozen=True)
class ShardRecord:
    """A shard as the index and the journal of `spad pack` hold it.

    `inputs` is the hash of what was packed, `layout` what all its objects have in common; `rows`
    are the lines of the list that was packed, and in the index alone.
    """

    file: str
    bytes: int
    sha256: str
    uids: tuple[str, ...]
    offsets: tuple[int, ...]
    inputs: str
    layout: dict[str, Any]
    rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"shard-\d+\.tar", self.file):
            raise ValueError(f"expected file to name a shard, got {short(self.file)}")
        places = [0, *self.offsets, self.bytes]
        if not self.uids or len(places) != len(self.uids) + 3 or places != sorted(places):
            raise ValueError(
                f"expected the places of {len(self.uids)} objects and of their end among "
                f"{self.bytes:,} bytes, in order, got {short(self.offsets)}"
            )


@dataclass(frozen=True)
@checked
class ShardIndex:
    """The contents of `index.json`; `ShardFolder` describes the fields."""

    format: Format
    num_views: Count
    height: Count
    width: Count
    pictures: dict[str, str]
    depth_unit: PositiveFloat
    latents: dict[str, str] | None
    settings: dict[str, Any]
    shards: Annotated[tuple[ShardRecord, ...], MinLen(1)]
    rest: dict[str, Any]

    def __post_init__(self) -> None:
        for shard in self.shards:
            if len(shard.rows) != len(shard.uids):
                raise ValueError(f"expected rows of {shard.file} for every id, got others")


@dataclass(frozen=True)
@checked
class _Member:
    """`KEY.json` of an object."""

    uid: str
    captions: Annotated[tuple[str, ...], MinLen(1)]
    height: Count
    width: Count
    world_from_cam: list[list[list[float]]]
    intrinsics: list[list[list[float]]]
    object_from_asset: list[list[float]] | None
    notes: dict[str, str]
    made: dict[str, Any]


def is_shard_folder(folder: Path) -> bool:
    """Whether `folder` is an output of `spad pack`, finished or not."""
    return (folder / INDEX).is_file() or (folder / JOURNAL).is_file()


def read_shard_folder(folder: Path) -> ShardFolder:
    """Read `index.json`, and compare the shards' sizes with it.

    Raises: ValueError: the index is missing or malformed, or a shard is missing or truncated.
    """
    folder = Path(folder)
    path = folder / INDEX
    if not path.is_file():
        state = "is half packed; resume with the same spad pack"
        if not (folder / JOURNAL).is_file():
            state = f"has no {INDEX}; make one with: spad pack RENDERS --output {folder}"
        raise ValueError(f"expected a folder of shards, but {folder} {state}")
    index = read_index(folder)
    shards = tuple(
        Shard(
            inside(folder, each.file, path),
            each.bytes,
            each.sha256,
            each.uids,
            each.rows,
            each.offsets,
        )
        for each in index.shards
    )
    found = ShardFolder(
        folder,
        index.num_views,
        index.height,
        index.width,
        index.pictures,
        index.depth_unit,
        index.latents,
        index.settings,
        shards,
    )
    for shard in shards:
        shard.check()
    return found


def read_index(folder: Path) -> ShardIndex:
    """`index.json` as it is. Raises: ValueError: it is malformed."""
    return read_json(folder / INDEX, ShardIndex, most=_LARGEST_INDEX)


def scan_shard(path: Path) -> list[Sample]:
    """The objects of a tar, without its index. Raises: ValueError: it is damaged or not a tar."""
    starts, last = [], None
    with open(path, "rb") as file:
        end = 0
        for at, name, size in _walk(file, path, 0, os.path.getsize(path)):
            key = name.partition(".")[0]
            if key != last:
                starts.append(at)
                last = key
            end = at + BLOCK + size + (-size % BLOCK)
    if not starts or end > os.path.getsize(path):
        raise _damaged(path, end)
    return [Sample(path, *ends) for ends in zip(starts, [*starts[1:], end], strict=True)]


def key_of(uid: str) -> str:
    """KEY of an object: unique, short, and without dots, at which WebDataset splits names."""
    key = quote(uid, safe="").replace(".", "%2E")
    if len(key) <= _LONGEST_KEY:
        return key
    digest = hashlib.sha256(uid.encode()).hexdigest()[:16]
    return f"{key[: _LONGEST_KEY - 17]}-{digest}"


def object_json(record: ShardedObject) -> bytes:
    """The inverse of `parse_object`; numbers have the digits of float32."""
    cameras = record.cameras
    data = {
        "uid": record.uid,
        "captions": record.captions,
        "height": cameras.height,
        "width": cameras.width,
        "world_from_cam": _short_numbers(cameras.world_from_cam),
        "intrinsics": _short_numbers(cameras.intrinsics),
        "object_from_asset": record.object_from_asset,
        "notes": record.notes,
        "made": record.made,
    }
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def parse_object(data: bytes, where: str) -> ShardedObject:
    """Parse `object_json`. Raises: ValueError: it is malformed; the message starts with `where`."""
    read = parse_json(data, _Member, where)
    try:
        poses, intrinsics = torch.tensor(read.world_from_cam), torch.tensor(read.intrinsics)
        cameras = Cameras(poses, intrinsics, read.height, read.width)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    rest = (read.object_from_asset, read.notes, read.made)
    return ShardedObject(read.uid, read.captions, cameras, *rest)


def _short_numbers(values: torch.Tensor) -> list:
    array = values.float().numpy()
    shortest = [float(str(value)) for value in array.ravel()]
    return np.reshape(shortest, array.shape).tolist()


def _walk(file: BinaryIO, path: Path, start: int, end: int) -> Iterator[tuple[int, str, int]]:
    """(offset, name, size) of the members; the file position is then at the member's contents."""
    at = start
    while at < end:
        file.seek(at)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError):
            raise _damaged(path, at) from None
        # Sizes may be negative, too.
        if not 0 <= member.size <= min(_LARGEST_MEMBER, end - at - BLOCK):
            raise _damaged(path, at)
        yield at, member.name, member.size
        at += BLOCK + member.size + (-member.size % BLOCK)


def _damaged(path: Path, at: int) -> ValueError:
    return ValueError(
        f"{path}: expected a whole shard, got one truncated or modified at byte {at:,}"
    )
