"""Generate the sets of views of an evaluation with a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from spad.cameras import Cameras
from spad.data.renders import is_held_out, list_sets
from spad.data.view_sets import ObjectViews, ViewSet
from spad.evaluation.config import EvaluateConfig
from spad.evaluation.novel_views import NovelViews, match_size, read_truth
from spad.evaluation.protocol import Protocol, load_gallery, load_protocol
from spad.evaluation.retrieval import Gallery
from spad.files import slug, whole_folder
from spad.generation.results import write_views
from spad.hub.registry import ModelInfo, load_model
from spad.images.alpha import WHITE_TOLERANCE
from spad.images.pixels import to_floats, to_levels
from spad.model.vocabulary import read_prompt

if TYPE_CHECKING:
    from spad.model import SPADPipeline

# Size of a gallery of the data's own captions.
NUM_CAPTIONS = 100


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """Prompts and objects that a model is evaluated with.

    Attributes:
        protocol: captions and objects to generate.
        label: name of the protocol; equal for equal protocols.
        gallery: renders by which captions are ranked.
        truth: id -> renders of the objects for novel views; empty without data.
        notes: what is skipped, and why.
    """

    protocol: Protocol
    label: str
    gallery: Gallery
    truth: Mapping[str, ObjectViews]
    notes: tuple[str, ...]


def plan_evaluation(settings: EvaluateConfig, data: list[ObjectViews] | None) -> EvaluationPlan:
    """The fixed protocol, or one of the data's held-out objects if it has none of the protocol's.

    Raises: ValueError: the data has neither objects of the protocol nor held-out ones.
    """
    protocol, gallery, notes = load_protocol(), load_gallery(), []
    label = f"spad {protocol.version}"
    by_id = {views.uid: views for views in data or ()}
    if data is not None and not by_id.keys() & set(protocol.novel):
        protocol, gallery = _own_protocol(data, protocol, gallery)
        ids = hashlib.sha256("\n".join(sorted(by_id)).encode()).hexdigest()[:12]
        label = f"own data {ids}"
        notes.append(
            "The data has no object of the fixed protocol: its own held-out objects are used, so "
            "scores are comparable only on this data."
        )
    count = min(protocol.quick if settings.quick else 10**9, settings.limit or 10**9)
    if count < len(protocol.captions):
        notes.append(f"Only the first {count} of {len(protocol.captions)} objects of the protocol.")
    captions = list(protocol.captions.items())[:count]
    novel = protocol.novel[:count]
    if "text" not in settings.parts:
        captions = []
    if "novel" not in settings.parts:
        novel = ()
    elif data is None:
        novel = ()
        notes.append(
            "Novel views from one image are skipped: give renders of the protocol's objects with "
            "--data."
        )
    missing = [uid for uid in novel if uid not in by_id]
    if missing:
        notes.append(
            f"{len(missing)} of {len(novel)} objects for novel views are not in the data, such as "
            f"{missing[0]}."
        )
    protocol = replace(protocol, captions=dict(captions), novel=novel)
    truth = {uid: by_id[uid] for uid in novel if uid in by_id}
    return EvaluationPlan(protocol, label, gallery, truth, tuple(notes))


def _own_protocol(
    data: list[ObjectViews], protocol: Protocol, gallery: Gallery
) -> tuple[Protocol, Gallery]:
    ordered = sorted(data, key=lambda views: hashlib.sha256(views.uid.encode()).hexdigest())
    # Held-out objects first, each group in order of the hash.
    ordered.sort(key=lambda views: not is_held_out(views.uid))
    first_of = {}
    for views in ordered:
        first_of.setdefault(views.captions[0], views)
    chosen = list(first_of.items())[:NUM_CAPTIONS]
    held_out = {views.uid: caption for caption, views in chosen if is_held_out(views.uid)}
    if not held_out:
        raise ValueError(
            "expected data with held-out objects, one in sixteen by the hash of the id, got none "
            f"among {len(data)}"
        )
    images = [to_floats(views.images()) for _, views in chosen]
    own = gallery.with_objects([caption for caption, _ in chosen], images)
    return replace(protocol, captions=held_out, novel=tuple(held_out)), own


class ModelSampler:
    """Generates sets of views with a model, or reads those generated before.

    Args:
        folder: gets a folder for every set, as `spad generate` makes them.
    """

    def __init__(self, model: ModelInfo, settings: EvaluateConfig, folder: Path):
        self.model = model
        self.settings = settings
        self.folder = folder
        self._pipeline: SPADPipeline | None = None
        self._captions = model.captions()

    def sample_text(self, index: int, caption: str, protocol: Protocol) -> ViewSet:
        """Views of a caption from the protocol's cameras."""
        cameras = protocol.cameras(self.model.image_size)
        name = f"{index:03d}-{slug(caption)}"
        return self._sample(self.folder / "sets" / name, caption, cameras, protocol.seed + index)

    def sample_novel(self, index: int, views: ObjectViews, protocol: Protocol) -> NovelViews:
        """Novel views of an object from one of its renders and its caption."""
        chosen = protocol.choose_views(views.uid, len(views.cameras))
        truth = read_truth(views, chosen, self.model.image_size)
        size = self.model.image_size
        generated = self._sample(
            self.folder / "novel" / f"{index:03d}-{slug(views.captions[0])}",
            views.captions[0],
            truth.cameras.resized(size, size),
            protocol.seed + index,
            Image.fromarray(to_levels(truth.images[:1])[0]),
        )
        return match_size(replace(generated, name=views.uid), truth)

    def _sample(
        self,
        folder: Path,
        prompt: str,
        cameras: Cameras,
        seed: int,
        image: Image.Image | None = None,
    ) -> ViewSet:
        if not folder.is_dir():
            self._generate(folder, prompt, cameras, seed, image)
        (views,) = list_sets(folder)
        return _read_generated(views, prompt)

    def _generate(
        self, folder: Path, prompt: str, cameras: Cameras, seed: int, image: Image.Image | None
    ) -> None:
        pipeline, defaults = self._loaded(), self.model.defaults
        steps, scale = self.settings.steps, self.settings.guidance_scale
        output = pipeline(
            read_prompt(prompt, self._captions).prompt if self._captions else prompt,
            cameras,
            num_inference_steps=defaults.num_inference_steps if steps is None else steps,
            guidance_scale=defaults.guidance(image is not None) if scale is None else scale,
            guidance_rescale=defaults.guidance_rescale,
            blob_sigma=defaults.blob_sigma,
            seed=seed,
            image=image,
        )
        with whole_folder(folder) as temporary:
            run = {"prompts": [prompt], "model": self.model.name, "seed": seed}
            write_views(temporary, output.images[0], cameras, run)

    def _loaded(self) -> SPADPipeline:
        if self._pipeline is None:
            self._pipeline = load_model(self.model.path, self.settings.device, torch.float32)
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline


def _read_generated(views: ObjectViews, prompt: str) -> ViewSet:
    """Generated images as a set, in which all that is not white is object.

    `ObjectViews.read` refuses other backgrounds, which a poor model may generate.
    """
    images = to_floats(views.images())
    alpha = ((1 - images).amax(1) > WHITE_TOLERANCE).float()
    return ViewSet(views.uid, prompt, images, alpha, views.cameras, alpha_is_estimated=True)
