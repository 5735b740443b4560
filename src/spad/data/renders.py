"""Find the views of objects in folders: renders, shards, and folders with any camera file."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spad.cameras import load_cameras
from spad.cameras.formats import has_cameras
from spad.data.shards import INDEX, Sample, ShardedObject, is_shard_folder, read_shard_folder
from spad.data.view_sets import PosedImages
from spad.files import RECORD, file_hash, inside, read_json, read_json_lines, short
from spad.images.posed import find_images

# Separator of the id of an object and the color of its variant.
VARIANT = "~"
LISTING = "objects.jsonl"
_MADE = ("renderer", "render_settings", "asset_sha256", "pictures_sha256")
# Kinds of images by their field in transforms.json.
_KINDS = {
    "file_path": "color",
    "depth_file_path": "depth",
    "normal_file_path": "normals",
    "mask_path": "mask",
}


@dataclass(frozen=True)
class ListedObject:
    """A line of `objects.jsonl`. `folder` has the views; None: the folder named `uid`."""

    uid: str
    captions: tuple[str, ...]
    rest: dict[str, Any]
    folder: str | None = None

    def __post_init__(self) -> None:
        if not self.uid.isprintable() or self.uid in ("", ".", "..") or {"/", "\\"} & set(self.uid):
            raise ValueError(f"expected a uid that can name a folder, got {short(self.uid)}")
        if not self.captions:
            raise ValueError("expected captions, got none")

    def views_in(self, renders: Path) -> Path:
        """Folder of its views. Raises: ValueError: it is outside `renders`."""
        return inside(renders, self.folder or self.uid, f"{renders / LISTING}, {self.uid}")


@dataclass(frozen=True)
class Frame:
    """Names of the images of a view in `transforms.json`."""

    file_path: str
    rest: dict[str, Any]
    depth_file_path: str | None = None
    normal_file_path: str | None = None
    mask_path: str | None = None


@dataclass(frozen=True)
class RenderedRecord:
    """Fields of `transforms.json` beside the cameras; empty where they are missing."""

    frames: tuple[Frame, ...]
    rest: dict[str, Any]
    object_from_asset: list[list[float]] | None = None
    notes: dict[str, str] = field(default_factory=dict)
    renderer: str = ""
    render_settings: str = ""
    asset_sha256: str = ""
    pictures_sha256: str = ""


def list_sets(folder: Path) -> list[PosedImages]:
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
    if not folder.is_dir() or has_cameras(folder):
        return [find_views(folder)]
    folders = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    without = [f for f in folders if not has_cameras(f)]
    if not folders or len(without) == len(folders):
        raise ValueError(
            f"expected views with cameras in {folder}, got neither transforms.json, cameras.json, "
            "COLMAP's files, objects.jsonl nor shards, there or in the folders inside"
        )
    if without:
        raise ValueError(
            f"expected cameras (transforms.json, cameras.json or COLMAP's) in every folder inside "
            f"{folder}, got none in {without[0].name}; move it elsewhere, or give it cameras"
        )
    return [find_views(f) for f in folders]


def find_views(source: Path, images: Path | None = None) -> PosedImages:
    """The views of a folder with cameras, or of a camera file.

    Args:
        source: whatever `spad.cameras.load_cameras` reads.
        images: folder of the images. Default: where `spad.images.posed.find_images` looks.

    Raises: ValueError: cameras as `load_cameras` refuses them, or an image is missing.
    """
    loaded = load_cameras(source)
    files = tuple(map(str, find_images(source, loaded.image_paths, images)))
    folder = source if source.is_dir() else source.parent
    return PosedImages(folder.resolve().name, _captions_in(folder), loaded.cameras, files)


def _captions_in(folder: Path) -> tuple[str, ...]:
    """The prompt in `run.json`, or the captions in `transforms.json`, if there are any."""
    for name, key in ((RECORD, "prompts"), ("transforms.json", "captions")):
        try:
            data = read_json(folder / name, dict)
        except ValueError:
            # Files of these names from other programs may have other contents.
            continue
        texts = data.get(key)
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            return tuple(texts)
    return ()


def read_renders(folder: Path) -> list[PosedImages]:
    """Every object of an output folder of `spad render` or `spad pack`, in the order of its list.

    Shards have the order of the renders they were packed from.

    Raises: ValueError: the folder is neither, a line is malformed, or a shard is damaged.
    """
    folder = Path(folder)
    if is_shard_folder(folder):
        return _read_shards(folder)

    def read(listed: ListedObject) -> PosedImages:
        place = listed.views_in(folder)
        path = place / "transforms.json"
        loaded = load_cameras(path)
        files = tuple(str(inside(place, name, path)) for name in loaded.image_paths)
        return PosedImages(listed.uid, listed.captions, loaded.cameras, files)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, read_listing(folder)))


def read_listing(renders: Path) -> list[ListedObject]:
    """The lines of `objects.jsonl`.

    Raises: ValueError: it is missing, empty or malformed.
    """
    listing = renders / LISTING
    if not listing.is_file():
        raise ValueError(
            f"expected {listing}; make one with: spad render MODELS --output {renders}"
        )
    objects: dict[str, ListedObject] = {}
    for where, listed in read_json_lines(listing, ListedObject):
        if listed.uid in objects:
            raise ValueError(f"{where}: expected every id once, got {listed.uid} again")
        objects[listed.uid] = listed
    if not objects:
        raise ValueError(f"expected objects in {listing}, got none; did all renders fail?")
    return list(objects.values())


def rendered_object(
    renders: Path, listed: ListedObject
) -> tuple[ShardedObject, dict[str, list[str]]]:
    """An object of `spad render`, and the paths of its images by kind, relative to its folder.

    Raises: ValueError: its `transforms.json` is missing or malformed.
    """
    folder = listed.views_in(renders)
    path = folder / "transforms.json"
    cameras = load_cameras(path).cameras
    record = read_json(path, RenderedRecord)
    kinds = {kind: key for key, kind in _KINDS.items() if getattr(record.frames[0], key)}
    names: dict[str, list[str]] = {kind: [] for kind in kinds}
    for view, frame in enumerate(record.frames):
        for kind, key in kinds.items():
            if (name := getattr(frame, key)) is None:
                raise ValueError(f"{path}: expected {key} in frame {view}, got none")
            inside(folder, name, path)
            names[kind].append(name)
    made = {name: getattr(record, name) for name in _MADE if getattr(record, name)}
    about = ShardedObject(
        listed.uid, listed.captions, cameras, record.object_from_asset, record.notes, made
    )
    return about, names


def _read_shards(folder: Path) -> list[PosedImages]:
    index = read_shard_folder(folder)
    suffixes = tuple(index.suffix("color", view) for view in range(index.num_views))
    rows, samples = [], []
    for shard in index.shards:
        rows += shard.rows
        samples += [shard.sample(i) for i in range(len(shard.uids))]

    def read(sample: Sample) -> PosedImages:
        found = sample.read_object()
        return PosedImages(found.uid, found.captions, found.cameras, suffixes, sample)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, [samples[i] for i in np.argsort(rows)]))


def listing_path(folder: Path) -> Path:
    """The file that lists the objects of a folder with the hashes of their images."""
    return folder / (INDEX if is_shard_folder(folder) else LISTING)


def data_hash(folder: Path) -> str:
    """SHA-256 of the list of a folder's objects."""
    return file_hash(listing_path(folder))


def count_objects(folder: Path) -> int:
    """Number of objects of a folder."""
    if is_shard_folder(folder):
        return read_shard_folder(folder).num_objects
    return len(read_listing(folder))


def base_uid(uid: str) -> str:
    """The id of the source object of a variant such as "ID~blue"; other ids unchanged."""
    return uid.partition(VARIANT)[0]


def is_held_out(uid: str, one_in: int = 16) -> bool:
    """Whether an object is in the test set, by a hash of its id.

    A recolored variant is held out if its source object is.
    """
    return int(hashlib.sha256(base_uid(uid).encode()).hexdigest(), 16) % one_in == 0


def load_all_images(objects: list[PosedImages]) -> np.ndarray:
    """Images of all objects on white, uint8 (n, v, h, w, 3), read by several threads.

    Raises: ValueError: the objects differ in their number of views.
    """
    counts = {len(views.cameras) for views in objects}
    if len(counts) != 1:
        raise ValueError(
            f"expected the same number of views for every object, got {sorted(counts)}"
        )
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(PosedImages.images, objects)))
