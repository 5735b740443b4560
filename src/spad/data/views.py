"""Read the folders that `spad render` writes: pictures, cameras and captions of many objects."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spad.camera_formats import load_cameras
from spad.cameras import Cameras


@dataclass(frozen=True)
class ObjectViews:
    """All rendered views of one object: where the pictures are, and where they were taken from."""

    uid: str
    captions: tuple[str, ...]
    cameras: Cameras
    image_paths: tuple[Path, ...]

    def images(self) -> np.ndarray:
        """Pictures on white, uint8 (v, h, w, 3)."""
        return np.stack([read_on_white(path) for path in self.image_paths])


def read_on_white(path: Path) -> np.ndarray:
    """One picture with its transparency composited on white, uint8 (h, w, 3)."""
    with Image.open(path) as picture:
        rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def read_renders(folder: Path) -> list[ObjectViews]:
    """Every object listed in `folder/objects.jsonl`, in that file's order.

    Raises: ValueError: the folder holds no `objects.jsonl` or a line of it is malformed.
    """
    folder = Path(folder)
    index = folder / "objects.jsonl"
    if not index.is_file():
        raise ValueError(f"expected {index}; make one with: spad render MODELS --output {folder}")

    def read(numbered_line: tuple[int, str]) -> ObjectViews:
        number, line = numbered_line
        try:
            row = json.loads(line)
            uid, captions = row["uid"], tuple(row["captions"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{index}, line {number}: expected uid and captions ({error})"
            ) from None
        views = folder / row.get("folder", uid)
        loaded = load_cameras(views / "transforms.json")
        paths = tuple(views / path for path in loaded.image_paths)
        return ObjectViews(uid, captions, loaded.cameras, paths)

    lines = index.read_text().splitlines()
    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, enumerate(lines, start=1)))


def is_held_out(uid: str, one_in: int = 16) -> bool:
    """Whether an object belongs to the test set: a hash of its id decides, so it never changes."""
    return int(hashlib.sha256(uid.encode()).hexdigest(), 16) % one_in == 0


def load_all_images(objects: list[ObjectViews]) -> np.ndarray:
    """Pictures of all objects on white, uint8 (n, v, h, w, 3), read by several threads.

    Raises: ValueError: the objects differ in their number of views.
    """
    counts = {len(views.image_paths) for views in objects}
    if len(counts) != 1:
        raise ValueError(
            f"expected the same number of views for every object, got {sorted(counts)}"
        )
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(ObjectViews.images, objects)))


def image_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (..., h, w, 3) -> float (..., 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).movedim(-1, -3).float().div_(127.5).sub_(1)
