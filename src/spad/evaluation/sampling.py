"""Generate the sets of views of an evaluation with a model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from tqdm import tqdm

from spad.cameras import Cameras
from spad.data.renders import is_held_out, list_sets
from spad.data.view_sets import PosedImages, ViewSet
from spad.data.workers import num_cores, peak_memory_gb
from spad.evaluation.config import EvaluateConfig
from spad.evaluation.gso import gso_label
from spad.evaluation.novel_views import NovelViews, match_size, read_truth
from spad.evaluation.protocol import Protocol, load_gallery, load_protocol
from spad.evaluation.report import Column
from spad.evaluation.retrieval import Gallery
from spad.files import RECORD, as_kind, json_text, read_json, read_text, slug, whole_folder
from spad.generation.results import write_views
from spad.hub.registry import ModelInfo, load_model
from spad.images.alpha import WHITE_TOLERANCE
from spad.images.pixels import to_floats, to_levels
from spad.model.vocabulary import read_prompt

if TYPE_CHECKING:
    from spad.model import SPADPipeline

# Size of a gallery of the data's own captions.
NUM_CAPTIONS = 100
# From the seeds of one repetition of the prompts to those of the next.
_NEXT_SEEDS = 1_000_000
# A view shows nothing, or has no background, beyond these shares of its pixels.
_LEAST_OBJECT, _MOST_OBJECT = 0.002, 0.98

GENERATED_COLUMNS = (
    Column("failed", False, 0.0, "share of sets with a view that shows nothing or no background"),
    Column("sampling_seconds", False, None, "time to generate a set, without loading the model"),
    Column(
        "sampling_memory_gb",
        False,
        None,
        "most memory of the process up to then: of the GPU, or else of the host",
    ),
)


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
    truth: Mapping[str, PosedImages]
    notes: tuple[str, ...]


def plan_evaluation(settings: EvaluateConfig, data: list[PosedImages] | None) -> EvaluationPlan:
    """The fixed protocol, or one of the data's held-out objects if it has none of the protocol's.

    Raises: ValueError: the data has neither objects of the protocol nor held-out ones.
    """
    protocol, gallery, notes = load_protocol(), load_gallery(), []
    label = f"spad {protocol.version}"
    by_id = {views.uid: views for views in data or ()}
    if settings.gso is not None:
        protocol = replace(protocol, captions={}, novel=tuple(by_id), is_novel_ordered=True)
        label = gso_label(list(by_id.values()))
    elif data is not None and not by_id.keys() & set(protocol.novel):
        protocol, gallery = _own_protocol(data, protocol, gallery)
        ids = hashlib.sha256("\n".join(sorted(by_id)).encode()).hexdigest()[:12]
        label = f"own data {ids}"
        notes.append(
            "The data has no object of the fixed protocol: its own held-out objects are used, so "
            "scores are comparable only on this data."
        )
    if settings.prompts is not None:
        prompts = read_prompt_lines(settings.prompts)
        protocol = replace(protocol, captions=prompts)
        label += f", prompts {hashlib.sha256(json_text(prompts).encode()).hexdigest()[:12]}"
    if settings.seeds > 1:
        label += f", {settings.seeds} seeds"
    protocol = replace(protocol, seeds=settings.seeds)
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
            "--data, or MVGBench's with --gso."
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
    data: list[PosedImages], protocol: Protocol, gallery: Gallery
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


@dataclass(frozen=True, eq=False)
class SetRequest:
    """A set of views to generate.

    Attributes:
        folder: folder for the set.
        image: image from the first camera, or None.
    """

    folder: Path
    prompt: str
    cameras: Cameras
    seed: int
    image: Image.Image | None = None


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

    def sample_text(self, index: int, caption: str, protocol: Protocol, repeat: int = 0) -> ViewSet:
        """Views of a caption from the protocol's cameras; `repeat` counts its seeds."""
        return self._sample(self.text_request(index, caption, protocol, repeat))

    def text_request(
        self, index: int, caption: str, protocol: Protocol, repeat: int = 0
    ) -> SetRequest:
        """What `sample_text` generates."""
        folder = self.folder / "sets" / text_name(index, caption, repeat)
        cameras = protocol.cameras(self.model.image_size)
        seed = protocol.seed + index + _NEXT_SEEDS * repeat
        return SetRequest(folder, caption, cameras, seed)

    def cost(self, request: SetRequest) -> dict[str, float]:
        """Seconds and memory that a set took, by column; empty if another machine generated it."""
        path = request.folder / RECORD
        record = read_json(path, dict[str, Any])
        names = [column.name for column in GENERATED_COLUMNS if column.name in record]
        return {name: as_kind(record[name], float, f"{path}, {name}") for name in names}

    def sample_novel(self, index: int, views: PosedImages, protocol: Protocol) -> NovelViews:
        """Novel views of an object from one of its renders and its caption."""
        truth = self._truth(views, protocol)
        generated = self._sample(self._novel_request(index, views, truth, protocol))
        return match_size(replace(generated, name=views.uid), truth)

    def novel_request(self, index: int, views: PosedImages, protocol: Protocol) -> SetRequest:
        """What `sample_novel` generates."""
        return self._novel_request(index, views, self._truth(views, protocol), protocol)

    def generate_on_cluster(self, requests: Iterable[SetRequest]) -> None:
        """Generate what is missing on all devices of a Ray cluster; each set is kept when done.

        Raises: OSError: there is no such cluster, or a set could not be generated.
        """
        from spad.cluster import run_on_devices

        missing = [request for request in requests if not request.folder.is_dir()]
        # A folder of a model has the same path everywhere, the package has not.
        name = self.settings.model
        assert name is not None
        model = Path(name).absolute() if Path(name).is_dir() else name
        function = partial(_generate, model, self.settings.device)
        jobs = [self._arguments(request) for request in missing]
        finished = run_on_devices(function, jobs, self.settings.ray_address, num_cores())
        with tqdm(total=len(missing), unit="set", desc="generating", disable=None) as progress:
            for number, images in finished:
                self._write(missing[number], images)
                progress.update()

    def _truth(self, views: PosedImages, protocol: Protocol) -> ViewSet:
        chosen = protocol.choose_views(views.uid, len(views.cameras))
        return read_truth(views, chosen, self.model.image_size)

    def _novel_request(
        self, index: int, views: PosedImages, truth: ViewSet, protocol: Protocol
    ) -> SetRequest:
        size = self.model.image_size
        return SetRequest(
            self.folder / "novel" / f"{index:03d}-{slug(views.prompt or views.uid)}",
            views.prompt or "",
            truth.cameras.resized(size, size),
            protocol.seed + index,
            Image.fromarray(to_levels(truth.images[:1])[0]),
        )

    def _sample(self, request: SetRequest) -> ViewSet:
        if not request.folder.is_dir():
            if self._pipeline is None:
                self._pipeline = _load(self.model.path, self.settings.device)
            self._write(request, *self._timed(self._pipeline, request))
        (views,) = list_sets(request.folder)
        return _read_generated(views, request.prompt)

    def _arguments(self, request: SetRequest) -> dict[str, Any]:
        """Arguments of the pipeline."""
        defaults, captions = self.model.defaults, self._captions
        steps, scale = self.settings.steps, self.settings.guidance_scale
        is_image_given = request.image is not None
        prompt = request.prompt
        # Scanned objects have an image alone.
        if captions and prompt:
            prompt = read_prompt(prompt, captions).prompt
        return {
            "prompt": prompt,
            "cameras": request.cameras,
            "num_inference_steps": defaults.num_inference_steps if steps is None else steps,
            "guidance_scale": defaults.guidance(is_image_given) if scale is None else scale,
            "guidance_rescale": defaults.guidance_rescale,
            "blob_sigma": defaults.blob_sigma,
            "seed": request.seed,
            "image": request.image,
        }

    def _timed(
        self, pipeline: SPADPipeline, request: SetRequest
    ) -> tuple[list[Image.Image], dict[str, float]]:
        """Images of a set, and what it took."""
        is_cuda = pipeline.device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        images = _images(pipeline, self._arguments(request))
        seconds = time.perf_counter() - started
        memory = torch.cuda.max_memory_allocated() / 1e9 if is_cuda else peak_memory_gb()
        return images, {"sampling_seconds": seconds, "sampling_memory_gb": memory}

    def _write(
        self,
        request: SetRequest,
        images: Sequence[Image.Image],
        cost: Mapping[str, float] | None = None,
    ) -> None:
        run = {"prompts": [request.prompt], "model": self.model.name, "seed": request.seed}
        run |= cost or {}
        with whole_folder(request.folder) as temporary:
            write_views(temporary, images, request.cameras, run)


