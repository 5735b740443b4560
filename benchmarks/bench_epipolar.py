"""How fast epipolar bands come on demand, and how long a sweep of 400 source pixels takes.

Run it with the Python that spad is installed in: python benchmarks/bench_epipolar.py
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from bench_start import processor, publish

from spad.cameras import Cameras
from spad.data.workers import num_cores
from spad.geometry import epipolar_mask, pixel_bands
from spad.visualize.animation import save_sweep, sweep_frames, wandering_pixels
from spad.visualize.explorer import explorer_page
from spad.visualize.toy_bear import render_stand_in
from spad.visualize.views import ShownViews


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def posed(num_views: int, side: int) -> ShownViews:
    cameras = Cameras.ring(num_views, elevation_deg=20, height=side, width=side)
    images, depth = render_stand_in(cameras, samples_per_side=1)
    return ShownViews(cameras, images, tuple(map("view {}".format, range(num_views))), depth)


def measure(runs: int, frames: int) -> str:
    """The report, in Markdown."""
    big, small = posed(12, 512), posed(4, 256)
    pixels = wandering_pixels(512, 512, runs)
    spot = iter(pixels)

    def one_pixel() -> None:
        pixel_bands(big.cameras, 0, next(spot)[None]).masks(0, 48.0)

    def sweep(views: ShownViews, suffix: str) -> None:
        side = views.cameras.height
        path = wandering_pixels(side, side, frames)
        with tempfile.TemporaryDirectory() as folder:
            drawn = sweep_frames(views, 0, path, 3 / 32 * side, panel=256)
            save_sweep(Path(folder, f"sweep.{suffix}"), drawn)

    jobs = {
        "one pixel's bands in 12 views of 512 x 512": (one_pixel, runs),
        "all masks of 4 views at 32 x 32": (lambda: epipolar_mask(small.cameras, 32, 32), runs),
        f"GIF of {frames} source pixels, 4 views of 256": (lambda: sweep(small, "gif"), 1),
        f"WebP of {frames} source pixels, 4 views of 256": (lambda: sweep(small, "webp"), 1),
        f"GIF of {frames} source pixels, 12 views of 256": (lambda: sweep(big, "gif"), 1),
        "explorer page of 12 views of 512": (lambda: explorer_page(big, 48.0), 3),
    }
    rows = []
    for label, (job, repeats) in jobs.items():
        times = [seconds(job) for _ in range(repeats)]
        shown = f"{statistics.median(times):.3f} | {min(times):.3f} to {max(times):.3f}"
        rows.append(f"| {label} | {shown} | {repeats} |")
    return "\n".join(
        [
            "| what | median, s | from, to | runs |",
            "|---|---|---|---|",
            *rows,
            "",
            f"- hardware: {processor()}, {num_cores()} cores, {platform.system()}; "
            f"{torch.get_num_threads()} threads",
            f"- versions: Python {platform.python_version()}, torch {version('torch')}, "
            f"pillow {version('pillow')}",
            f"- the full mask of 12 views at 512 x 512 would have {(12 * 512**2) ** 2:.1e} entries",
            f"- made by `python {' '.join(sys.argv)}` on {date.today()}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="of what takes milliseconds")
    parser.add_argument("--frames", type=int, default=400, help="of a sweep")
    parser.add_argument("--output", type=Path, help="Markdown file to write as well")
    options = parser.parse_args()
    if options.runs < 1 or options.frames < 2:
        parser.error("expected at least 1 run and 2 frames")
    report = measure(options.runs, options.frames)
    publish(report, options.output)


if __name__ == "__main__":
    main()
