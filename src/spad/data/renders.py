"""Find the views of objects in folders: renders, shards, and folders with any camera file."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from spad.cameras import load_cameras
from spad.data.lists import read_rows
from spad.data.shards import INDEX, Sample, ShardedObject, is_shard_folder, read_shard_folder
from spad.data.view_sets import ObjectViews, ViewSet
from spad.files import RECORD
from spad.images.posed import find_images

# Separator of the id of an object and the color of its variant.
VARIANT = "~"
LISTING = "objects.jsonl"
_CAMERA_FILES = ("transforms.json", "cameras.json", "images.txt", "images.bin")
# Kinds of images by their field in transforms.json.
_KINDS = {
    "file_path": "color",
    "depth_file_path": "depth",
    "normal_file_path": "normals",
    "mask_path": "mask",
}
_MADE = ("renderer", "render_settings", "asset_sha256", "pictures_sha256")


def list_sets(folder: Path) -> list[ObjectViews]:
    """The objects of a folder with views, in the order of its list or of their names.

    Args:
        folder: an output of `spad generate` (one object or many), `spad render` or `spad pack`; a
            folder of images with cameras in any format of `load_cameras`, or such a camera file;
            or a folder of such folders only.

    Raises: ValueError: none of these, an object without cameras, a malformed camera file, or
        missing images.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"expected a folder of views with cameras, got {folder}: no such folder")
    if is_shard_folder(folder) or (folder / LISTING).is_file():
        return read_renders(folder)
    if not folder.is_dir() or _has_cameras(folder):
        return [_views_in(folder)]
    inside = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    without = [f for f in inside if not _has_cameras(f)]
    if not inside or len(without) == len(inside):
        raise ValueError(
            f"expected views with cameras in {folder}, got neither transforms.json, cameras.json, "
            "COLMAP's text files, objects.jsonl nor shards, there or in the folders inside"
        )
    if without:
        raise ValueError(
            f"expected cameras (transforms.json, cameras.json or COLMAP's) in every folder inside "
            f"{folder}, got none in {without[0].name}; move it elsewhere, or give it cameras"
        )
    return [_views_in(f) for f in inside]


def read_sets(folder: Path) -> list[ViewSet]:
    """Read all objects of a folder. Raises: ValueError: as `list_sets` and `ObjectViews.read`."""
    return [views.read() for views in list_sets(folder)]


def _has_cameras(folder: Path) -> bool:
    places = (folder, folder / "sparse" / "0")
    return any((place / name).is_file() for place in places for name in _CAMERA_FILES)


def _views_in(source: Path) -> ObjectViews:
    """The views of a folder with cameras, or of a camera file."""
    loaded = load_cameras(source)
    files = tuple(map(str, find_images(source, loaded.image_paths)))
    folder = source if source.is_dir() else source.parent
    return ObjectViews(folder.resolve().name, _captions_in(folder), loaded.cameras, files)


def _captions_in(folder: Path) -> tuple[str, ...]:
    """The prompt in `run.json`, or the captions in `transforms.json`, if there are any."""
    for name, field in ((RECORD, "prompts"), ("transforms.json", "captions")):
        try:
            data = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # Files of these names from other programs may have other contents.
            continue
        texts = data.get(field) if isinstance(data, dict) else None
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            return tuple(texts)
    return ()


def read_renders(folder: Path) -> list[ObjectViews]:
    """Every object of an output folder of `spad render` or `spad pack`, in the order of its list.

    Shards have the order of the renders they were packed from.

    Raises: ValueError: the folder is neither, a line is malformed, or a shard is damaged.
    """
    folder = Path(folder)
    if is_shard_folder(folder):
        return _read_shards(folder)

    def read(numbered_row: tuple[int, dict]) -> ObjectViews:
        row = numbered_row[1]
        place = folder / row.get("folder", row["uid"])
        loaded = load_cameras(place / "transforms.json")
        files = tuple(str(place / path) for path in loaded.image_paths)
        return ObjectViews(row["uid"], tuple(row["captions"]), loaded.cameras, files)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, read_listing(folder)))


def read_listing(renders: Path) -> list[tuple[int, dict]]:
    """The rows of `objects.jsonl`, numbered from 0.

    Raises: ValueError: it is missing, empty or malformed.
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
    """An object of `spad render`, and the paths of its images by kind, relative to its folder.

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
    """An image file that `transforms.json` names. Raises: ValueError: it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"expected the image {path}, which transforms.json names, got no such file"
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
        return ObjectViews(found.uid, found.captions, found.cameras, suffixes, sample)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, [samples[i] for i in np.argsort(rows)]))


def listing_path(folder: Path) -> Path:
    """The file that lists the objects of a folder with the hashes of their images."""
    return folder / (INDEX if is_shard_folder(folder) else LISTING)


def data_hash(folder: Path) -> str:
    """SHA-256 of the list of a folder's objects."""
    return hashlib.sha256(listing_path(folder).read_bytes()).hexdigest()


def count_objects(folder: Path) -> int:
    """Number of objects of a folder."""
    if is_shard_folder(folder):
        return read_shard_folder(folder).num_objects
    return len(listing_path(folder).read_text(encoding="utf-8").splitlines())


def base_uid(uid: str) -> str:
    """The id of the source object of a variant such as "ID~blue"; other ids unchanged."""
    return uid.partition(VARIANT)[0]


def is_held_out(uid: str, one_in: int = 16) -> bool:
    """Whether an object is in the test set, by a hash of its id.

    A recolored variant is held out if its source object is.
    """
    return int(hashlib.sha256(base_uid(uid).encode()).hexdigest(), 16) % one_in == 0


def load_all_images(objects: list[ObjectViews]) -> np.ndarray:
    """Images of all objects on white, uint8 (n, v, h, w, 3), read by several threads.

    Raises: ValueError: the objects differ in their number of views.
    """
    counts = {len(views.cameras) for views in objects}
    if len(counts) != 1:
        raise ValueError(
            f"expected the same number of views for every object, got {sorted(counts)}"
        )
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(ObjectViews.images, objects)))
