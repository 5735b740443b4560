"""Views in passes: more views of an object than fit in memory together.

The first pass draws anchors, views that are spread over all cameras. Every later one draws views
that stand close together, with the finished views nearest to them held clean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from spad.cameras import Cameras
from spad.files import whole_file
from spad.images.pixels import fitted_image
from spad.images.reading import read_image

if TYPE_CHECKING:
    from diffusers.callbacks import PipelineCallback

    from spad.model import SPADPipeline

logger = logging.getLogger(__name__)

# Distances of unit vectors that are as good as equal: rounding is to decide nothing.
_DECIMALS = 4
# Arguments of a pipeline that are of one pass, or ask for something else than images of one object.
_OF_ONE_PASS = ("image", "generator", "num_images_per_prompt", "output_type", "return_dict")


@dataclass(frozen=True)
class Pass:
    """Views that are sampled together: those held clean, and those drawn; in increasing order."""

    held: tuple[int, ...]
    drawn: tuple[int, ...]

    @property
    def views(self) -> list[int]:
        """All its views, in increasing order."""
        return sorted((*self.held, *self.drawn))


def plan_passes(
    cameras: Cameras, views_per_pass: int | None, given: Collection[int] = ()
) -> tuple[Pass, ...]:
    """Passes that draw every view but the given ones, once.

    If all views fit in one pass, that is it. Else half of a pass is held, more where fewer views
    are left to draw; the first pass holds nothing if no view is given.

    Args:
        views_per_pass: views of a pass, 2 or more. None: all.
        given: finished views, such as images from elsewhere.

    Raises: ValueError: a pass of less than two views, or no such view.
    """
    if views_per_pass is None:
        views_per_pass = max(2, len(cameras))
    if views_per_pass < 2:
        raise ValueError(f"expected 2 or more views per pass, as one is held, got {views_per_pass}")
    count, finished = len(cameras), sorted(set(given))
    if wrong := [view for view in finished if view not in range(count)]:
        raise ValueError(f"expected given views among 0 to {count - 1}, got {wrong[0]}")
    left = [view for view in range(count) if view not in finished]
    if not left or count <= views_per_pass:
        return (Pass(tuple(finished), tuple(left)),) if left else ()
    distances = _distances(cameras)
    passes: list[Pass] = []
    while left:
        room = views_per_pass - min(len(finished), views_per_pass // 2)
        if passes:
            (seed,) = _farthest(distances, left, finished, 1)
            drawn = _nearest(distances, [seed], left, room)
        else:
            drawn = _farthest(distances, left, finished, room)
        held = _nearest(distances, drawn, finished, views_per_pass - len(drawn))
        passes.append(Pass(tuple(sorted(held)), tuple(sorted(drawn))))
        finished = sorted((*finished, *drawn))
        left = [view for view in left if view not in drawn]
    return tuple(passes)


def generate_in_passes(
    pipeline: SPADPipeline,
    cameras: Cameras,
    views_per_pass: int | None,
    *,
    views: Mapping[int, Image.Image] | None = None,
    seed: int = 0,
    kept: Path | None = None,
    callback_of: Callable[[Cameras], PipelineCallback] | None = None,
    depth: Tensor | None = None,
    **options: Any,
) -> list[Image.Image]:
    """Images of one prompt from all cameras, of which a few are in memory at once.

    A view starts from the same noise in whichever pass it is drawn, so a single pass gives what
    the pipeline does.

    Args:
        cameras: of one object.
        views_per_pass: views that are sampled together; see `plan_passes`.
        views: images of the object by index of their camera, which are returned too, fitted to the
            size of the others but not as the autoencoder reconstructs them.
        seed: of the starting noise.
        kept: folder for finished views; those that are there are not drawn again. It belongs to
            one prompt, seed and all other arguments.
        callback_of: makes the `callback_on_step_end` of the cameras of a pass.
        depth: of all views, as the pipeline takes it.
        options: of a call of `pipeline`, with one `prompt` or its embeddings. The default of
            `guidance_scale` is that of the first pass in all: one view looks as much like the
            prompt as another.

    Raises: ValueError: as `plan_passes` and the pipeline, or several prompts.
    """
    if wrong := [name for name in _OF_ONE_PASS if name in options]:
        raise ValueError(
            f"expected images as views and noise as seed for views in passes, got {wrong[0]}"
        )
    prompt = options.get("prompt")
    if not (prompt is None or isinstance(prompt, str)):
        raise ValueError(f"expected one prompt, got {len(prompt)}; call once for each")
    if not cameras.has_own_size:
        cameras = cameras.resized(pipeline.image_size, pipeline.image_size)
    images = {i: fitted_image(v, cameras.height, cameras.width) for i, v in (views or {}).items()}
    passes = plan_passes(cameras, views_per_pass, images)
    noise = _noise(pipeline, cameras, seed)
    if options.get("guidance_scale") is None and options.get("cfg_scale") is None:
        options["guidance_scale"] = pipeline.defaults.guidance(bool(images))
    for number, one in enumerate(passes):
        files = {} if kept is None else {view: kept / f"{view:03d}.png" for view in one.drawn}
        if files and all(file.is_file() for file in files.values()):
            for view, file in files.items():
                images[view] = read_image(file).convert("RGB")
            continue
        if len(passes) > 1:
            names = ", ".join(map(str, one.drawn))
            logger.info("pass %d of %d: views %s", number + 1, len(passes), names)
        sampled = pipeline(
            cameras=cameras[one.views],
            views={one.views.index(view): images[view] for view in one.held},
            latents=noise[:, one.views],
            callback_on_step_end=callback_of and callback_of(cameras[one.views]),
            depth=None if depth is None else depth[one.views],
            **options,
        ).images[0]
        drawn = dict(zip(one.views, sampled, strict=True))
        images |= {view: drawn[view] for view in one.drawn}
        for view, file in files.items():
            with whole_file(file) as unfinished:
                images[view].save(unfinished)
    return [images[view] for view in range(len(cameras))]


def _noise(pipeline: SPADPipeline, cameras: Cameras, seed: int) -> Tensor:
    """The noise of `seed` for all views (1, v, c, h, w), as the pipeline draws it."""
    height, width = (side // pipeline.vae_downscale for side in (cameras.height, cameras.width))
    shape = (1, len(cameras), pipeline.vae.config.latent_channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _distances(cameras: Cameras) -> Tensor:
    """Distances (v, v) of the directions in which cameras stand, seen from the origin; 0 to 2."""
    directions = torch.nn.functional.normalize(cameras.centers.double().cpu(), dim=-1)
    return torch.cdist(directions, directions).mul(10**_DECIMALS).round().div(10**_DECIMALS)


def _farthest(
    distances: Tensor, candidates: Sequence[int], finished: Sequence[int], count: int
) -> list[int]:
    """Up to `count` candidates, each the farthest from all finished and chosen before it.

    Farthest is which has its nearest the farthest away, then the most distance to all.
    """
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        left = [view for view in candidates if view not in chosen]
        others = [*finished, *chosen]
        if not others:
            chosen.append(left[0])
            continue
        away = distances[left][:, others]
        nearest, total = away.amin(dim=1), away.sum(dim=1).round(decimals=_DECIMALS)
        chosen.append(left[int(total.where(nearest == nearest.max(), -1.0).argmax())])
    return chosen


def _nearest(
    distances: Tensor, views: Sequence[int], candidates: Sequence[int], count: int
) -> list[int]:
    """Up to `count` candidates: the nearest to every view, then the second nearest, and so on."""
    if not candidates:
        return []
    ranks = distances[views][:, candidates].argsort(dim=1, stable=True)
    return list(dict.fromkeys(candidates[int(i)] for i in ranks.mT.flatten()))[:count]
