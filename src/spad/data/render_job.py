"""Views of many models, as folders that training and nerfstudio read: what `spad render` does."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spad.camera_formats import save_transforms
from spad.cameras import DEFAULT_FOV_RAD, DEFAULT_RADIUS, Cameras
from spad.config import RenderConfig
from spad.data.objects import MODEL_SUFFIXES, load_object
from spad.data.render import RenderedViews, render_views

log = logging.getLogger(__name__)

# Part of the settings' hash: raise it when the same settings begin to give other pictures.
RENDERER_VERSION = 1
DEPTH_UNIT = 1e-3


@dataclass(frozen=True)
class Asset:
    """A model file and what it shows."""

    uid: str
    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class RenderSummary:
    """What a run did. `failures` holds (uid, reason) of the models that could not be rendered."""

    index: Path
    rendered: int
    skipped: int
    failures: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        text = f"{self.rendered} objects rendered, {self.skipped} already there: {self.index}"
        if self.failures:
            text += f"; {len(self.failures)} failed, see {self.index.with_name('failed.jsonl')}"
        return text


def training_cameras(
    seed: int, num_random: int, num_orthogonal_sets: int, height: int, width: int
) -> Cameras:
    """Cameras to learn from: random ones first, then sets of four a quarter turn apart.

    Random cameras have any azimuth; seven in ten an elevation of -10 to 40 degrees, the others
    -15 to 75, uniform on the sphere; radius and field of view vary by a tenth or so around the
    defaults. The four cameras of a set share one elevation of -5 to 40 degrees and have the
    default radius and field of view.

    Source: SPAD, section 4 (random and orthogonal viewpoints). Differs: the paper's elevations
    reach the poles; this range is where people look from.
    """
    rng = np.random.default_rng(seed)
    common = rng.random(num_random) < 0.7
    low = np.sin(np.radians(np.where(common, -10.0, -15.0)))
    high = np.sin(np.radians(np.where(common, 40.0, 75.0)))
    elevation = np.degrees(np.arcsin(rng.uniform(low, high)))
    azimuth = rng.uniform(0, 360, num_random)
    radius = DEFAULT_RADIUS * rng.uniform(0.9, 1.15, num_random)
    fov = DEFAULT_FOV_RAD * rng.uniform(0.9, 1.1, num_random)
    set_elevation = rng.uniform(-5, 40, num_orthogonal_sets)
    set_azimuth = rng.uniform(0, 360, num_orthogonal_sets)
    quarters = np.arange(4) * 90.0
    num_in_sets = 4 * num_orthogonal_sets
    return Cameras.orbit(
        elevation_deg=np.concatenate([elevation, np.repeat(set_elevation, 4)]),
        azimuth_deg=np.concatenate([azimuth, (set_azimuth[:, None] + quarters).ravel() % 360]),
        radius=np.concatenate([radius, np.full(num_in_sets, DEFAULT_RADIUS)]),
        fov_rad=np.concatenate([fov, np.full(num_in_sets, DEFAULT_FOV_RAD)]),
        height=height,
        width=width,
    )


def object_seed(seed: int, uid: str) -> int:
    """A seed for one object that depends on nothing but its id and the run's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{uid}".encode()).digest()[:8], "big")


def find_assets(config: RenderConfig) -> list[Asset]:
    """The models a configuration names, in the index's order or sorted by path.

    An index has one JSON object a line: `file` (relative to `config.root`, else to the index's
    folder), and optionally `uid`, `caption`, `short` and `skip`. In a folder, a model's id is its
    relative path and its caption the words of its file name.

    Raises: ValueError: nothing there, a malformed line, or two models of one id.
    """
    source = Path(config.assets)
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in MODEL_SUFFIXES)
        rows = [{"file": p.relative_to(source).as_posix()} for p in paths]
        root = source
    elif source.is_file():
        rows = _read_index(source)
        root = Path(config.root) if config.root else source.parent
    else:
        raise ValueError(f"expected a folder of models or a .jsonl index, got nothing at {source}")
    assets = [_asset(row, root) for row in rows if not row.get("skip", False)]
    if not assets:
        raise ValueError(f"expected models ({', '.join(MODEL_SUFFIXES)}) in {source}, got none")
    seen: dict[str, Path] = {}
    for asset in assets:
        if asset.uid in seen:
            raise ValueError(
                f"expected one model for each id, got {seen[asset.uid]} and {asset.path} "
                f"for {asset.uid!r}"
            )
        seen[asset.uid] = asset.path
    return assets[: config.limit]


