"""Pack the output of `spad render` into shards, in the layout of `spad.data.shards`.

A shard depends only on the settings and its objects, so its bytes are reproducible. Finished shards
are listed in a journal, from which a later run resumes; the index is written when all are finished.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from spad.data.config import PackConfig
from spad.data.recolor import LEAST_SHARE, recolored, share_of, variants
from spad.data.renders import ListedObject, is_held_out, read_listing, rendered_object
from spad.data.shards import (
    BLOCK,
    DEPTH_UNIT,
    FORMAT,
    INDEX,
    JOURNAL,
    LARGEST_IMAGE,
    ShardedObject,
    ShardRecord,
    is_shard_folder,
    key_of,
    object_json,
    read_index,
)
from spad.data.workers import num_cores
from spad.files import (
    append_json,
    as_kind,
    exclusive,
    json_text,
    read_bytes,
    read_json_lines,
    whole_file,
    write_json_lines,
    write_text,
)
from spad.hub.registry import load_model, model_info, weights_hash
from spad.images.pixels import image_tensor
from spad.images.reading import on_white, open_image

# Part of the settings: increment it when the bytes of the same settings change.
PACKER_VERSION = 2
NO_CAPTION = "no-caption.npy"
# Slower methods save 3 % more space and take at least twice as long.
_WEBP = {"lossless": True, "exact": True, "method": 2, "quality": 50}
_ENCODER_BATCH = 8
# Views used to measure how much of an object has a color.
_COLOR_VIEWS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PackSummary:
    """Summary of a run; `size` is the size of all shards in bytes."""

    index: Path
    num_objects: int
    num_views: int
    num_shards: int
    num_kept: int
    size: int

    def __str__(self) -> str:
        kept = f", {self.num_kept} of them from an earlier run" if self.num_kept else ""
        return (
            f"{self.num_objects:,} objects of {self.num_views} views in {self.num_shards:,} "
            f"shard{'s' * (self.num_shards > 1)}{kept}, {self.size / 1e6:,.1f} MB: {self.index}"
        )


@dataclass(frozen=True)
class _Row:
    """What becomes an object of a shard: a line of the listing, or a variant in other colors."""

    number: int
    listed: ListedObject
    uid: str
    captions: tuple[str, ...]
    recolor: tuple[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """What decides about the bytes of the object, for a hash."""
        said = self.listed.rest | {"uid": self.uid, "captions": self.captions}
        folder = self.listed.folder
        if self.recolor is not None:
            said |= {"recolor": self.recolor}
            folder = folder or self.listed.uid
        return said if folder is None else said | {"folder": folder}


@dataclass(frozen=True)
class _Header:
    """The first line of the journal."""

    settings: dict[str, Any]


@dataclass(frozen=True)
class _Object:
    """An object's members of a shard, and the layout that all objects must share."""

    about: ShardedObject
    images: list[tuple[str, bytes]]
    on_white: np.ndarray | None
    layout: dict[str, Any]


class _Encoder:
    """The model that computes latents and text embeddings."""

    def __init__(self, name: str):
        # Imported late: it loads diffusers, which packing without latents does not need.
        from spad.model.autoencoder import encode_scaled, encoder_hash

        self.encode = encode_scaled
        info = model_info(name)
        self.pipeline = load_model(name, dtype=torch.float32)
        self.record = {
            "model": info.name,
            "weights": weights_hash(info),
            "encoder": encoder_hash(self.pipeline.vae),
        }

    def latents(self, images: np.ndarray) -> np.ndarray:
        """Scaled latents (v, c, h, w), float16, of uint8 (v, h, w, 3) on white."""
        vae = self.pipeline.vae
        parts = image_tensor(images).split(_ENCODER_BATCH)
        latents = torch.cat([self.encode(vae, part.to(vae.device)).cpu() for part in parts])
        return self._checked(latents)

    def text(self, captions: Sequence[str]) -> np.ndarray:
        """Embeddings (captions, length, d), float16."""
        prefix = self.pipeline.config["prompt_prefix"]
        with torch.inference_mode():
            embedded = self.pipeline.encode_text(
                [caption and prefix + caption for caption in captions]
            )
        return self._checked(embedded.tokens.half().cpu())

    def _checked(self, values: torch.Tensor) -> np.ndarray:
        if not values.isfinite().all():
            raise ValueError(
                f"expected finite latents and text embeddings of {self.record['model']} in "
                "float16, got others"
            )
        return values.numpy()


