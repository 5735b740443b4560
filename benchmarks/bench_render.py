"""Views a second that `spad render`'s renderers draw of a sample of models, as a table.

    python benchmarks/bench_render.py MODELS --output benchmarks/results/render.md

128 x 128 pixels, four rays a pixel (embree), the training cameras of each model. "a core" counts
the processor time of one worker, so other work on the machine hardly shows; the scaling counts
the time on the clock. Blender draws a few of the same models where bpy is installed, or
SPAD_BLENDER names it; its time includes the start of its process and the loading.
"""

import argparse
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import trimesh
from bench_start import processor, publish

from spad.cameras import Cameras
from spad.data.camera_sampling import cameras_of
from spad.data.config import RenderConfig
from spad.data.workers import num_cores
from spad.meshes.mesh import load_object
from spad.meshes.raycast import render_views
from spad.meshes.renderers import find_renderer
from spad.meshes.settings import RendererSettings

SIZE = 128


def cameras_for(path: Path, views: int) -> Cameras:
    return cameras_of(RenderConfig(Path(), Path(), image_size=SIZE), path.stem)[:views]


def processor_seconds(function: Callable, *arguments, **options) -> tuple[float, object]:
    """Of this process and those that it started and that ended."""

    def used() -> float:
        return time.process_time() + sum(os.times()[2:4])

    before = used()
    result = function(*arguments, **options)
    return used() - before, result


def measure_embree(job: tuple[Path, int]) -> tuple[int, float, float]:
    """Triangles; seconds to load a model, and to render its views."""
    path, views = job
    loading, obj = processor_seconds(load_object, path)
    cameras = cameras_for(path, views)
    rendering, _ = processor_seconds(render_views, obj, cameras)
    return len(obj.faces), loading, rendering


def draw_model(job: tuple[Path, int]) -> None:
    path, views = job
    find_renderer("embree").render(path, cameras_for(path, views), RendererSettings())


def clock_seconds(paths: list[Path], views: int, workers: int) -> float:
    """To draw all models with geometry by several processes, their start left out."""
    jobs = [(path, views) for path in paths]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(draw_model, jobs[:1] * workers, chunksize=1)
        started = time.perf_counter()
        pool.map(draw_model, jobs, chunksize=1)
        return time.perf_counter() - started


def measure_blender(path: Path, views: int, engine: str, samples: int) -> float:
    """Processor seconds of a whole rendering in a process of its own."""
    settings = RendererSettings(blender_engine=engine, blender_samples=samples)
    renderer, cameras = find_renderer("blender"), cameras_for(path, views)
    return processor_seconds(renderer.render, path, cameras, settings)[0]


def row(label: str, views: int, seconds: list[float]) -> str:
    rates = [views / max(s, 1e-9) for s in seconds]
    total = views * len(seconds) / sum(seconds)
    median = statistics.median(rates)
    return f"| {label} | {median:.3g} | {min(rates):.3g} | {max(rates):.3g} | {total:.3g} |"


def blender_rows(paths: list[Path], views: int) -> list[str]:
    rows = []
    for engine, samples in (("cycles", 32), ("workbench", 8)):
        label = f"Blender {engine}, {samples} samples, {len(paths)} of the models"
        try:
            seconds = [measure_blender(path, views, engine, samples) for path in paths]
        except (ModuleNotFoundError, OSError, ValueError) as error:
            rows.append(f"| {label}: not measured ({error}) | | | | |")
        else:
            rows.append(row(label, views, seconds))
    return rows


def measure(options: argparse.Namespace) -> str:
    """The report, in Markdown."""
    suffixes = find_renderer("embree").suffixes
    paths = sorted(p for p in options.models.rglob("*") if p.suffix.lower() in suffixes)
    if not paths:
        sys.exit(f"no models in {options.models}")
    paths = random.Random(options.seed).sample(paths, min(options.objects, len(paths)))
    views = len(cameras_for(paths[0], options.views))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        # The first model is drawn twice: what is imported on demand is no part of it.
        times = pool.map(measure_embree, [(path, views) for path in (paths[0], *paths)])[1:]
    faces, loading, rendering = (list(column) for column in zip(*times, strict=True))
    both = [a + b for a, b in zip(loading, rendering, strict=True)]
    lines = [
        "| views a second a core | median model | slowest | fastest | all together |",
        "|---|---|---|---|---|",
        row("embree", views, rendering),
        row("embree, with loading", views, both),
        *(blender_rows(paths[: options.blender_objects], views) if options.blender_objects else ()),
        "",
    ]
    if options.workers > 1:
        one, many = (clock_seconds(paths, views, workers) for workers in (1, options.workers))
        lines.append(
            f"- embree with loading, {options.workers} workers against 1: "
            f"{one / many:.2f} times as fast ({len(paths) * views / one:.0f} and "
            f"{len(paths) * views / many:.0f} views a second on the clock)"
        )
    lines += [
        f"- {len(paths)} models of {min(faces):,} to {max(faces):,} triangles, median "
        f"{statistics.median(faces):,.0f}; {views} views of each, {SIZE} x {SIZE}",
        f"- hardware: {processor()}, {num_cores()} cores, {platform.system()}",
        f"- versions: Python {platform.python_version()}, numpy {np.__version__}, trimesh "
        f"{trimesh.__version__}",
        f"- made by `python {' '.join(sys.argv)}` on {date.today()}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, help="folder of models")
    parser.add_argument("--objects", type=int, default=60, help="models in the sample")
    parser.add_argument("--views", type=int, default=12, help="of each model, at most 24")
    parser.add_argument("--blender-objects", type=int, default=5, help="of them, by Blender")
    parser.add_argument("--workers", type=int, default=2, help="for the scaling; 1 leaves it out")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--output", type=Path, help="Markdown file to write as well")
    options = parser.parse_args()
    if min(options.objects, options.views, options.workers) < 1 or options.blender_objects < 0:
        parser.error("expected at least one model, view and worker")
    # One thread a worker, as in `spad render`; workers read it when their numpy loads.
    os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")})
    publish(measure(options), options.output)


if __name__ == "__main__":
    main()