def _read_index(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: expected JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("file"), str):
            raise ValueError(f"{path}, line {number}: expected an object with a 'file'")
        rows.append(row)
    return rows


def _asset(row: dict, root: Path) -> Asset:
    name = Path(row["file"]).with_suffix("").as_posix()
    uid = str(row.get("uid") or re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace("/", "__")))
    # The id names a folder: nothing in it may lead elsewhere or hide it.
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", uid):
        raise ValueError(f"expected a uid of letters, digits, '.', '_' and '-', got {uid!r}")
    captions = tuple(str(row[key]) for key in ("caption", "short") if row.get(key))
    words = re.sub(r"[\W_]+", " ", Path(name).name).strip().lower()
    return Asset(uid, root / row["file"], captions or (words,))


def render_all(
    config: RenderConfig, progress: Callable[[int, int], None] | None = None
) -> RenderSummary:
    """Render every model of `config` into `<output>/<uid>/`, and list them in `objects.jsonl`.

    Each folder holds `images/000.png` (RGBA), `transforms.json`, and for every pass
    `depth/000.png` (16 bit, thousandths of a world unit, 0 for nothing), `normals/000.png`
    (world normal n as n / 2 + 1 / 2, alpha where there is a surface) or `masks/000.png`. A folder
    appears when it is complete; a run that was stopped goes on where it was. A model that cannot
    be read is listed in `failed.jsonl` and stops nothing. The result does not depend on the
    number of workers.

    Args:
        config: what to render, and how.
        progress: called with (done, total) after every object; a bar on stderr if None.

    Raises:
        ValueError: no models, or the output holds folders made with other settings or from
            other files.
        OSError: the output cannot be written, or a worker process died.
    """
    assets = find_assets(config)
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"expected a folder for the output, got the file {output}")
    output.mkdir(parents=True, exist_ok=True)
    settings = _settings_hash(config)
    todo = [asset for asset in assets if not _is_rendered(asset, output, settings)]
    log.info("%d objects to render, %d already there", len(todo), len(assets) - len(todo))
    failures = {}
    with (
        _progress(progress, len(todo)) as advance,
        closing(_run(config, settings, todo)) as results,
    ):
        for asset, reason in results:
            if reason is not None:
                failures[asset.uid] = reason
                log.warning("%s: %s", asset.uid, reason)
            advance()
    done = [asset for asset in assets if asset.uid not in failures]
    _write_lines(output / "failed.jsonl", [{"uid": u, "reason": r} for u, r in failures.items()])
    _write_lines(output / "objects.jsonl", [_index_row(asset, output) for asset in done])
    return RenderSummary(
        index=output / "objects.jsonl",
        rendered=len(todo) - len(failures),
        skipped=len(assets) - len(todo),
        failures=tuple(failures.items()),
    )


def _run(
    config: RenderConfig, settings: str, assets: Sequence[Asset]
) -> Iterator[tuple[Asset, str | None]]:
    """(asset, reason it failed or None) in order, from as many processes as asked for."""
    jobs = [(config, settings, asset) for asset in assets]
    workers = min(config.workers or os.cpu_count() or 1, len(assets))
    if workers <= 1:
        yield from zip(assets, map(_render_asset, jobs), strict=True)
        return
    with _single_threaded_children():
        executor = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start_worker
        )
        try:
            yield from zip(assets, executor.map(_render_asset, jobs, chunksize=4), strict=True)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker died, perhaps of too little memory; the same command goes on where it "
                "stopped, try fewer --workers"
            ) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    # Ctrl-C goes to the parent, which lets every worker finish its object.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Numerical libraries read these when they load, so they must stand before a child starts."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _progress(
    report: Callable[[int, int], None] | None, total: int
) -> Iterator[Callable[[], None]]:
    if report is None:
        from tqdm import tqdm

        with tqdm(total=total, unit="object", smoothing=0.05) as bar:
            yield bar.update
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        report(done, total)

    yield advance


