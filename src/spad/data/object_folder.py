"""The output folder of one rendered object: images, cameras and how they were made."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image

from spad.cameras import Cameras, save_transforms
from spad.data.assets import Asset
from spad.data.config import RenderConfig
from spad.data.renders import RenderedRecord
from spad.data.shards import DEPTH_UNIT
from spad.files import file_hash, json_text, parse_json, read_bytes, read_json, write_text
from spad.files.writing import UNFINISHED
from spad.meshes.raycast import RenderBuffers
from spad.meshes.renderers import RenderResult, find_renderer

_RECORD = "transforms.json"
_CAMERA_FIELDS = {
    "training": ("num_random", "num_orthogonal_sets"),
    "paper": ("views",),
    "sphere": ("views",),
    "orbit": ("views", "elevation"),
}
# Names in the hash of settings, fixed by folders of earlier versions.
_HASHED_AS = {"views": "num_views", "elevation": "elevation_deg"}
_RENDERER_FIELDS = {
    "embree": ("samples_per_side",),
    "blender": ("blender_engine", "blender_samples"),
}


@dataclass(frozen=True)
class ObjectRecord:
    """Summary of a finished folder.

    Attributes:
        num_views: number of views.
        notes: findings of the checks, by check.
        sha256: hash of `transforms.json`, which contains the hash of the images.
    """

    num_views: int
    notes: dict[str, str]
    sha256: str


def settings_hash(config: RenderConfig) -> str:
    """Hash of the settings that affect the images of an object."""
    names = ("renderer", "cameras", "image_size", "normalize", "up", "seed")
    names += _CAMERA_FIELDS[config.cameras] + _RENDERER_FIELDS[config.renderer]
    values = vars(config) | vars(config.drawing)
    settings = {_HASHED_AS.get(name, name): values[name] for name in names}
    settings |= {
        "passes": sorted(set(config.passes)),
        "version": find_renderer(config.renderer).version,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def write_object(
    folder: Path,
    asset: Asset,
    rendering: RenderResult,
    cameras: Cameras,
    notes: Mapping[str, str],
    config: RenderConfig,
) -> None:
    """Write an object's folder, whole or not at all.

    It is made among what is unfinished in the output, under a unique name, so that several workers
    may write the same object; the first complete one is kept.
    """
    partial = Path(config.output) / UNFINISHED / f"{asset.uid}.{uuid4().hex}"
    try:
        paths, digest = _write_images(partial, rendering.views, config.passes)
        record = partial / _RECORD
        save_transforms(record, cameras, paths.pop("file_path"), **paths)
        data = read_json(record, dict) | {
            "uid": asset.uid,
            "captions": asset.captions,
            "object_from_asset": rendering.object_from_asset.tolist(),
            "asset_sha256": file_hash(asset.path),
            "renderer": config.renderer,
            "render_settings": settings_hash(config),
            "pictures_sha256": digest,
            "notes": dict(notes),
        }
        write_text(record, json_text(data, indent=1))
        folder.parent.mkdir(exist_ok=True)
        try:
            os.rename(partial, folder)
        except OSError:
            if not (folder / _RECORD).is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_images(
    folder: Path, views: RenderBuffers, passes: tuple[str, ...]
) -> tuple[dict[str, list[str]], str]:
    """Write the images of every pass.

    Returns: their paths, by the field of transforms.json, and the SHA-256 of the sorted lines
        "PATH SHA256".
    """
    images = {("file_path", "images"): views.rgba}
    if "depth" in passes:
        steps = np.rint(np.where(views.mask, views.depth, 0) / DEPTH_UNIT)
        images["depth_file_path", "depth"] = steps.clip(0, 65535).astype(np.uint16)
    if "normals" in passes:
        colors = np.rint((views.normals * 0.5 + 0.5) * 255) * views.mask[..., None]
        alpha = views.mask[..., None] * 255
        encoded = np.concatenate([colors, alpha], axis=-1).astype(np.uint8)
        images["normal_file_path", "normals"] = encoded
    if "mask" in passes:
        images["mask_path", "masks"] = views.mask.astype(np.uint8) * 255
    paths, lines = {}, []
    for (field, name), of_pass in images.items():
        (folder / name).mkdir(parents=True)
        paths[field] = [f"{name}/{view:03d}.png" for view in range(len(of_pass))]
        for path, image in zip(paths[field], of_pass, strict=True):
            encoded = BytesIO()
            Image.fromarray(image).save(encoded, "PNG", compress_level=1)
            (folder / path).write_bytes(encoded.getbuffer())
            lines.append(f"{path} {hashlib.sha256(encoded.getbuffer()).hexdigest()}\n")
    return paths, hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def read_object(folder: Path, asset: Asset, settings: str) -> ObjectRecord:
    """Summary of a folder that `write_object` made.

    Raises: ValueError: it comes from elsewhere, from other settings or from another model file.
    """
    path = folder / _RECORD
    try:
        text, written = read_bytes(path), path.stat().st_mtime
        record = parse_json(text, RenderedRecord, path)
        if not record.render_settings or not record.asset_sha256:
            raise ValueError(f"{path}: expected what it was rendered with and from, got none")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected a folder of spad render, got {folder}, which is something else ({error}); "
            "choose another --output"
        ) from None
    if record.render_settings != settings:
        raise ValueError(
            f"expected the settings that {folder} was rendered with, got others; "
            "choose another --output, or the same settings to go on"
        )
    if not is_same_file(asset.path, record.asset_sha256, written):
        raise ValueError(
            f"{folder} was rendered from another file than {asset.path}; "
            "choose another --output, or remove that folder"
        )
    return ObjectRecord(len(record.frames), record.notes, hashlib.sha256(text).hexdigest())


def is_same_file(path: Path, sha256: str, since: float) -> bool:
    """Whether a file has had this hash since a time, in seconds since the epoch.

    It is read only if its dates are later, so that finished models are not read again.
    """
    if not path.is_file():
        return False
    status = path.stat()
    return max(status.st_mtime, status.st_ctime) < since or file_hash(path) == sha256
