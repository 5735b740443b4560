"""How near do views of learned things come to renders of the very things?

    python benchmarks/bench_learned.py MODELS OUTPUT [--model mini] [--most 100] [--mesh]

MODELS is the `models.jsonl` that the model's training data was rendered from
(`benchmarks/mini/make_things.py` makes it). Each thing is drawn from its first caption at cameras
on a ring that no training image had, and rendered at the same cameras. PSNR is
that of the bounding box of the thing in each render; IoU that of the masks, where a pixel belongs
to the thing if a channel is more than `WHITE_TOLERANCE` below white. Both are means over views,
then things, with a bootstrap interval over things. With --mesh a 3D model is made of the views of
each thing, and compared with the very model as `spad evaluate --reference` does. OUTPUT gets
`scores.json`, sheets with each drawing above its render, and the 3D models. Needs `pip install
'spad[mesh]'`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from spad.cameras import Cameras
from spad.data.assets import read_index
from spad.data.view_sets import set_from_images
from spad.evaluation.mesh_scores import score_meshes
from spad.evaluation.psnr_ssim import psnr
from spad.evaluation.reference_meshes import MeshPair
from spad.evaluation.statistics import estimate_mean
from spad.files import slug
from spad.hub.registry import load_model, model_info
from spad.images.alpha import WHITE_TOLERANCE
from spad.images.grids import prompt_grid
from spad.images.pixels import to_floats
from spad.images.reading import on_white
from spad.meshes.mesh import load_object
from spad.meshes.raycast import render_views
from spad.reconstruction.consistent_sampling import ConsistentSampling
from spad.reconstruction.reconstruct import reconstruct
from spad.reconstruction.surface import DRAWN_SMOOTHNESS

ELEVATION_DEG, START_AZIMUTH_DEG = 25.0, -37.0
THINGS_ON_A_SHEET = 10


def rendered(path: Path, cameras: Cameras) -> np.ndarray:
    """The thing on white, uint8 (v, h, w, 3)."""
    rgba = render_views(load_object(path), cameras).rgba
    return np.stack([on_white(Image.fromarray(view)) for view in rgba])


def mask_of(images: torch.Tensor) -> torch.Tensor:
    """(v, h, w) bool: where images (v, 3, h, w) in [0, 1] show more than the white ground."""
    return images.amin(1) < 1 - WHITE_TOLERANCE


def boxes(masks: torch.Tensor) -> torch.Tensor:
    """(v, h, w) bool: the bounding box of each mask."""
    rows, columns = masks.any(2), masks.any(1)

    def filled(line: torch.Tensor) -> torch.Tensor:
        before, after = line.cummax(1).values, line.flip(1).cummax(1).values.flip(1)
        return before & after

    return filled(rows)[:, :, None] & filled(columns)[:, None, :]


def compare(drawn: torch.Tensor, true: torch.Tensor) -> tuple[float, float]:
    """PSNR over the object's box, and IoU of the masks: means over views (v, 3, h, w)."""
    masks = [mask_of(images) for images in (drawn, true)]
    both, either = masks[0] & masks[1], masks[0] | masks[1]
    iou = both.sum((1, 2)) / either.sum((1, 2)).clamp_min(1)
    return float(psnr(drawn, true, boxes(masks[1])).mean()), float(iou.mean())


def modeled(caption: str, images: list[Image.Image], cameras: Cameras, path: Path) -> None:
    """Write a 3D model of drawn views."""
    views = set_from_images(caption, np.stack([np.asarray(one) for one in images]), cameras)
    reconstruct(views, smoothness=DRAWN_SMOOTHNESS).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--most", type=int, default=100, help="things drawn")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--consistency", type=float, default=0.0, help="as of `spad generate`")
    parser.add_argument("--steps", type=int, help="denoising steps; default: the model's own")
    parser.add_argument("--guidance-scale", type=float, help="default: the model's own")
    parser.add_argument("--mesh", action="store_true", help="make a 3D model of the views, too")
    arguments = parser.parse_args()
    model = model_info(arguments.model)
    defaults, pipeline = model.defaults, load_model(model.path)
    pipeline.use_scheduler(defaults.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    cameras = Cameras.ring(
        arguments.views,
        ELEVATION_DEG,
        START_AZIMUTH_DEG,
        height=model.image_size,
        width=model.image_size,
    )
    guidance = arguments.guidance_scale
    share = arguments.consistency
    scores, sheet = {}, {}
    rows = list(read_index(arguments.models))
    things = rows[:: -(-len(rows) // arguments.most)] if len(rows) > arguments.most else rows
    arguments.output.mkdir(parents=True, exist_ok=True)
    # First, so that a model that cannot be read is known before anything is drawn.
    renders = [rendered(arguments.models.parent / row.file, cameras) for row in things]
    progress = tqdm(zip(things, renders, strict=True), unit="thing", total=len(things))
    for number, (row, true) in enumerate(progress):
        caption = row.captions[0]
        images = pipeline(
            caption,
            cameras,
            num_inference_steps=arguments.steps or defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale if guidance is None else guidance,
            guidance_rescale=defaults.guidance_rescale,
            blob_sigma=defaults.blob_sigma,
            seed=number,
            callback_on_step_end=ConsistentSampling(cameras, share) if share > 0 else None,
        ).images[0]
        found = compare(to_floats(np.stack(images)), to_floats(true))
        scores[caption] = dict(zip(("psnr", "iou"), found, strict=True))
        if arguments.mesh:
            path = arguments.output / f"{slug(caption)}.glb"
            modeled(caption, images, cameras, path)
            pair = MeshPair(path, arguments.models.parent / row.file)
            scores[caption] |= score_meshes(pair)[0]
        sheet |= {caption: images, f"{caption}: render": [Image.fromarray(one) for one in true]}
        if len(sheet) == 2 * THINGS_ON_A_SHEET or number == len(things) - 1:
            prompt_grid(sheet).save(arguments.output / f"{number // THINGS_ON_A_SHEET:03d}.png")
            sheet = {}
    summary = {
        name: vars(estimate_mean([one[name] for one in scores.values()]))
        for name in next(iter(scores.values()))
    }
    for name, found in summary.items():
        print("{0}: {mean:.3f} ({low:.3f} to {high:.3f}) over {count} things".format(name, **found))
    text = json.dumps({"summary": summary, "things": scores}, indent=1)
    (arguments.output / "scores.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
