"""`spad render`: render views of many models into folders that training and nerfstudio read."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from spad.data.assets import Asset, find_assets
from spad.data.camera_sampling import cameras_of
from spad.data.checks import check_views
from spad.data.config import RenderConfig
from spad.data.object_folder import (
    ObjectRecord,
    is_same_file,
    read_object,
    settings_hash,
    write_object,
)
from spad.data.workers import JobLimits, LostJob, num_cores, run_isolated
from spad.files import exclusive, file_hash, read_json_lines, room_for, write_json_lines
from spad.meshes.renderers import find_renderer

log = logging.getLogger(__name__)

INDEX, FAILURES, REJECTED = "objects.jsonl", "failed.jsonl", "rejected"
UNUSABLE = "unusable file"
# Key of a note on parts of the model file that were ignored or reinterpreted.
FILE_NOTE = "file"
_MOST_LOGGED = 10
_READERS = 16
_LONGEST_EXAMPLE = 90


@dataclass(frozen=True)
class Failure:
    """An object without a result.

    Attributes:
        uid: id of the object.
        kind: "unusable file", "check", "time limit", "memory limit", "crash" or "error".
        reason: the reason in words.
        check: the failed check, if `kind` is "check".
        asset_sha256: hash of an unusable file.
        tried_with: hash of the settings it was unusable with; with the same, it is not retried.
    """

    uid: str
    kind: str
    reason: str
    check: str = ""
    asset_sha256: str = ""
    tried_with: str = ""


@dataclass(frozen=True)
class RenderSummary:
    """Summary of a run: objects rendered, found finished, and failed."""

    index: Path
    rendered: int
    skipped: int
    failures: tuple[Failure, ...]

    def __str__(self) -> str:
        done = self.rendered + self.skipped
        total = done + len(self.failures)
        kinds = Counter(f"{f.kind} {f.check}".rstrip() for f in self.failures)
        examples = {f"{f.kind} {f.check}".rstrip(): f for f in reversed(self.failures)}
        rows = [("models", total, ""), ("finished before", self.skipped, "")]
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
            lines.append(f"failures and reasons: {self.index.with_name(FAILURES)}")
        if any(f.kind == "check" for f in self.failures):
            lines.append(f"images that failed a check: {self.index.with_name(REJECTED)}{os.sep}")
        return "\n".join(lines)


def render_all(
    config: RenderConfig, progress: Callable[[int, int], None] | None = None
) -> RenderSummary:
    """Render every model of `config` into `<output>/<uid>/`, and list them in `objects.jsonl`.

    Each folder has `images/000.png` (RGBA), `transforms.json`, and for every pass `depth/000.png`
    (16 bit, thousandths of a world unit, 0 where nothing is visible), `normals/000.png` (world
    normal n as n / 2 + 1 / 2, alpha where there is a surface) or `masks/000.png`. A folder appears
    when it is complete, and a later run resumes. Objects that fail a check of `config.reject` go to
    `<output>/rejected/`. Failures are listed in `failed.jsonl` and do not stop the run. The result
    does not depend on the number of workers.

    A later run retries failures, except rejected objects and unusable files that have not changed,
    with the same settings.

    Args:
        config: the settings.
        progress: called with (done, total) after every object. None: a progress bar on stderr.

    Raises:
        ValueError: no models, the output has folders of other settings or model files, or another
            run writes there.
        OSError: the output cannot be written, or no worker can be started.
    """
    assets = find_assets(config)
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"expected a folder for the output, got the file {output}")
    with exclusive(output), room_for(output):
        return _render_missing(config, assets, progress)


def _render_missing(
    config: RenderConfig, assets: Sequence[Asset], progress: Callable[[int, int], None] | None
) -> RenderSummary:
    index = Path(config.output) / INDEX
    config = replace(config, output=index.parent.absolute())
    results = dict(_known(config, assets, settings_hash(config)))
    todo = [asset for asset in assets if asset.uid not in results]
    skipped = sum(isinstance(result, ObjectRecord) for result in results.values())
    log.info("%d objects to render, %d finished before", len(todo), skipped)
    lost = 0
    with _progress(progress, len(todo)) as advance, closing(_run(config, todo)) as finished:
        for number, result in finished:
            asset = todo[number]
            if isinstance(result, LostJob):
                result = Failure(asset.uid, result.kind, result.reason)
            elif isinstance(result, ObjectRecord):
                result = _sorted_by_checks(config, asset, result)
            if isinstance(result, Failure):
                lost += 1
                if lost <= _MOST_LOGGED:
                    log.warning("%s: %s", asset.uid, result.reason)
            results[asset.uid] = result
            advance()
    ordered = [(asset, results[asset.uid]) for asset in assets]
    failures = tuple(result for _, result in ordered if isinstance(result, Failure))
    done = [(asset, record) for asset, record in ordered if isinstance(record, ObjectRecord)]
    _write_rows(index.with_name(FAILURES), [_failure_row(failure) for failure in failures])
    _write_rows(index, [_index_row(*item) for item in done])
    return RenderSummary(index, len(done) - skipped, skipped, failures)


def _known(
    config: RenderConfig, assets: Sequence[Asset], settings: str
) -> Iterator[tuple[str, ObjectRecord | Failure]]:
    """Results of earlier runs: finished objects and unusable files, by id."""
    unusable, written = {}, 0.0
    path = config.output / FAILURES
    if path.is_file():
        written = path.stat().st_mtime
        for _, failure in read_json_lines(path, Failure):
            if failure.tried_with == _tried_with(config, settings):
                unusable[failure.uid] = failure

    def look(asset: Asset) -> ObjectRecord | Failure | None:
        try:
            asset.check_names()
        except ValueError as error:
            return Failure(asset.uid, UNUSABLE, str(error))
        record = _find_record(config, asset, settings)
        if record is not None:
            return _sorted_by_checks(config, asset, record)
        failure = unusable.get(asset.uid)
        # A missing file has no hash, and may exist by now.
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


def _sorted_by_checks(
    config: RenderConfig, asset: Asset, record: ObjectRecord
) -> ObjectRecord | Failure:
    """Move an object's folder in or out of the rejected ones, as `config.reject` says.

    Notes of all checks are stored, so that another `config.reject` needs no rendering.
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


def _run(config: RenderConfig, assets: Sequence[Asset]) -> Generator[tuple[int, Any], None, None]:
    limits = JobLimits(config.time_limit_s, config.memory_limit_gb)
    # Absolute, as workers of a cluster have another working directory.
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
    """Render one object into its folder, or into the rejected ones. Runs in a worker."""
    config, asset = job
    settings = settings_hash(config)
    record = _find_record(config, asset, settings)
    if record is not None:  # written by a worker that died before it could report
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
    except (MemoryError, ModuleNotFoundError, OSError):  # due to the machine, not the object
        raise
    # Any other error counts as a failure of this object and does not stop the others.
    except Exception as error:
        return Failure(asset.uid, "error", f"{type(error).__name__}: {error}")
    place = config.output / REJECTED if _failed_check(config, notes) else config.output
    write_object(place / asset.uid, asset, rendering, cameras, notes, config)
    return read_object(place / asset.uid, asset, settings)


@contextmanager
def _progress(
    report: Callable[[int, int], None] | None, total: int
) -> Iterator[Callable[[], object]]:
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
    if rows:
        write_json_lines(path, rows)
    else:
        path.unlink(missing_ok=True)
