"""How many steps are enough: solvers, cached steps and shorter bands against DDIM of 1,000 steps.

    python benchmarks/bench_steps.py [--model mini] [--prompts 6] [--reference 1000]

Prompts are captions of the evaluation protocol, drawn from four cameras round the object with the
model's defaults and one seed. Prints for each way the seconds of a set and the PSNR of its images
to those of the reference.
"""

import argparse
import time
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from spad.cameras import Cameras
from spad.evaluation.protocol import load_protocol
from spad.hub.registry import load_model, model_info
from spad.model import SPADPipeline


@dataclass(frozen=True)
class Way:
    """One way to draw."""

    solver: str = "ddim"
    steps: int = 25
    deep_cache_interval: int = 1
    ball_radius: float | None = None

    def __str__(self) -> str:
        cached = (
            f", deep blocks every {self.deep_cache_interval}"
            if self.deep_cache_interval > 1
            else ""
        )
        ball = f", ball of {self.ball_radius:g}" if self.ball_radius else ""
        return f"{self.solver} {self.steps}{cached}{ball}"


WAYS = [
    Way("ddim", 100),
    *(Way("ddim", steps) for steps in (50, 25, 20, 15, 12, 10)),
    *(Way(solver, n) for solver in ("dpm++", "unipc", "euler") for n in (25, 20, 15, 10)),
    *(Way("ddim", 25, interval) for interval in (2, 3)),
    Way("dpm++", 25, 2),
    Way("ddim", 25, ball_radius=1.0),
]


def draw(pipeline: SPADPipeline, way: Way, prompts: list[str], cameras: Cameras, settings: dict):
    """Seconds of each set, and all images, (p, v, h, w, 3) in 0 to 1."""
    pipeline.use_scheduler(way.solver)
    pipeline.unet.register_to_config(ball_radius=way.ball_radius)
    seconds, sets = [], []
    for prompt in prompts:
        started = time.perf_counter()
        images = pipeline(
            prompt,
            cameras,
            num_inference_steps=way.steps,
            deep_cache_interval=way.deep_cache_interval,
            **settings,
        ).images[0]
        seconds.append(time.perf_counter() - started)
        sets.append(np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images]))
    return median(seconds), np.stack(sets)


def psnr(images: np.ndarray, reference: np.ndarray) -> float:
    """Mean over the sets, in dB."""
    errors = np.square(images - reference).mean(axis=(1, 2, 3, 4))
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1e-10))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--reference", type=int, default=1000)
    options = parser.parse_args()
    info = model_info(options.model)
    reference = min(options.reference, info.max_steps)
    pipeline = load_model(options.model)
    pipeline.set_progress_bar_config(disable=True)
    defaults = info.defaults
    cameras = Cameras.ring(
        4,
        defaults.elevation_deg,
        defaults.start_azimuth_deg,
        height=info.image_size,
        width=info.image_size,
    )
    settings = {
        "guidance_scale": defaults.guidance_scale,
        "guidance_rescale": defaults.guidance_rescale,
        "blob_sigma": defaults.blob_sigma,
    }
    captions = list(dict.fromkeys(load_protocol().captions.values()))
    prompts = captions[: options.prompts]
    print(f"{info.name}, {len(prompts)} prompts, 4 views, {torch.get_num_threads()} threads")
    start = Way(steps=reference)
    draw(pipeline, replace(start, steps=2), prompts[:1], cameras, settings)
    seconds, truth = draw(pipeline, start, prompts, cameras, settings)
    print("| | seconds | PSNR to the first |")
    print("|---|---|---|")
    print(f"| {start} | {seconds:.2f} | |", flush=True)
    for way in WAYS:
        seconds, images = draw(pipeline, way, prompts, cameras, settings)
        print(f"| {way} | {seconds:.2f} | {psnr(images, truth):.1f} dB |", flush=True)


if __name__ == "__main__":
    main()
