"""Views of many models, as folders that training and nerfstudio read: what `spad render` does."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spad.data.assets import Asset, find_assets
from spad.data.camera_sampling import cameras_of
from spad.data.checks import check_views
from spad.data.config import RenderConfig
from spad.data.lists import read_rows
from spad.data.object_folder import (
    PARTIAL,
    ObjectRecord,
    is_same_file,
    read_object,
    settings_hash,
    write_object,
)
from spad.data.shards import file_hash
from spad.data.workers import JobLimits, LostJob, num_cores, run_isolated
from spad.meshes.renderers import find_renderer

log = logging.getLogger(__name__)

INDEX, FAILURES, REJECTED = "objects.jsonl", "failed.jsonl", "rejected"
UNUSABLE = "unusable file"
# Among the notes of an object, beside those of checks: what of its file is not drawn as it says.
FILE_NOTE = "file"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOGGED = 10
_READERS = 16
_LONGEST_EXAMPLE = 90


@dataclass(frozen=True)
class Failure:
    """An object that is not among the results.

    Attributes:
        uid: of the object.
        kind: "unusable file", "check", "time limit", "memory limit", "crash" or "error".
        reason: in words.
        check: the one that its pictures fail, if `kind` is "check".
        asset_sha256: of an unusable file.
        tried_with: what it was unusable with; it is not tried again with the same.
    """

    uid: str
    kind: str
    reason: str
    check: str = ""
    asset_sha256: str = ""
    tried_with: str = ""


@dataclass(frozen=True)
class RenderSummary:
    """What a run did: objects drawn by it, those it found done, and those it could not use."""

    index: Path
    rendered: int
    skipped: int
    failures: tuple[Failure, ...]

    def __str__(self) -> str:
        done = self.rendered + self.skipped
        total = done + len(self.failures)
        kinds = Counter(f"{f.kind} {f.check}".rstrip() for f in self.failures)
        examples = {f"{f.kind} {f.check}".rstrip(): f for f in reversed(self.failures)}
        rows = [("models", total, ""), ("already there", self.skipped, "")]
        rows.append(("rendered", self.rendered, ""))
        for kind, count in kinds.most_common():
            example = f"{examples[kind].uid}: {examples[kind].reason}"
            if len(example) > _LONGEST_EXAMPLE:
                example = example[: _LONGEST_EXAMPLE - 1] + "…"
            rows.append((kind, count, example if count == 1 else f"such as {example}"))
        widths = [max(len(row[0]) for row in rows), max(len(f"{row[1]:,}") for row in rows)]
        lines = [f"{a:{widths[0]}}  {b:>{widths[1]},}  {c}".rstrip() for a, b, c in rows]
        lines.append(f"{done:,} of {total:,} objects: {self.index}")
        if self.failures:
            lines.append(f"the others, and why: {self.index.with_name(FAILURES)}")
        if any(f.kind == "check" for f in self.failures):
            lines.append(f"pictures that failed a check: {self.index.with_name(REJECTED)}{os.sep}")
        return "\n".join(lines)


def render_all(
    config: RenderConfig, progress: Callable[[int, int], None] | None = None
) -> RenderSummary:
    """Render every model of `config` into `<output>/<uid>/`, and list them in `objects.jsonl`.

    Each folder holds `images/000.png` (RGBA), `transforms.json`, and for every pass
    `depth/000.png` (16 bit, thousandths of a world unit, 0 for nothing), `normals/000.png`
    (world normal n as n / 2 + 1 / 2, alpha where there is a surface) or `masks/000.png`. A folder
    appears when it is complete; a run that was stopped goes on where it was. Objects whose
    pictures fail a check of `config.reject` go to `<output>/rejected/`. All that failed is listed
    in `failed.jsonl` and stops nothing. The result does not depend on the number of workers.

    What failed is tried again by the next run, but for files that cannot be used, while they and
    the settings are the same, and for what the checks reject.

    Args:
        config: what to render, and how.
        progress: called with (done, total) after every object; a bar on stderr if None.

    Raises:
        ValueError: no models, the output holds folders made with other settings or from other
            files, or another run writes there.
        OSError: the output cannot be written, or no worker can be started.
    """
    assets = find_assets(config)
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"expected a folder for the output, got the file {output}")
    with _only_run_in(output), _room_named(output):
        return _render_missing(config, assets, progress)


def _render_missing(
    config: RenderConfig, assets: Sequence[Asset], progress: Callable[[int, int], None] | None
) -> RenderSummary:
    index = Path(config.output) / INDEX
    config = replace(config, output=index.parent.absolute())
    results = dict(_known(config, assets, settings_hash(config)))
    todo = [asset for asset in assets if asset.uid not in results]
    skipped = sum(isinstance(result, ObjectRecord) for result in results.values())
    log.info("%d objects to render, %d already there", len(todo), skipped)
    lost = 0
    with _progress(progress, len(todo)) as advance, closing(_run(config, todo)) as finished:
        for number, result in finished:
            asset = todo[number]
            if isinstance(result, LostJob):
                result = Failure(asset.uid, result.kind, result.reason)
            elif isinstance(result, ObjectRecord):
                result = _judged(config, asset, result)
            if isinstance(result, Failure):
                lost += 1
                if lost <= _LOGGED:
                    log.warning("%s: %s", asset.uid, result.reason)
            results[asset.uid] = result
            advance()
    ordered = [(asset, results[asset.uid]) for asset in assets]
    failures = tuple(result for _, result in ordered if isinstance(result, Failure))
    done = [item for item in ordered if isinstance(item[1], ObjectRecord)]
    _write_rows(index.with_name(FAILURES), [_failure_row(failure) for failure in failures])
    _write_rows(index, [_index_row(*item) for item in done])
    return RenderSummary(index, len(done) - skipped, skipped, failures)


def _known(
    config: RenderConfig, assets: Sequence[Asset], settings: str
) -> Iterator[tuple[str, ObjectRecord | Failure]]:
    """What earlier runs left: finished objects, and files that cannot be used."""
    unusable, written = {}, 0.0
    path = config.output / FAILURES
    if path.is_file():
        written = path.stat().st_mtime
        for _, row in read_rows(path):
            if row.get("tried_with") == _tried_with(config, settings):
                unusable[row["uid"]] = Failure(**row)

    def look(asset: Asset) -> ObjectRecord | Failure | None:
        record = _find_record(config, asset, settings)
        if record is not None:
            return _judged(config, asset, record)
        failure = unusable.get(asset.uid)
        # A file that was not there has no hash, and may have come.
        if failure is None or not failure.asset_sha256:
            return None
        return failure if is_same_file(asset.path, failure.asset_sha256, written) else None

    with ThreadPool(_READERS) as pool:
        for asset, result in zip(assets, pool.imap(look, assets, chunksize=64), strict=True):
            if result is not None:
                yield asset.uid, result


def _find_record(config: RenderConfig, asset: Asset, settings: str) -> ObjectRecord | None:
    for folder in (config.output / asset.uid, config.output / REJECTED / asset.uid):
        if folder.exists():
            return read_object(folder, asset, settings)
    return None


def _judged(config: RenderConfig, asset: Asset, record: ObjectRecord) -> ObjectRecord | Failure:
    """The object's verdict, and its folder moved to where that belongs.

    Notes outlive a run, so that another `config.reject` needs no new pictures.
    """
    check = _failed_check(config, record.notes)
    kept, rejected = config.output / asset.uid, config.output / REJECTED / asset.uid
    place, other = (rejected, kept) if check else (kept, rejected)
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        os.rename(other, place)
    return Failure(asset.uid, "check", record.notes[check], check) if check else record


def _failed_check(config: RenderConfig, notes: Mapping[str, str]) -> str | None:
    return next((check for check in notes if check in config.reject), None)


def _tried_with(config: RenderConfig, settings: str) -> str:
    return f"{settings}, max_faces {config.drawing.max_faces}"


def _run(config: RenderConfig, assets: Sequence[Asset]) -> Iterator[tuple[int, Any]]:
    limits = JobLimits(config.time_limit_s, config.memory_limit_gb)
    # Machines of a cluster have working folders of their own, and so have workers.
    jobs = (
        (config, replace(asset, path=asset.path.absolute(), root=asset.root.absolute()))
        for asset in assets
    )
    if config.executor == "ray" and assets:
        from spad.data.ray_executor import run_on_ray

        return run_on_ray(render_asset, jobs, config.workers, limits, config.ray_address)
    workers = min(config.workers or num_cores(), len(assets))
    return run_isolated(render_asset, jobs, workers, limits)


def render_asset(job: tuple[RenderConfig, Asset]) -> ObjectRecord | Failure:
    """Write one object's folder, as `config.reject` says among the rejected; or why not."""
    config, asset = job
    settings = settings_hash(config)
    record = _find_record(config, asset, settings)
    if record is not None:  # by a worker that died before it could say so
        return record
    try:
        asset.check_place()
    except ValueError as error:
        return Failure(asset.uid, UNUSABLE, str(error))
    # Fewer workers than cores share the cores.
    threads = max(1, num_cores() // config.workers) if config.workers else 1
    renderer = find_renderer(config.renderer, threads)
    cameras = cameras_of(config, asset.uid)
    try:
        rendering = renderer.render(asset.path, cameras, config.drawing)
        notes = check_views(rendering.views, cameras)
        if rendering.notes:
            notes = {FILE_NOTE: "; ".join(rendering.notes), **notes}
    except ValueError as error:
        digest = file_hash(asset.path) if asset.path.is_file() else ""
        return Failure(asset.uid, UNUSABLE, str(error), "", digest, _tried_with(config, settings))
    except (MemoryError, ModuleNotFoundError, OSError):  # of the machine, not of the object
        raise
    # One object in a million must not stop the others: whatever else goes wrong is its own.
    except Exception as error:
        return Failure(asset.uid, "error", f"{type(error).__name__}: {error}")
    place = config.output / REJECTED if _failed_check(config, notes) else config.output
    write_object(place / asset.uid, asset, rendering, cameras, notes, config)
    return read_object(place / asset.uid, asset, settings)


@contextmanager
def _only_run_in(output: Path) -> Iterator[None]:
    """Keep other runs out of a folder, and what a run that was killed left half-written."""
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"expected to be alone in {output}, where another run is writing; wait for it, or "
            "choose another --output"
        ) from None
    try:
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        yield
    finally:
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        lock.release()


@contextmanager
def _room_named(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(
            f"no room left to write in {output} ({error.strerror}); all that is finished stays, "
            "and the same command goes on"
        ) from error


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


def _index_row(asset: Asset, record: ObjectRecord) -> dict:
    row = {
        "uid": asset.uid,
        "captions": asset.captions,
        "folder": asset.uid,
        "num_views": record.num_views,
        "sha256": record.sha256,
    }
    return row | ({"notes": record.notes} if record.notes else {})


def _failure_row(failure: Failure) -> dict:
    return {name: value for name, value in asdict(failure).items() if value}


def _write_rows(path: Path, rows: Sequence[dict]) -> None:
    """A JSON Lines file, whole; without rows an older one goes."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    partial = path.parent / PARTIAL / path.name
    partial.parent.mkdir(exist_ok=True)
    with open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(partial, path)