def pack(config: PackConfig) -> PackSummary:
    """Write the objects of `config.renders` into shards in `config.output`.

    Every shard is written whole or not at all. A later run with the same settings resumes; after
    objects were added or removed, it writes only the shards that changed.

    Raises:
        ValueError: no renders; an image is missing, unreadable, modified or of another size;
            objects differ in views or passes; the output contains something else or shards of other
            settings, or another run writes it.
        OSError: the output cannot be written.
    """
    renders, output = Path(config.renders), Path(config.output)
    listing = read_listing(renders)
    rows = [_Row(n, one, one.uid, one.captions) for n, one in enumerate(listing)]
    if config.recolor:
        rows = _with_variants(renders, rows, config)
    if config.order == "mixed":
        rows.sort(key=lambda row: hashlib.sha256(f"{config.seed}:{row.uid}".encode()).digest())
    _check_output(output)
    encoder = _Encoder(config.latents) if config.latents else None
    settings = {
        "version": PACKER_VERSION,
        "image_format": config.image_format,
        "objects_per_shard": config.objects_per_shard,
        "order": config.order,
        "seed": config.seed,
        "latents": encoder.record if encoder else None,
    }
    if config.recolor:
        settings["recolor"] = config.recolor
    with exclusive(output):
        before = _previous(output, settings)
        plan = []
        for number, start in enumerate(range(0, len(rows), config.objects_per_shard)):
            part = rows[start : start + config.objects_per_shard]
            plan.append(
                (f"shard-{number:06d}.tar", part, _hash([settings, [r.to_json() for r in part]]))
            )
        records = {
            file: before[file]
            for file, _, inputs in plan
            if _is_there(output, before.get(file), inputs)
        }
        num_kept = len(records)
        if num_kept < len(plan) or len(before) > len(plan) or not (output / INDEX).is_file():
            lines = [{"settings": settings}, *map(asdict, records.values())]
            write_json_lines(output / JOURNAL, lines)
            (output / INDEX).unlink(missing_ok=True)
            _write_missing(config, plan, records, encoder)
            for file in before.keys() - records.keys():
                (output / file).unlink(missing_ok=True)
            _write_index(output, settings, plan, records, encoder)
    layout = next(iter(records.values())).layout
    size = sum(record.bytes for record in records.values())
    return PackSummary(output / INDEX, len(rows), layout["num_views"], len(plan), num_kept, size)


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"expected a folder for the output, got the file {output}")
    others = [p for p in output.iterdir() if p.name[0] != "."] if output.exists() else []
    if others and not is_shard_folder(output):
        raise ValueError(
            f"expected a new folder or one of spad pack, got {output}, which holds "
            f"{others[0].name}; choose another --output"
        )


def _previous(output: Path, settings: dict) -> dict[str, ShardRecord]:
    """The records of the shards that earlier runs finished, by file."""
    if (output / INDEX).is_file():
        index = read_index(output)
        made_with, records = index.settings, list(index.shards)
    elif (output / JOURNAL).is_file():
        lines = list(read_json_lines(output / JOURNAL, dict, is_journal=True))
        if not lines:
            return {}
        (where, header), *written = lines
        made_with = as_kind(header, _Header, where).settings
        records = [as_kind(line, ShardRecord, where) for where, line in written]
    else:
        return {}
    if made_with != settings:
        differing = [k for k, v in settings.items() if made_with.get(k) != v]
        raise ValueError(
            f"expected the settings that {output} was packed with, got others "
            f"({', '.join(differing)}); choose another --output, or the same settings to go on"
        )
    return {record.file: record for record in records}


