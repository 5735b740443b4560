"""`spad evaluate`: judge a folder of sets, or what a model draws, object by object, and report."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

import spad
from spad.data.renders import ObjectViews, data_hash, read_renders
from spad.data.view_sets import ViewSet, list_sets
from spad.evaluation.compare import compare_reports
from spad.evaluation.config import EvaluateConfig
from spad.evaluation.learned_metrics import Networks
from spad.evaluation.metrics import METRICS, Metric
from spad.evaluation.novel_views import NOVEL_COLUMNS, NovelViews, score_novel_views
from spad.evaluation.page import report_page
from spad.evaluation.protocol import load_gallery
from spad.evaluation.report import Column, Report, ScoredObject, json_text, write_report
from spad.evaluation.retrieval import RETRIEVAL_COLUMNS, Gallery, score_retrieval
from spad.evaluation.sampling import ModelSampler, plan_evaluation
from spad.files import RECORD, check_output, slug
from spad.hub.registry import check_files, model_info, resolve_device, weights_hash
from spad.images.grids import view_grid
from spad.images.pixels import to_floats, to_levels

logger = logging.getLogger(__name__)

JOURNAL, PICTURES = "scores.jsonl", "pictures"
_MOST_VIEWS_SHOWN, _SHOWN_SIZE = 12, 128


def _column(metric: Metric) -> Column:
    best = metric.best if math.isfinite(metric.best) else None
    return Column(metric.name, metric.higher_is_better, best, metric.summary)


COLUMNS = (*map(_column, METRICS), *RETRIEVAL_COLUMNS, *NOVEL_COLUMNS)


@dataclass(frozen=True)
class Task:
    """One object to judge.

    Attributes:
        may_change: its pictures lie outside of the output folder.
        make: reads its pictures, or draws them.
    """

    name: str
    part: str
    may_change: bool
    make: Callable[[], ViewSet | NovelViews]


@dataclass(frozen=True)
class EvaluationJob:
    """Everything to judge.

    Attributes:
        name: of the model or folder.
        protocol: numbers are comparable where it is equal.
        asked: what the scores depend on; an earlier run can go on if it asked for the same.
        gallery: what captions are ranked by.
        tasks: in order, for an output folder.
        real: renders that FID compares with.
        notes: what was left out, and why.
    """

    name: str
    protocol: str
    asked: dict[str, Any]
    gallery: Gallery
    tasks: Callable[[Path], list[Task]]
    real: tuple[ObjectViews, ...] = ()
    notes: tuple[str, ...] = ()


def evaluate(settings: EvaluateConfig, command: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """Do what was asked for: a table to print, and the files of the report.

    Args:
        command: the command line, for the record.

    Raises: ValueError: what was asked for is wrong, or a set is damaged. OSError: the folder cannot
        be written. ModuleNotFoundError: the package of a metric is missing.
    """
    if settings.compare:
        names = "-".join(slug(Path(folder).name) for folder in settings.compare)
        output = settings.output or Path("spad-out") / f"compare-{names}"
        return compare_reports(settings.compare, output, settings.overwrite, command)
    # What may be wrong shows before anything is drawn.
    if find_spec("cv2") is None:
        raise ModuleNotFoundError("expected OpenCV, which matches features", name="cv2")
    networks = Networks.load(settings)
    work = _work_on_folder(settings) if settings.model is None else _work_with_model(settings)
    output = settings.output or Path("spad-out") / f"evaluation-{slug(work.name)}"
    if settings.sets is not None and output.resolve().is_relative_to(settings.sets.resolve()):
        raise ValueError(f"expected an --output outside of {settings.sets}, got {output}")
    _open_folder(output, settings.overwrite, work, command)
    for note in work.notes:
        logger.info(note)
    tasks = work.tasks(output)
    judged = _judge(tasks, output, work.gallery, networks)
    report = Report(
        name=work.name,
        about={
            **work.asked,
            "command": list(command),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "seconds an object": _mean_seconds(judged),
        },
        protocol=work.protocol,
        columns=(*COLUMNS, *networks.columns),
        objects=tuple(judged),
        totals=_totals(networks, tasks, work.real),
        notes=(*work.notes, *_notes_on(judged)),
    )
    return report.table(), write_report(output, report, report_page(report, output))


def _work_on_folder(settings: EvaluateConfig) -> EvaluationJob:
    files = list_sets(settings.sets)[: settings.limit]
    asked = {
        "sets": str(settings.sets.resolve()),
        "limit": settings.limit,
        **_asked_of_all(settings),
    }
    tasks = [Task(one.name, "views", True, one.read) for one in files]
    real = () if settings.data is None else tuple(read_renders(settings.data))
    return EvaluationJob(
        settings.sets.resolve().name, "views of a folder", asked, load_gallery(), lambda _: tasks,
        real,
    )  # fmt: skip


def _work_with_model(settings: EvaluateConfig) -> EvaluationJob:
    model = model_info(settings.model)
    check_files(model)
    resolve_device(settings.device)
    data = None if settings.data is None else read_renders(settings.data)
    questions = plan_evaluation(settings, data)
    protocol = questions.protocol

    def guidance(is_image_given: bool) -> float:
        own = model.defaults.guidance(is_image_given)
        return own if settings.guidance_scale is None else settings.guidance_scale

    asked = {
        "model": model.name,
        "model_sha256": weights_hash(model),
        "protocol": questions.label,
        "parts": list(settings.parts),
        "size": model.image_size,
        "quick": settings.quick,
        "limit": settings.limit,
        "data_sha256": None if settings.data is None else data_hash(settings.data),
        "num_inference_steps": settings.steps or model.defaults.num_inference_steps,
        "guidance_scale": guidance(False),
        "guidance_scale_with_image": guidance(True),
        **_asked_of_all(settings),
    }

    def tasks(output: Path) -> list[Task]:
        artist = ModelSampler(model, settings, output)
        text = [
            Task(
                f"{index:03d}-{slug(caption)}",
                "text",
                False,
                lambda index=index, caption=caption: artist.draw_text(index, caption, protocol),
            )
            for index, caption in enumerate(protocol.captions.values())
        ]
        novel = [
            Task(
                uid,
                "novel",
                False,
                lambda index=index, uid=uid: artist.draw_novel(
                    index, questions.truth[uid], protocol
                ),
            )
            for index, uid in enumerate(protocol.novel)
            if uid in questions.truth
        ]
        return text + novel

    wanted = set(protocol.captions)
    return EvaluationJob(
        name=model.name,
        protocol=questions.label,
        asked=asked,
        gallery=questions.gallery,
        tasks=tasks,
        real=tuple(views for views in data or () if views.uid in wanted),
        notes=questions.notes,
    )


def _asked_of_all(settings: EvaluateConfig) -> dict[str, Any]:
    return {
        "spad": spad.__version__,
        **{name: str(path.resolve()) for name in ("clip", "lpips", "inception")
           if (path := getattr(settings, name)) is not None},
    }  # fmt: skip


def _open_folder(
    output: Path, overwrite: bool, work: EvaluationJob, command: Sequence[str]
) -> None:
    """Make the folder, or go on in that of the same request."""
    record = output / RECORD
    asked = json.loads(json.dumps(work.asked))
    if record.is_file() and not overwrite:
        try:
            before = json.loads(record.read_text(encoding="utf-8")).get("asked")
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{record}: expected a record of spad evaluate ({error})") from error
        if before == asked:
            return
        if not isinstance(before, dict):
            raise ValueError(
                f"expected a new output folder or that of an evaluation, got {output}, which "
                "another command made; use another --output"
            )
        differs = [name for name in asked if before.get(name) != asked[name]]
        raise ValueError(
            f"expected the folder of the same evaluation, but {output} was made with another "
            f"{', '.join(differs) or 'request'}; use --overwrite or another --output"
        )
    check_output(output, overwrite)
    if output.exists():
        _remove(output)
    (output / PICTURES).mkdir(parents=True)
    record.write_text(json_text({"asked": asked, "command": list(command)}), encoding="utf-8")


def _remove(folder: Path) -> None:
    """What an evaluation made; anything else stays and is named.

    Raises: ValueError: something else lies there.
    """
    import shutil

    own = {RECORD, JOURNAL, PICTURES, "sets", "novel", "report.json", "report.md", "report.html"}
    others = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if others:
        raise ValueError(
            f"expected --overwrite to replace an evaluation, got {folder}, which also holds "
            f"{others[0]}; choose another --output"
        )
    shutil.rmtree(folder)


def _judge(
    tasks: list[Task], output: Path, gallery: Gallery, networks: Networks
) -> list[ScoredObject]:
    """Judge what is not yet in the journal."""
    before = _read_journal(output / JOURNAL)
    judged = []
    with tqdm(tasks, unit="object", desc="judging", disable=None) as progress:
        for task in progress:
            old = before.get((task.part, task.name))
            if old is not None and not task.may_change:
                judged.append(old)
                continue
            views = task.make()
            digest = _digest(views) if task.may_change else ""
            if old is None or old.digest != digest:
                try:
                    old = _judge_one(task, views, digest, output, gallery, networks)
                except ValueError as error:
                    raise ValueError(f"{task.name}: {error}") from error
                with open(output / JOURNAL, "a", encoding="utf-8") as journal:
                    journal.write(json.dumps(old.to_json(), ensure_ascii=False) + "\n")
            judged.append(old)
    return judged


def _judge_one(
    task: Task,
    views: ViewSet | NovelViews,
    digest: str,
    output: Path,
    gallery: Gallery,
    networks: Networks,
) -> ScoredObject:
    seconds: dict[str, float] = {}
    scores: dict[str, float] = {}

    @contextmanager
    def timed(name: str):
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 3)

    if isinstance(views, NovelViews):
        shown = torch.cat([views.truth.images, views.drawn.images])
        prompt = views.truth.prompt
        with timed("novel"):
            scores |= score_novel_views(views)
        if networks.lpips is not None:
            with timed("novel_lpips"):
                scores |= networks.score_novel(views)
    else:
        shown, prompt = views.images, views.prompt
        for metric in METRICS:
            with timed(metric.name):
                scores[metric.name] = metric.function(views)
        with timed("retrieval"):
            scores |= score_retrieval(gallery, views)
        if networks.clip is not None:
            with timed("clip_score"):
                scores |= networks.score_views(views)
    picture = f"{PICTURES}/{task.part}-{_file_name(task.name)}.webp"
    _save_picture(output / picture, shown)
    return ScoredObject(task.name, task.part, prompt, scores, seconds, picture, digest)


def _file_name(name: str) -> str:
    """Of any object's name: readable, and different where names are."""
    return f"{slug(name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _save_picture(path: Path, images: torch.Tensor) -> None:
    shown = []
    for pixels in to_levels(images[:_MOST_VIEWS_SHOWN]):
        picture = Image.fromarray(pixels)
        picture.thumbnail((_SHOWN_SIZE, _SHOWN_SIZE), Image.Resampling.BOX)
        shown.append(picture)
    path.parent.mkdir(exist_ok=True)
    view_grid(shown).save(path, quality=85)


