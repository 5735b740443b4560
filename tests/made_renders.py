"""Folders laid out as `spad render` writes them, made up: noise for pictures, any ids."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from spad.cameras import Cameras, save_transforms

SIZE = 32


def write_renders(
    folder: Path, uids: Sequence[str], num_random: int = 2, passes: Sequence[str] = ()
) -> Path:
    """Objects of `num_random` views and four a quarter turn apart, each with two captions."""
    rows = [_write_object(folder, uid, num_random, passes) for uid in uids]
    (folder / "objects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _write_object(folder: Path, uid: str, num_random: int, passes: Sequence[str]) -> dict:
    rng = np.random.default_rng(list(uid.encode()))
    name = hashlib.sha256(uid.encode()).hexdigest()[:12]
    fov = rng.uniform(0.6, 0.8, num_random + 4)
    cameras = Cameras.orbit(
        np.append(rng.uniform(-10, 60, num_random), [rng.uniform(0, 40)] * 4).tolist(),
        np.append(rng.uniform(0, 360, num_random), 20 + np.arange(4) * 90.0).tolist(),
        fov_rad=fov.tolist(),
        height=SIZE,
        width=SIZE,
    )
    count = len(cameras)
    pictures = {("file_path", "images"): rng.integers(0, 256, (count, SIZE, SIZE, 4), np.uint8)}
    # Colors under full transparency are data too.
    pictures["file_path", "images"][:, :8, :, 3] = 0
    if "depth" in passes:
        depth = rng.integers(2500, 4500, (count, SIZE, SIZE)).astype(np.uint16)
        depth[:, :8] = 0
        pictures["depth_file_path", "depth"] = depth
    if "normals" in passes:
        normals = rng.integers(0, 256, (count, SIZE, SIZE, 4), np.uint8)
        pictures["normal_file_path", "normals"] = normals
    if "mask" in passes:
        mask = rng.integers(0, 2, (count, SIZE, SIZE), np.uint8) * 255
        pictures["mask_path", "masks"] = mask
    paths, lines = {}, []
    for (field, kind), images in pictures.items():
        (folder / name / kind).mkdir(parents=True)
        paths[field] = [f"{kind}/{view:03d}.png" for view in range(count)]
        for path, image in zip(paths[field], images, strict=True):
            Image.fromarray(image).save(folder / name / path)
            digest = hashlib.sha256((folder / name / path).read_bytes()).hexdigest()
            lines.append(f"{path} {digest}\n")
    record = folder / name / "transforms.json"
    save_transforms(record, cameras, paths.pop("file_path"), **paths)
    captions = [f"thing {uid}", "a thing"]
    data = json.loads(record.read_text()) | {
        "uid": uid,
        "captions": captions,
        "object_from_asset": np.eye(4).tolist(),
        "asset_sha256": "0" * 64,
        "renderer": "embree",
        "render_settings": "made-up",
        "pictures_sha256": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
        "notes": {"single-color": "all of it is gray"},
    }
    record.write_text(json.dumps(data))
    digest = hashlib.sha256(record.read_bytes()).hexdigest()
    return {"uid": uid, "captions": captions, "folder": name, "num_views": count, "sha256": digest}
