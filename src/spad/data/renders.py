"""Read what `spad render` or `spad pack` wrote: pictures, cameras and captions of many objects."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spad.cameras import Cameras, load_cameras
from spad.data.lists import read_rows
from spad.data.shards import INDEX, Sample, ShardedObject, is_shard_folder, read_shard_folder
from spad.images.pixels import on_white, open_image, read_on_white

# Between the id of an object and what was changed in a variant of it.
VARIANT = "~"
LISTING = "objects.jsonl"
# Kinds of pictures by the field of transforms.json that names them.
_KINDS = {
    "file_path": "color",
    "depth_file_path": "depth",
    "normal_file_path": "normals",
    "mask_path": "mask",
}
_MADE = ("renderer", "render_settings", "asset_sha256", "pictures_sha256")


@dataclass(frozen=True)
class ObjectViews:
    """All rendered views of one object: where the pictures are, and where they were taken from.

    Pictures are files, or the members `suffixes` of a shard's `sample`.
    """

    uid: str
    captions: tuple[str, ...]
    cameras: Cameras
    image_paths: tuple[Path, ...] = ()
    sample: Sample | None = None
    suffixes: tuple[str, ...] = ()

    def images(self) -> np.ndarray:
        """Pictures on white, uint8 (v, h, w, 3).

        Raises: ValueError: a shard is damaged.
        """
        if self.sample is None:
            return np.stack([read_on_white(path) for path in self.image_paths])
        members, where = self.sample.read(self.suffixes), f"{self.sample.shard}, {self.uid}"
        return np.stack([on_white(open_image(members[name], where)) for name in self.suffixes])


def read_renders(folder: Path) -> list[ObjectViews]:
    """Every object listed in `folder/objects.jsonl`, or in a folder of shards, in the list's order.

    Shards that were packed from a folder give the same objects in the same order as it.

    Raises: ValueError: the folder holds neither, a line is malformed, or a shard is damaged.
    """
    folder = Path(folder)
    if is_shard_folder(folder):
        return _read_shards(folder)

    def read(numbered_row: tuple[int, dict]) -> ObjectViews:
        row = numbered_row[1]
        views = folder / row.get("folder", row["uid"])
        loaded = load_cameras(views / "transforms.json")
        paths = tuple(views / path for path in loaded.image_paths)
        return ObjectViews(row["uid"], tuple(row["captions"]), loaded.cameras, paths)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, read_listing(folder)))


def read_listing(renders: Path) -> list[tuple[int, dict]]:
    """The objects of `objects.jsonl` with their numbers from 0 on.

    Raises: ValueError: there is none, or it is empty or malformed.
    """
    listing = renders / LISTING
    if not listing.is_file():
        raise ValueError(
            f"expected {listing}; make one with: spad render MODELS --output {renders}"
        )
    rows, seen = [], set()
    for line, row in read_rows(listing):
        where, uid, captions = f"{listing}, line {line}", row.get("uid"), row.get("captions")
        if not isinstance(uid, str) or not isinstance(captions, list) or not captions:
            raise ValueError(f"{where}: expected a uid and a list of captions, got {row}")
        if uid in seen:
            raise ValueError(f"{where}: expected every id once, got {uid} again")
        seen.add(uid)
        rows.append((len(rows), row))
    if not rows:
        raise ValueError(f"expected objects in {listing}, got none; did all renders fail?")
    return rows


def rendered_object(renders: Path, row: dict) -> tuple[ShardedObject, dict[str, list[str]]]:
    """An object that `spad render` wrote: what is known of it, and its pictures by kind, as paths
    from its folder.

    Raises: ValueError: its `transforms.json` is missing or malformed.
    """
    path = renders / row.get("folder", row["uid"]) / "transforms.json"
    cameras = load_cameras(path).cameras
    record = json.loads(path.read_text(encoding="utf-8"))
    frames = record["frames"]
    kinds = {kind: field for field, kind in _KINDS.items() if field in frames[0]}
    for view, frame in enumerate(frames):
        for field in ("file_path", *kinds.values()):
            if not isinstance(frame.get(field), str):
                raise ValueError(f"{path}: expected {field} in frame {view}, got none")
    about = ShardedObject(
        row["uid"],
        tuple(row["captions"]),
        cameras,
        record.get("object_from_asset"),
        record.get("notes", {}),
        {name: record[name] for name in _MADE if name in record},
    )
    return about, {kind: [frame[field] for frame in frames] for kind, field in kinds.items()}


def read_image(path: Path) -> bytes:
    """A file that `transforms.json` names. Raises: ValueError: it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"expected the picture {path}, which transforms.json names, got no such file"
        ) from None


def _read_shards(folder: Path) -> list[ObjectViews]:
    index = read_shard_folder(folder)
    suffixes = tuple(index.suffix("color", view) for view in range(index.num_views))
    rows, samples = [], []
    for shard in index.shards:
        rows += shard.rows
        samples += [shard.sample(i) for i in range(len(shard.uids))]

    def read(sample: Sample) -> ObjectViews:
        found = sample.read_object()
        return ObjectViews(
            found.uid, found.captions, found.cameras, sample=sample, suffixes=suffixes
        )

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, [samples[i] for i in np.argsort(rows)]))


def listing_path(folder: Path) -> Path:
    """The file that lists the objects of a folder, and holds the hashes of their pictures."""
    return folder / (INDEX if is_shard_folder(folder) else LISTING)


def data_hash(folder: Path) -> str:
    """SHA-256 of the list of a folder's objects."""
    return hashlib.sha256(listing_path(folder).read_bytes()).hexdigest()


def count_objects(folder: Path) -> int:
    """How many objects a folder lists."""
    if is_shard_folder(folder):
        return read_shard_folder(folder).num_objects
    return len(listing_path(folder).read_text(encoding="utf-8").splitlines())


def base_uid(uid: str) -> str:
    """The id of the object that a variant, such as "ID~blue", was made of; others as they are."""
    return uid.partition(VARIANT)[0]


def is_held_out(uid: str, one_in: int = 16) -> bool:
    """Whether an object belongs to the test set: a hash of its id decides, so it never changes.

    Variants belong where their object does.
    """
    return int(hashlib.sha256(base_uid(uid).encode()).hexdigest(), 16) % one_in == 0


def load_all_images(objects: list[ObjectViews]) -> np.ndarray:
    """Pictures of all objects on white, uint8 (n, v, h, w, 3), read by several threads.

    Raises: ValueError: the objects differ in their number of views.
    """
    counts = {len(views.cameras) for views in objects}
    if len(counts) != 1:
        raise ValueError(
            f"expected the same number of views for every object, got {sorted(counts)}"
        )
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(ObjectViews.images, objects)))