def _digest(views: ViewSet | NovelViews) -> str:
    """Of the pictures, cameras and prompt of a set from outside."""
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
    """What was judged, by part and name; a line that a kill cut short counts for nothing."""
    judged = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            one = ScoredObject.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue
        judged[one.part, one.name] = one
    return judged


def _totals(
    networks: Networks, tasks: Sequence[Task], real: Sequence[ObjectViews]
) -> dict[str, float]:
    def drawn() -> Iterable[torch.Tensor]:
        return (task.make().images for task in tasks if task.part != "novel")

    def rendered() -> Iterable[torch.Tensor]:
        return (to_floats(views.images()) for views in real)

    if all(task.part == "novel" for task in tasks):
        return {}
    return networks.totals(drawn, rendered if real else None)


def _mean_seconds(judged: Sequence[ScoredObject]) -> dict[str, float]:
    names = dict.fromkeys(name for one in judged for name in one.seconds)
    found = {name: [one.seconds[name] for one in judged if name in one.seconds] for name in names}
    return {name: round(sum(values) / len(values), 2) for name, values in found.items()}


def _notes_on(judged: Sequence[ScoredObject]) -> list[str]:
    unranked = [one for one in judged if one.part != "novel" and "retrieval_rank" not in one.scores]
    if not unranked:
        return []
    return [
        f"{len(unranked)} of {len(judged)} sets have no prompt among the protocol's captions, and "
        "are not ranked."
    ]
