"""What the page asks for: drawing views, scoring them, building a model of them."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

import spad
from spad.app.messages import DrawRequest, ViewsRequest, image_text
from spad.app.work_queue import Emit, Message
from spad.data.view_sets import set_from_images
from spad.evaluation.photo_consistency import photo_consistency
from spad.generation.framing import framing_warnings
from spad.hub.registry import ModelInfo, check_prompt_length, load_model
from spad.model.vocabulary import describe_reading, read_prompt

if TYPE_CHECKING:
    from spad.model import SPADPipeline

# Previews may take this share of the time.
_PREVIEW_SHARE = 0.25


class Studio:
    """A model, and the work with it. All of it runs in one thread.

    Args:
        model: loaded by the first work.
        device, dtype: as in `load_model`.
    """

    def __init__(self, model: ModelInfo, device: str | None, dtype: str):
        self.model = model
        self._vocabulary = model.vocabulary()
        self._device = device
        self._dtype = dtype
        self._pipeline: SPADPipeline | None = None

    @property
    def is_loaded(self) -> bool:
        return self._pipeline is not None

    def read(self, prompt: str) -> tuple[str, list[str]]:
        """A prompt in the words of the model, and sentences about what was not understood."""
        if self._vocabulary is None:
            return prompt, []
        captions = self._vocabulary.captions
        reading = read_prompt(prompt, captions, self._vocabulary.synonyms)
        return reading.prompt, describe_reading(reading, captions, self.model.name)

    def load(self) -> SPADPipeline:
        """The pipeline. Raises: ValueError, OSError: as `load_model`."""
        if self._pipeline is None:
            dtype = "auto" if self._dtype == "auto" else getattr(torch, self._dtype)
            pipeline = load_model(self.model.path, self._device, dtype)
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline = pipeline
        return self._pipeline

    def draw(self, request: DrawRequest, emit: Emit) -> Message:
        """Draw views; previews of all of them are sent while they get clear."""
        started = time.monotonic()
        check_prompt_length(self.model, request.prompt)
        read_as, notes = self.read(request.prompt)
        cameras = request.cameras.cameras()
        notes += framing_warnings(cameras)
        held = request.held_images()
        if not self.is_loaded:
            emit({"kind": "loading"})
        pipeline = self.load()
        defaults = pipeline.defaults
        steps = request.steps or defaults.num_inference_steps
        guidance = request.guidance_scale
        if guidance is None:
            guidance = defaults.guidance(bool(held))
        result = pipeline(
            cameras=cameras,
            # How the prompt is read is said in the page, not in the log.
            prompt_embeds=pipeline.encode_text([pipeline.config["prompt_prefix"] + read_as]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=request.seed,
            views=held,
            callback_on_step_end=_Preview(pipeline, steps, emit),
            callback_on_step_end_tensor_inputs=["pred_original_sample"],
        )
        # A held view comes back as it was given, not as the autoencoder has it.
        images = [held.get(view, image) for view, image in enumerate(result.images[0])]
        return {
            "images": [image_text(image) for image in images],
            "notes": notes,
            "scores": scores(images, request),
            "run": {
                "prompt": request.prompt,
                "read_as": read_as,
                "model": self.model.name,
                "seed": request.seed,
                "num_inference_steps": steps,
                "guidance_scale": guidance,
                "held": sorted(held),
                "seconds": round(time.monotonic() - started, 2),
                "spad": spad.__version__,
            },
        }

    def build(self, request: ViewsRequest, emit: Emit) -> Message:
        """A 3D model of views: GLB and PLY in base64, what to know about it, scores."""
        emit({"kind": "building"})
        import base64

        from spad.reconstruction.reconstruct import reconstruct
        from spad.reconstruction.surface import DRAWN_SMOOTHNESS

        images, cameras = request.views(), request.cameras.cameras()
        pixels = np.stack([np.asarray(image) for image in images])
        views = set_from_images("the views", pixels, cameras, request.prompt or None)
        result = reconstruct(views, smoothness=DRAWN_SMOOTHNESS)
        with tempfile.TemporaryDirectory() as folder:
            files = {}
            for kind in ("glb", "ply"):
                path = Path(folder) / f"model.{kind}"
                result.save(path)
                files[kind] = base64.b64encode(path.read_bytes()).decode()
        views = [
            {"view": one.view, "psnr": _finite(one.psnr), "iou": _finite(one.silhouette_iou)}
            for one in result.scores.views
        ]
        return {**files, "notes": [*result.notes, *str(result.scores).splitlines()], "views": views}


class _Preview:
    """Callback of the pipeline that sends what the views will be, as far as it is known.

    Every step is announced; images come as often as they cost little beside drawing.
    """

    def __init__(self, pipeline: SPADPipeline, steps: int, emit: Emit):
        self._pipeline, self._steps, self._emit = pipeline, steps, emit
        self._cost = 0.0
        self._last = -math.inf

    def __call__(
        self, _pipeline: Any, step: int, _timestep: Any, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, Any]:
        message: Message = {"kind": "step", "step": step + 1, "steps": self._steps}
        began = time.monotonic()
        if began - self._last > self._cost / _PREVIEW_SHARE and step + 1 < self._steps:
            views = self._pipeline.decode(tensors["pred_original_sample"][0])
            message["images"] = [image_text(view, "WEBP") for view in views]
            self._last = time.monotonic()
            self._cost = self._last - began
        self._emit(message)
        return {}


def scores(images: list[Image.Image], request: DrawRequest) -> dict[str, float | None]:
    """Scores of drawn views; see `spad.evaluation`. None where one is undefined."""
    pixels = np.stack([np.asarray(image) for image in images])
    try:
        views = set_from_images("the views", pixels, request.cameras.cameras(), request.prompt)
    except ValueError:
        # No white background: there is no outline to compare.
        return {"photo_consistency": None}
    return {"photo_consistency": _finite(photo_consistency(views))}


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
