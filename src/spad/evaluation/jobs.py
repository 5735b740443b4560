"""What `spad evaluate` scores: sets of a folder, meshes with references, or a model's views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import spad
from spad.data.renders import data_hash, list_sets, read_renders
from spad.data.view_sets import PosedImages, ViewSet
from spad.evaluation.config import EvaluateConfig
from spad.evaluation.gso import gso_hash, read_gso
from spad.evaluation.novel_views import NovelViews
from spad.evaluation.protocol import load_gallery
from spad.evaluation.reference_meshes import MeshPair, is_mesh_source, mesh_pairs
from spad.evaluation.retrieval import Gallery
from spad.evaluation.sampling import ModelSampler, plan_evaluation, text_name
from spad.hub.registry import check_files, model_info, resolve_device, weights_hash


@dataclass(frozen=True)
class Task:
    """One object to score.

    Attributes:
        is_external: whether its images are outside the output folder, and so may change.
        make: reads or generates its views, or names its meshes.
        cost: what its views took to generate, by column, once they are made.
        group: as in `ScoredObject`.
    """

    name: str
    part: str
    is_external: bool
    make: Callable[[], ViewSet | NovelViews | MeshPair]
    cost: Callable[[], dict[str, float]] = dict
    group: str = ""


@dataclass(frozen=True)
class EvaluationJob:
    """Objects to score, and how.

    Attributes:
        name: name of the model or folder.
        protocol: scores are comparable between equal protocols.
        request: everything the scores depend on; a run with the same request is resumed.
        gallery: renders by which captions are ranked.
        tasks: output folder -> tasks in order; what a cluster generates is there then.
        real: reference renders of FID.
        notes: what is skipped, and why.
    """

    name: str
    protocol: str
    request: dict[str, Any]
    gallery: Gallery
    tasks: Callable[[Path], list[Task]]
    real: tuple[PosedImages, ...] = ()
    notes: tuple[str, ...] = ()


def job_of(settings: EvaluateConfig) -> EvaluationJob:
    """The objects that the settings name.

    Raises: ValueError: there are none, a set is damaged, or the model is not complete.
    """
    if settings.sets is None:
        return _model_job(settings)
    if settings.reference is not None:
        return _mesh_job(settings.sets, settings.reference, settings)
    return _folder_job(settings.sets, settings)


def _folder_job(sets: Path, settings: EvaluateConfig) -> EvaluationJob:
    if is_mesh_source(sets):
        raise ValueError(
            f"expected --reference FILE with the model {sets}, got none; models are compared with "
            "what they should look like"
        )
    folder = sets.resolve()
    files = list_sets(sets)[: settings.limit]
    request = {"sets": str(folder), "limit": settings.limit, **_shared_request(settings)}
    tasks = [Task(one.uid, "views", True, one.read) for one in files]
    real = () if settings.data is None else tuple(read_renders(settings.data))
    protocol = "views of a folder"
    return EvaluationJob(folder.name, protocol, request, load_gallery(), lambda _: tasks, real)


def _mesh_job(models: Path, references: Path, settings: EvaluateConfig) -> EvaluationJob:
    pairs = mesh_pairs(models, references)[: settings.limit]
    request = {
        "models": str(models.resolve()),
        "references": str(references.resolve()),
        "limit": settings.limit,
        **_shared_request(settings),
    }
    tasks = [Task(pair.model.stem, "meshes", True, lambda pair=pair: pair) for pair in pairs]
    return EvaluationJob(
        models.stem, "meshes and their references", request, load_gallery(), lambda _: tasks
    )


def _model_job(settings: EvaluateConfig) -> EvaluationJob:
    assert settings.model is not None
    model = model_info(settings.model)
    check_files(model)
    resolve_device(settings.device)
    data = None if settings.data is None else read_renders(settings.data)
    if settings.gso is not None:
        data = read_gso(settings.gso)
    plan = plan_evaluation(settings, data)
    protocol = plan.protocol

    def guidance(is_image_given: bool) -> float:
        own = model.defaults.guidance(is_image_given)
        return own if settings.guidance_scale is None else settings.guidance_scale

    request = {
        "model": model.name,
        "model_sha256": weights_hash(model),
        "protocol": plan.label,
        "parts": list(settings.parts),
        "size": model.image_size,
        "quick": settings.quick,
        "limit": settings.limit,
        "data_sha256": _data_sha256(settings, data),
        "seeds": settings.seeds,
        "num_inference_steps": settings.steps or model.defaults.num_inference_steps,
        "guidance_scale": guidance(False),
        "guidance_scale_with_image": guidance(True),
        **_shared_request(settings),
    }

    def tasks(output: Path) -> list[Task]:
        sampler = ModelSampler(model, settings, output)
        text = [
            (index, caption, protocol, repeat)
            for index, caption in enumerate(protocol.captions.values())
            for repeat in range(protocol.seeds)
        ]
        novel = [
            (index, plan.truth[uid], protocol)
            for index, uid in enumerate(protocol.novel)
            if uid in plan.truth
        ]
        if settings.executor == "ray":
            requests = [sampler.text_request(*one) for one in text]
            sampler.generate_on_cluster(requests + [sampler.novel_request(*one) for one in novel])
        return [
            Task(
                text_name(index, caption, repeat),
                "text",
                False,
                partial(sampler.sample_text, *one),
                lambda one=one: sampler.cost(sampler.text_request(*one)),
                text_name(index, caption) if protocol.seeds > 1 else "",
            )
            for one in text
            for index, caption, _, repeat in [one]
        ] + [
            Task(
                one[1].uid,
                "novel",
                False,
                partial(sampler.sample_novel, *one),
                lambda one=one: sampler.cost(sampler.novel_request(*one)),
            )
            for one in novel
        ]

    # Of the user's prompts there are no renders.
    wanted = set(protocol.captions) if settings.prompts is None else set()
    return EvaluationJob(
        name=model.name,
        protocol=plan.label,
        request=request,
        gallery=plan.gallery,
        tasks=tasks,
        real=tuple(views for views in data or () if views.uid in wanted),
        notes=plan.notes,
    )


def _data_sha256(settings: EvaluateConfig, data: Sequence[PosedImages] | None) -> str | None:
    if settings.data is not None:
        return data_hash(settings.data)
    return None if data is None else gso_hash(data)


def _shared_request(settings: EvaluateConfig) -> dict[str, Any]:
    weights = {name: getattr(settings, name) for name in ("clip", "lpips", "inception")}
    paths = {name: str(path.resolve()) for name, path in weights.items() if path is not None}
    more = {name: True for name in ("split_consistency", "colmap") if getattr(settings, name)}
    return {"spad": spad.__version__, **paths, **more}