def text_name(index: int, caption: str, repeat: int = 0) -> str:
    """Name of the set of a prompt."""
    return f"{index:03d}-{slug(caption)}" + (f"-seed{repeat}" if repeat else "")


def read_prompt_lines(path: Path) -> dict[str, str]:
    """Line number -> prompt, without empty lines.

    Raises: ValueError: there are none, or one twice.
    """
    lines = {str(number): line.strip() for number, line in enumerate(read_text(path).splitlines())}
    prompts = {number: line for number, line in lines.items() if line}
    if not prompts:
        raise ValueError(f"expected prompts in {path}, one a line, got none")
    if len(set(prompts.values())) < len(prompts):
        raise ValueError(f"expected every prompt once in {path}, got some again; remove these")
    return prompts


def is_failed(views: ViewSet) -> bool:
    """Whether a view shows nothing, or no white background."""
    share = views.alpha.mean((1, 2))
    return bool(((share < _LEAST_OBJECT) | (share > _MOST_OBJECT)).any())


def _generate(
    model: str | Path, device: str | None, arguments: dict[str, Any]
) -> list[Image.Image]:
    """The images of one set, in a process of a cluster, which keeps the model for the next."""
    return _images(_loaded(model, device), arguments)


def _images(pipeline: SPADPipeline, arguments: dict[str, Any]) -> list[Image.Image]:
    """The images of one set."""
    if not arguments["prompt"]:
        # A pipeline takes an empty prompt for a mistake, but not its embedding.
        arguments = arguments | {"prompt": None, "prompt_embeds": pipeline.encode_text([""])}
    return pipeline(**arguments).images[0]


def _load(model: str | Path, device: str | None) -> SPADPipeline:
    # Scores of one model are the same everywhere.
    pipeline = load_model(model, device, torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_loaded = lru_cache(maxsize=1)(_load)


def _read_generated(views: PosedImages, prompt: str) -> ViewSet:
    """Generated images as a set, in which all that is not white is object.

    `PosedImages.read` refuses other backgrounds, which a poor model may generate.
    """
    images = to_floats(views.images())
    alpha = ((1 - images).amax(1) > WHITE_TOLERANCE).float()
    return ViewSet(views.uid, prompt, images, alpha, views.cameras, alpha_is_estimated=True)