def _is_there(output: Path, record: ShardRecord | None, inputs: str) -> bool:
    if record is None or record.inputs != inputs:
        return False
    path = output / record.file
    return path.is_file() and path.stat().st_size == record.bytes


def _write_missing(
    config: PackConfig,
    plan: Sequence[tuple[str, list[_Row], str]],
    records: dict[str, ShardRecord],
    encoder: _Encoder | None,
) -> None:
    """Write the shards without a record, and add their records."""
    output = Path(config.output)
    missing = [(file, rows, inputs) for file, rows, inputs in plan if file not in records]
    layout = next((record.layout for record in records.values()), None)
    workers = config.workers or num_cores()
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=sum(len(rows) for _, rows, _ in missing), unit="object") as bar,
    ):

        def members(rows: list[_Row]) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
            nonlocal layout
            found = _ahead(pool, lambda row: _read_object(row, config), rows, 2 * workers)
            for one in found:
                layout = layout or one.layout
                _check_layout(one, layout)
                yield one.about.uid, _members(one, encoder)
                bar.update()

        for file, rows, inputs in missing:
            written = _write_shard(output / file, members(rows))
            uids = tuple(row.uid for row in rows)
            record = ShardRecord(file, uids=uids, inputs=inputs, layout=layout or {}, **written)
            append_json(output / JOURNAL, asdict(record))
            records[file] = record


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    count: int,
) -> Iterator[Result]:
    """Results of `function` in order, computed at most `count` items ahead."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _with_variants(renders: Path, rows: Sequence[_Row], config: PackConfig) -> list[_Row]:
    """The rows of a listing, renumbered, each followed by those of its recolored variants."""

    def variants_of(row: _Row) -> list[_Row]:
        found = (
            []
            if is_held_out(row.uid)
            else variants(row.uid, row.captions, config.recolor, config.seed)
        )
        if not found or _color_share(renders, row.listed, found[0].source) < LEAST_SHARE:
            return []
        return [_Row(0, row.listed, v.uid, tuple(v.captions), (v.source, v.target)) for v in found]

    with ThreadPoolExecutor(config.workers or num_cores()) as pool:
        lists = list(pool.map(variants_of, rows))
    whole = [one for row, others in zip(rows, lists, strict=True) for one in (row, *others)]
    return [replace(row, number=number) for number, row in enumerate(whole)]


def _color_share(renders: Path, listed: ListedObject, color: str) -> float:
    """Share of an object that has a color, measured in a few views."""
    _, paths = rendered_object(renders, listed)
    folder = listed.views_in(renders)
    names = paths["color"][:: -(-len(paths["color"]) // _COLOR_VIEWS)]
    return share_of(color, np.stack([_rgba(folder / name) for name in names]))


def _rgba(path: Path) -> np.ndarray:
    return np.asarray(open_image(read_bytes(path, LARGEST_IMAGE), str(path)).convert("RGBA"))


def _read_object(row: _Row, config: PackConfig) -> _Object:
    renders = Path(config.renders)
    about, paths = rendered_object(renders, row.listed)
    about = replace(about, uid=row.uid, captions=row.captions)
    folder, cameras = row.listed.views_in(renders), about.cameras
    suffixes = {kind: f"{kind}.png" for kind in paths} | {"color": config.image_format}
    if "normals" in paths:
        suffixes["normals"] = f"normals.{config.image_format}"
    images, lines, white = [], [], []
    repainted = None
    if row.recolor is not None:
        originals = np.stack([_rgba(folder / name) for name in paths["color"]])
        repainted = [Image.fromarray(one) for one in recolored(originals, *row.recolor)]
    for view in range(len(cameras)):
        for kind, names in paths.items():
            source = folder / names[view]
            data = read_bytes(source, LARGEST_IMAGE)
            lines.append(f"{names[view]} {hashlib.sha256(data).hexdigest()}\n")
            image = open_image(data, str(source))
            if image.size != (cameras.width, cameras.height):
                raise ValueError(
                    f"{source}: expected {cameras.width}x{cameras.height} pixels (width x height), "
                    f"as in transforms.json, got {image.width}x{image.height}"
                )
            if repainted is not None and kind == "color":
                image = repainted[view]
            suffix = suffixes[kind]
            images.append((f"{view:03d}.{suffix}", _encoded(image, data, suffix)))
            if config.latents and kind == "color":
                white.append(on_white(image))
    digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    if about.made.get("pictures_sha256", digest) != digest:
        raise ValueError(
            f"{folder}: expected the images of spad render, got modified ones; remove the folder "
            "and render it again"
        )
    layout = {
        "num_views": len(cameras),
        "height": cameras.height,
        "width": cameras.width,
        "pictures": suffixes,
    }
    return _Object(about, images, np.stack(white) if white else None, layout)


def _encoded(image: Image.Image, data: bytes, suffix: str) -> bytes:
    """An image in the format of its suffix; `data` is the file it was read from."""
    if suffix.endswith("png") and image.format == "PNG":
        return data
    encoded = BytesIO()
    if suffix.endswith("png"):
        image.save(encoded, "PNG")
    else:
        image.convert("RGBA").save(encoded, "WEBP", **_WEBP)
    return encoded.getvalue()


def _check_layout(one: _Object, layout: dict) -> None:
    for name, value in one.layout.items():
        if value != layout[name]:
            raise ValueError(
                f"expected {name} {layout[name]} of every object, got {value} of {one.about.uid}; "
                "render all with the same settings"
            )


def _members(one: _Object, encoder: _Encoder | None) -> list[tuple[str, bytes]]:
    members = [("json", object_json(one.about))]
    if encoder is not None:
        assert one.on_white is not None
        members.append(("latents.npy", _npy(encoder.latents(one.on_white))))
        members.append(("text.npy", _npy(encoder.text(one.about.captions))))
    return members + one.images


def _npy(array: np.ndarray) -> bytes:
    encoded = BytesIO()
    np.save(encoded, array)
    return encoded.getvalue()


def _write_shard(
    path: Path, objects: Iterable[tuple[str, list[tuple[str, bytes]]]]
) -> dict[str, Any]:
    """Write a tar of objects, whole or not at all. Returns: its size, hash and offsets."""
    digest, offsets = hashlib.sha256(), [0]
    with whole_file(path) as unfinished, open(unfinished, "wb") as file:
        for uid, members in objects:
            for suffix, data in members:
                # A new TarInfo has no date or owner, so that the bytes are reproducible.
                member = tarfile.TarInfo(f"{key_of(uid)}.{suffix}")
                member.size = len(data)
                padded = data + bytes(-len(data) % BLOCK)
                for piece in (member.tobuf(tarfile.USTAR_FORMAT), padded):
                    file.write(piece)
                    digest.update(piece)
            offsets.append(file.tell())
        end = bytes(2 * BLOCK)
        file.write(end)
        digest.update(end)
        size = file.tell()
    return {"bytes": size, "sha256": digest.hexdigest(), "offsets": tuple(offsets)}


def _write_index(
    output: Path,
    settings: dict,
    plan: Sequence[tuple[str, list[_Row], str]],
    records: dict[str, ShardRecord],
    encoder: _Encoder | None,
) -> None:
    latents = None
    if encoder is not None:
        with whole_file(output / NO_CAPTION) as unfinished:
            np.save(unfinished, encoder.text([""])[0])
        latents = encoder.record | {"no_caption": NO_CAPTION}
    shards = [
        replace(records[file], rows=tuple(row.number for row in rows)) for file, rows, _ in plan
    ]
    index = {
        "format": FORMAT,
        "settings": settings,
        "settings_sha256": _hash(settings),
        "num_objects": sum(len(shard.uids) for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        **shards[0].layout,
        "depth_unit": DEPTH_UNIT,
        "latents": latents,
        "shards": [asdict(shard) for shard in shards],
    }
    write_text(output / INDEX, json_text(index, indent=None))
    (output / JOURNAL).unlink()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
