"""Scores of objects: each is scored once, kept in a journal, and pictured."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from spad.data.view_sets import ViewSet
from spad.evaluation.jobs import Task
from spad.evaluation.learned_metrics import LearnedMetrics
from spad.evaluation.metrics import METRICS, Metric
from spad.evaluation.novel_views import NovelViews, score_novel_views
from spad.evaluation.reference_meshes import MeshPair
from spad.evaluation.report import ScoredObject
from spad.evaluation.retrieval import Gallery, score_retrieval
from spad.evaluation.sampling import is_failed
from spad.files import append_json, read_json_lines, slug, whole_file
from spad.images.grids import view_grid
from spad.images.pixels import to_levels

JOURNAL, IMAGES = "scores.jsonl", "images"
# Parts whose views a model generates here.
_GENERATED = ("text", "novel")
_MOST_VIEWS_SHOWN, _SHOWN_SIZE = 12, 128


def score_all(
    tasks: list[Task],
    output: Path,
    gallery: Gallery,
    more: Sequence[Metric],
    learned: LearnedMetrics,
) -> list[ScoredObject]:
    """Score what is not yet in the journal; `more` metrics are for sets and for novel views."""
    before = _read_journal(output / JOURNAL)
    scored = []
    with tqdm(tasks, unit="object", desc="scoring", disable=None) as progress:
        for task in progress:
            old = before.get((task.part, task.name))
            if old is not None and not task.is_external:
                scored.append(old)
                continue
            views = task.make()
            digest = _digest(views) if task.is_external else ""
            if old is None or old.digest != digest:
                try:
                    old = _score_one(task, views, digest, output, gallery, more, learned)
                except ValueError as error:
                    raise ValueError(f"{task.name}: {error}") from error
                append_json(output / JOURNAL, old.to_json())
            scored.append(old)
    return scored


def _score_one(
    task: Task,
    views: ViewSet | NovelViews | MeshPair,
    digest: str,
    output: Path,
    gallery: Gallery,
    more: Sequence[Metric],
    learned: LearnedMetrics,
) -> ScoredObject:
    seconds: dict[str, float] = {}
    scores: dict[str, float] = {}

    @contextmanager
    def timed(name: str):
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 3)

    if isinstance(views, MeshPair):
        # It needs the extra "mesh".
        from spad.evaluation.mesh_scores import score_meshes

        prompt = None
        with timed("meshes"):
            scores, shown = score_meshes(views)
        # The same six cameras above and below.
        shown = shown.unflatten(0, (2, -1))[:, : _MOST_VIEWS_SHOWN // 2].flatten(0, 1)
    elif isinstance(views, NovelViews):
        shown = torch.cat([views.truth.images, views.generated.images])
        prompt = views.truth.prompt
        with timed("novel"):
            scores |= score_novel_views(views)
        for metric in more:
            with timed(metric.name):
                scores[metric.name] = metric.function(views.generated)
        if learned.lpips is not None:
            with timed("novel_lpips"):
                scores |= learned.score_novel(views)
    else:
        shown, prompt = views.images, views.prompt
        for metric in (*METRICS, *more):
            with timed(metric.name):
                scores[metric.name] = metric.function(views)
        with timed("retrieval"):
            scores |= score_retrieval(gallery, views)
        if learned.clip is not None:
            with timed("clip_score"):
                scores |= learned.score_views(views)
    if task.part in _GENERATED:
        made = views.generated if isinstance(views, NovelViews) else views
        assert isinstance(made, ViewSet)
        scores |= {"failed": float(is_failed(made)), **task.cost()}
    image = f"{IMAGES}/{task.part}-{_file_name(task.name)}.webp"
    _save_grid(output / image, shown)
    return ScoredObject(task.name, task.part, prompt, scores, seconds, image, digest, task.group)


def _file_name(name: str) -> str:
    """Readable file name, unique for every object's name."""
    return f"{slug(name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _save_grid(path: Path, images: torch.Tensor) -> None:
    shown = []
    for pixels in to_levels(images[:_MOST_VIEWS_SHOWN]):
        image = Image.fromarray(pixels)
        image.thumbnail((_SHOWN_SIZE, _SHOWN_SIZE), Image.Resampling.BOX)
        shown.append(image)
    with whole_file(path) as unfinished:
        view_grid(shown).save(unfinished, quality=85)


def _digest(views: ViewSet | NovelViews | MeshPair) -> str:
    """Hash of the files of meshes, or of the images, cameras and prompt of an external set."""
    if isinstance(views, MeshPair):
        return views.digest()
    assert isinstance(views, ViewSet)
    hashed = hashlib.sha256((views.prompt or "").encode())
    for tensor in (
        views.images,
        views.alpha,
        views.cameras.world_from_cam,
        views.cameras.intrinsics,
    ):
        hashed.update(tensor.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def _read_journal(path: Path) -> dict[tuple[str, str], ScoredObject]:
    """Scored objects by part and name; an incomplete last line is ignored."""
    lines = read_json_lines(path, dict, is_journal=True) if path.is_file() else ()
    scored = [ScoredObject.from_json(data, where) for where, data in lines]
    return {(one.part, one.name): one for one in scored}