def _settings_hash(config: RenderConfig) -> str:
    names = ("image_size", "num_random", "num_orthogonal_sets", "samples_per_side", "normalize")
    settings = {name: getattr(config, name) for name in (*names, "seed", "up")}
    settings |= {"passes": sorted(config.passes), "version": RENDERER_VERSION}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _is_rendered(asset: Asset, output: Path, settings: str) -> bool:
    """Whether an asset's folder is there.

    Raises: ValueError: it is, but with other settings or from another file.
    """
    record = output / asset.uid / "transforms.json"
    if not record.parent.exists():
        return False
    try:
        recorded = json.loads(record.read_text(encoding="utf-8"))
        made_with, made_from = recorded["render_settings"], recorded["asset_sha256"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(
            f"expected {record.parent} to come from spad render, got something else; "
            "choose another --output"
        ) from None
    if made_with != settings:
        raise ValueError(
            f"expected the settings that {record.parent} was rendered with, got others; "
            "choose another --output, or the same settings to go on"
        )
    if not asset.path.is_file() or made_from != _file_hash(asset.path):
        raise ValueError(
            f"{record.parent} was rendered from another file than {asset.path}; "
            "choose another --output, or remove that folder"
        )
    return True


def _render_asset(job: tuple[RenderConfig, str, Asset]) -> str | None:
    """Write one object's folder; the reason when its model cannot be used."""
    config, settings, asset = job
    size = config.image_size
    cameras = training_cameras(
        object_seed(config.seed, asset.uid),
        config.num_random,
        config.num_orthogonal_sets,
        size,
        size,
    )
    try:
        obj = load_object(asset.path, config.normalize, config.up)
    except ValueError as error:
        return str(error)
    views = render_views(
        obj,
        cameras.world_from_cam.numpy(),
        cameras.intrinsics.numpy(),
        size,
        size,
        config.samples_per_side,
        geometry=bool(config.passes),
    )
    folder = Path(config.output) / asset.uid
    partial = folder.with_name(f".{asset.uid}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        paths = _write_pictures(partial, views, config.passes)
        record = partial / "transforms.json"
        save_transforms(record, cameras, paths.pop("file_path"), **paths)
        data = json.loads(record.read_text(encoding="utf-8")) | {
            "uid": asset.uid,
            "captions": asset.captions,
            "object_from_asset": obj.object_from_asset.tolist(),
            "asset_sha256": _file_hash(asset.path),
            "render_settings": settings,
        }
        record.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return None


def _write_pictures(
    folder: Path, views: RenderedViews, passes: Sequence[str]
) -> dict[str, list[str]]:
    """Write the pictures of every pass; their paths by the field of transforms.json."""
    pictures = {("file_path", "images"): views.rgba}
    if "depth" in passes:
        millis = np.where(views.mask, views.depth, 0) / DEPTH_UNIT
        pictures["depth_file_path", "depth"] = np.rint(millis).clip(0, 65535).astype(np.uint16)
    if "normals" in passes:
        colors = np.rint((views.normals * 0.5 + 0.5) * 255) * views.mask[..., None]
        alpha = views.mask[..., None] * 255
        encoded = np.concatenate([colors, alpha], axis=-1).astype(np.uint8)
        pictures["normal_file_path", "normals"] = encoded
    if "mask" in passes:
        pictures["mask_path", "masks"] = views.mask.astype(np.uint8) * 255
    paths = {}
    for (field, name), images in pictures.items():
        (folder / name).mkdir(parents=True)
        paths[field] = [f"{name}/{view:03d}.png" for view in range(len(images))]
        for path, image in zip(paths[field], images, strict=True):
            Image.fromarray(image).save(folder / path, compress_level=1)
    return paths


def _index_row(asset: Asset, output: Path) -> dict:
    folder = output / asset.uid
    digest = hashlib.sha256()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {
        "uid": asset.uid,
        "captions": asset.captions,
        "folder": asset.uid,
        "num_views": sum(path.parent.name == "images" for path in files),
        "sha256": digest.hexdigest(),
    }


def _write_lines(path: Path, rows: Sequence[dict]) -> None:
    """A JSON Lines file, whole; without rows an older one goes."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
