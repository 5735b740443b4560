"""Growth of time and memory with the number of views and the size of latents, on this machine.

    python benchmarks/bench_growth.py OUTPUT [--views 2 4 8 16 32 64] [--grids 32 48 64 96]
        [--at-views 4] [--kinds attention step] [--device cpu] [--limit 120]

Two lines of sizes: --views at the first of --grids, and --grids at --at-views views. `attention` is
one call with the masks of cameras evenly round, 8 heads of 40 channels as in Stable Diffusion 1.5's
finest layers, for each backend; `step` is a denoising step with guidance of a full-size model of
random weights, with the backend that spad chooses. fp32, one object; every number comes from a
process of its own. A line ends where a call takes more than --limit seconds, or would need more
memory than there is.

OUTPUT gets growth.md (all numbers, the exponents, and where each backend is the fastest),
growth.json and growth.png. An exponent is the slope of the logarithms by least squares, over sizes
from 4 views on, so that 2 means that twice the size costs four times as much. Needs matplotlib.
"""

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median

from bench_attention import (
    BAND,
    CHANNELS,
    HEADS,
    available_gb,
    exponent,
    full_size,
    hardware,
    memory_gb,
    timed,
)

BACKENDS = ("reference", "sdpa", "banded", "flex")
KINDS = ("attention", "step")
# What a dense backend needs for each pair of tokens: the mask and copies of it, or of the logits.
DENSE_BYTES = {"reference": 12 * HEADS + 1, "sdpa": 5}
# Fewer views are not part of the fits: own views and overhead outweigh the bands.
FEWEST_FITTED = 4


@dataclass(frozen=True)
class Row:
    """What one process measured.

    Attributes:
        grid: side of the latents in tokens.
        backend: of attention; "auto" for a step.
        seconds: median of up to three calls.
        memory_gb: growth of the process for attention, with its masks; all of it for a step.
        chosen: the backend that spad chooses here, if it is known.
    """

    kind: str
    views: int
    grid: int
    backend: str
    seconds: float
    memory_gb: float
    prepare_s: float
    chosen: str


def attention(views: int, grid: int, backend: str, device: str) -> Row:
    """One call with its masks, which are prepared before."""
    import torch

    from spad.attention import EpipolarMask, choose_backend, multiview_attention, prepare
    from spad.cameras import Cameras
    from spad.geometry.rays import scale_intrinsics

    torch.manual_seed(0)
    cameras = Cameras.ring(views, elevation_deg=20.0).to(device)
    intrinsics = scale_intrinsics(cameras.intrinsics, (cameras.height, cameras.width), (grid, grid))
    mask = EpipolarMask(cameras.world_from_cam[None], intrinsics[None], grid, grid, BAND)
    tensors = [torch.randn(views, HEADS, grid * grid, CHANNELS, device=device) for _ in range(3)]
    with torch.no_grad():
        multiview_attention(*(x[:2, :, :64] for x in tensors), 2, None)
        before = _memory(device)
        started = time.perf_counter()
        prepare(mask, backend)
        _wait(device)
        prepared = time.perf_counter() - started

        def call() -> None:
            multiview_attention(*tensors, views, mask, backend)
            _wait(device)

        seconds = timed(call, 3)
    grown = _memory(device) - before
    chosen = choose_backend(mask) if backend == "banded" else ""
    return Row("attention", views, grid, backend, median(seconds), grown, prepared, chosen)


def step(views: int, grid: int, backend: str, device: str) -> Row:
    """A guided step of a full-size model, conditioned on cameras and text before."""
    import torch

    from spad.attention import choose_backend
    from spad.model.conditioning import condition_on_cameras

    unet, cameras, _ = full_size("banded", views, grid)
    unet.to(device)
    sample = torch.randn(2, views, 4, grid, grid, device=device)
    text = torch.randn(2, 77, 768, device=device)
    with torch.no_grad():
        started = time.perf_counter()
        conditions = condition_on_cameras(unet, cameras.to(device), grid, grid, text=text)
        _wait(device)
        prepared = time.perf_counter() - started

        def call() -> None:
            unet(sample, 500, text, conditions)
            _wait(device)

        call()
        seconds = timed(call, 3)
    chosen = choose_backend(conditions.masks[grid * grid])
    return Row("step", views, grid, backend, median(seconds), _memory(device), prepared, chosen)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def _memory(device: str) -> float:
    """The most that was held so far, in GB."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    return memory_gb()


MEASURES = {"attention": attention, "step": step}


def measured(kind: str, views: int, grid: int, backend: str, device: str) -> Row | str:
    """From a process of its own; or why not."""
    needed = DENSE_BYTES.get(backend, 0) * (views * grid * grid) ** 2 / 1e9
    if device == "cpu" and needed > 0.85 * available_gb():
        return f"needs {needed:.0f} GB"
    words = [sys.executable, __file__, "one", kind, str(views), str(grid), backend, device]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
    return Row(**json.loads(done.stdout))


def measure_line(
    kind: str, sizes: list[tuple[int, int]], backend: str, options: argparse.Namespace
) -> tuple[list[Row], str]:
    """Rows of growing sizes, and why the line ended early, if it did."""
    rows: list[Row] = []
    for views, grid in sizes:
        found = measured(kind, views, grid, backend, options.device)
        if isinstance(found, str):
            return rows, f"{views} views of {grid}²: {found}"
        rows.append(found)
        if found.seconds > options.limit and (views, grid) != sizes[-1]:
            return rows, f"more than {views} views of {grid}²: over {options.limit:g} s before"
    return rows, ""


def exponents(rows: list[Row], options: argparse.Namespace) -> list[str]:
    """Table rows: how time and memory of each backend grow along both lines."""
    lines = []
    for kind, backend in dict.fromkeys((row.kind, row.backend) for row in rows):
        own = [row for row in rows if (row.kind, row.backend) == (kind, backend)]
        for label, line in (
            ("views", [r for r in own if r.grid == options.grids[0] and r.views >= FEWEST_FITTED]),
            ("tokens a view", [r for r in own if r.views == options.at_views]),
        ):
            sizes = [r.views if label == "views" else r.grid**2 for r in line]
            if len(set(sizes)) < 2:
                continue
            reach = f"{min(sizes)} to {max(sizes)}"
            slopes = [
                f"{exponent(sizes, values):.2f}" if min(values) > 0 else "–"
                for values in ([r.seconds for r in line], [r.memory_gb for r in line])
            ]
            lines.append(f"| {kind} | {backend} | {label}, {reach} | {' | '.join(slopes)} |")
    return lines


def winners(rows: list[Row]) -> list[str]:
    """Table rows: the fastest backend of each size, and the one that spad chooses."""
    lines = []
    calls = [row for row in rows if row.kind == "attention"]
    for views, grid in dict.fromkeys((row.views, row.grid) for row in calls):
        here = {r.backend: r for r in calls if (r.views, r.grid) == (views, grid)}
        fastest = min(here.values(), key=lambda row: row.seconds)
        leanest = min(here.values(), key=lambda row: row.memory_gb)
        chosen = next((row.chosen for row in here.values() if row.chosen), "")
        cost = f"{here[chosen].seconds / fastest.seconds:.2f}" if chosen in here else "–"
        cells = f"{fastest.backend} | {leanest.backend} | {chosen or '–'} | {cost}"
        lines.append(f"| {views} | {grid}² | {cells} |")
    return lines


def markdown(rows: list[Row], ends: list[str], options: argparse.Namespace) -> str:
    parts = ["# Growth with views and latents", hardware()]
    table = [
        "| kind | views | latents | backend | seconds | memory, GB | prepared in, s |",
        "|---|---|---|---|---|---|---|",
    ]
    table += [
        f"| {r.kind} | {r.views} | {r.grid}² | {r.chosen if r.kind == 'step' else r.backend} | "
        f"{r.seconds:.3g} | {r.memory_gb:.2f} | {r.prepare_s:.2g} |"
        for r in rows
    ]
    parts += ["\n".join(table), *(f"- {end}" for end in ends)]
    heading = "| kind | backend | with | time, exponent | memory, exponent |\n|---|---|---|---|---|"
    parts += ["## Exponents", "\n".join([heading, *exponents(rows, options)])]
    heading = (
        "| views | latents | fastest | least memory | spad chooses | its time, of the fastest |\n"
        "|---|---|---|---|---|---|"
    )
    parts += ["## Where each backend wins", "\n".join([heading, *winners(rows)])]
    parts.append(
        f"Made by `python {shlex.join(sys.argv)}` on {date.today()}, {platform.system()}, "
        f"{options.device}."
    )
    return "\n\n".join(parts) + "\n"


def plot(rows: list[Row], path: Path, options: argparse.Namespace) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), squeeze=False)
    for kind, backend in dict.fromkeys((row.kind, row.backend) for row in rows):
        own = [row for row in rows if (row.kind, row.backend) == (kind, backend)]
        by_views = sorted((r for r in own if r.grid == options.grids[0]), key=lambda r: r.views)
        by_grid = sorted((r for r in own if r.views == options.at_views), key=lambda r: r.grid)
        label = f"{kind}, {backend}"
        for column, line in enumerate((by_views, by_grid)):
            sizes = [r.grid if column else r.views for r in line]
            axes[0][column].plot(sizes, [r.seconds for r in line], "o-", label=label)
            axes[1][column].plot(sizes, [r.memory_gb for r in line], "o-", label=label)
    for column, (name, ticks, other) in enumerate(
        (
            ("views", options.views, f"latents of {options.grids[0]}²"),
            ("side of the latents", options.grids, f"{options.at_views} views"),
        )
    ):
        for line, what in enumerate(("seconds", "GB")):
            axis = axes[line][column]
            axis.set(xscale="log", yscale="log", xlabel=name, ylabel=what, title=other)
            axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            axis.set_xticks([], minor=True)
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def grow(options: argparse.Namespace) -> str:
    """Measure, write the files, and return the report in Markdown."""
    by_views = [(views, options.grids[0]) for views in options.views]
    by_grid = [(options.at_views, grid) for grid in options.grids]
    rows, ends = [], []
    for kind in options.kinds:
        for backend in options.backends if kind == "attention" else ["auto"]:
            for sizes in (by_views, by_grid):
                known = {(r.views, r.grid) for r in rows if (r.kind, r.backend) == (kind, backend)}
                missing = [size for size in sizes if size not in known]
                found, end = measure_line(kind, missing, backend, options)
                rows += found
                if end:
                    ends.append(f"{kind}, {backend}, {end}")
    report = markdown(rows, ends, options)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "growth.md").write_text(report)
    (options.output / "growth.json").write_text(json.dumps([asdict(r) for r in rows], indent=1))
    plot(rows, options.output / "growth.png", options)
    return report


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        kind, views, grid, backend, device = sys.argv[2:]
        print(json.dumps(asdict(MEASURES[kind](int(views), int(grid), backend, device))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--grids", type=int, nargs="+", default=[32, 48, 64, 96])
    parser.add_argument("--at-views", type=int, default=4)
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--backends", choices=BACKENDS, nargs="+", default=BACKENDS[:3])
    parser.add_argument("--device", default="cpu", help="flex needs cuda")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds")
    print(grow(parser.parse_args()))


if __name__ == "__main__":
    main()
