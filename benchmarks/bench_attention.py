"""Attention between views: time, memory and growth of each way to compute it, on this machine.

    python benchmarks/bench_attention.py kernel OUTPUT [--views 2 4 8 16] [--grids 32 64]
    python benchmarks/bench_attention.py step OUTPUT [--views 4] [--grids 32]
    python benchmarks/bench_attention.py generate OUTPUT [--views 4] [--grids 32]

`kernel` times one call, 8 heads of 40 channels as in Stable Diffusion 1.5's finest layers, fp32,
one object, cameras evenly round. `step` times a denoising step with guidance of a full-size model
of random weights, `generate` all from a prompt to images in three steps of it. Every number comes
from a process of its own; ways take turns, `--rounds` times. Writes OUTPUT/KIND.json, a table to
the terminal, and for `kernel` a plot and the exponents of growth with the number of views. Needs
matplotlib.

Ways: `original` is that of the released code, a dense float mask made anew in every call (in
`step`, all that depends on cameras is made anew in every step); `masked` is torch's attention with
a stored mask; `unmasked` lets all see all; `banded` is ours, `ball` with bands that end where rays
leave the ball of radius 1. In `step`, all but `original` read cameras and text once, and keep
channels last.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

WAYS = ("original", "masked", "unmasked", "banded", "ball")
HEADS, CHANNELS = 8, 40
BAND = 3.0
# Calls that take longer than this are not repeated in a process.
LONG = 10.0
# What a dense way needs for each pair of tokens: its mask, and torch's own float copy of it.
DENSE_BYTES = {"original": 9, "masked": 5}


def memory_gb() -> float:
    """The most that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def available_gb() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or seconds[-1] < LONG):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def kernel(way: str, views: int, grid: int) -> dict:
    """One way's seconds, memory beside the inputs, and what was made before the first call."""
    import torch

    from spad.attention import EpipolarMask, multiview_attention, prepare
    from spad.attention.banded import plan_of
    from spad.cameras import Cameras
    from spad.geometry.rays import scale_intrinsics

    torch.manual_seed(0)
    cameras = Cameras.ring(views, elevation_deg=20.0)
    intrinsics = scale_intrinsics(cameras.intrinsics, (cameras.height, cameras.width), (grid, grid))
    radius = 1.0 if way == "ball" else None
    mask = EpipolarMask(cameras.world_from_cam[None], intrinsics[None], grid, grid, BAND, radius)
    tensors = [torch.randn(views, HEADS, grid * grid, CHANNELS) for _ in range(3)]
    multiview_attention(*(x[:2, :, :64] for x in tensors), 2, None)
    before = memory_gb()
    found = {"kept": 1.0}
    started = time.perf_counter()
    if way in ("banded", "ball"):
        prepare(mask, "banded")
        plan = plan_of(mask)
        found |= {"kept": plan.kept, "plan_gb": plan.num_bytes / 1e9}
    elif way != "unmasked":
        mask.dense()
    found["prepare_s"] = time.perf_counter() - started

    def joined(x: torch.Tensor) -> torch.Tensor:
        return x[None].transpose(1, 2).flatten(2, 3)

    def call() -> torch.Tensor:
        if way == "original":
            bias = torch.zeros(mask.dense().shape).masked_fill_(~mask.dense(), -torch.inf)
            return torch.nn.functional.scaled_dot_product_attention(
                *map(joined, tensors), attn_mask=bias[:, None]
            )
        backend = {"masked": "sdpa", "unmasked": "sdpa"}.get(way, "banded")
        return multiview_attention(*tensors, views, None if way == "unmasked" else mask, backend)

    with torch.no_grad():
        found["seconds"] = timed(call, 3)
    return found | {"memory_gb": memory_gb() - before}


def full_size(way: str, views: int, grid: int):
    """A UNet of Stable Diffusion 1.5's size with random weights, and what conditions it."""
    import torch

    from spad.attention import DenseMask
    from spad.cameras import Cameras
    from spad.model import MultiViewUNet
    from spad.model.conditioning import condition_on_cameras

    torch.manual_seed(0)
    unet = MultiViewUNet(
        sample_size=grid,
        cross_attention_dim=768,
        attention_head_dim=8,
        band_width=BAND,
        epipolar="none" if way == "unmasked" else "exact",
        ball_radius=1.0 if way == "ball" else None,
    ).eval()
    if way != "original":
        unet.to(memory_format=torch.channels_last)
    unet.attention_backend = "sdpa" if way in ("original", "masked", "unmasked") else None
    cameras = Cameras.ring(views, elevation_deg=20.0, height=8 * grid, width=8 * grid)

    def condition(text=None):
        found = condition_on_cameras(unet, cameras, grid, grid, text=text)
        if way == "original":
            # As there: the mask of both branches of guidance, as numbers to be added.
            for tokens, mask in found.masks.items():
                bias = torch.zeros(mask.dense().shape).masked_fill_(~mask.dense(), -torch.inf)
                found.masks[tokens] = DenseMask(bias.repeat(2, 1, 1), views)
        return found

    return unet, cameras, condition


def step(way: str, views: int, grid: int) -> dict:
    """A guided step of a model of full size."""
    import torch

    unet, _, condition = full_size(way, views, grid)
    sample, text = torch.randn(2, views, 4, grid, grid), torch.randn(2, 77, 768)
    with torch.no_grad():
        started = time.perf_counter()
        conditions = condition(text)
        prepared = time.perf_counter() - started

        def call() -> torch.Tensor:
            return unet(sample, 500, text, condition() if way == "original" else conditions).sample

        call()
        seconds = timed(call, 3)
    return {"seconds": seconds, "prepare_s": prepared, "memory_gb": memory_gb(), "kept": math.nan}


def generate(way: str, views: int, grid: int) -> dict:
    """From a prompt to images in three steps, all parts of full size."""
    from diffusers import AutoencoderKL, DDIMScheduler

    from spad.model import SPADPipeline
    from spad.model.word_tokenizer import build_text_encoder, build_tokenizer

    unet, cameras, condition = full_size(way, views, grid)
    tokenizer = build_tokenizer(["a red mushroom"])
    pipeline = SPADPipeline(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        ).eval(),
        build_text_encoder(tokenizer, width=768),
        tokenizer,
        unet,
        DDIMScheduler(),
    )
    if way == "original":
        forward = unet.forward
        unet.forward = lambda sample, t, text, views: forward(sample, t, text, condition())
    seconds = timed(lambda: pipeline("a red mushroom", cameras, num_inference_steps=3), 1)
    return {"seconds": seconds, "prepare_s": math.nan, "memory_gb": memory_gb(), "kept": math.nan}


KINDS = {"kernel": kernel, "step": step, "generate": generate}


def measured(kind: str, way: str, views: int, grid: int) -> dict | str:
    """From a process of its own; or why not."""
    needed = DENSE_BYTES.get(way, 0) * (views * grid * grid) ** 2 / 1e9
    if needed > 0.85 * available_gb():
        return f"needs {needed:.0f} GB"
    words = [sys.executable, __file__, "one", kind, way, str(views), str(grid)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1:]}"
    return json.loads(done.stdout)


def exponent(views: list[int], seconds: list[float]) -> float:
    """Slope of the logarithms, by least squares."""
    x, y = ([math.log(v) for v in column] for column in (views, seconds))
    middle = sum(x) / len(x)
    spread = sum((v - middle) ** 2 for v in x)
    return sum((v - middle) * w for v, w in zip(x, y, strict=True)) / spread


def hardware() -> str:
    import torch

    names = Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []
    name = next((n.partition(":")[2].strip() for n in names if n.startswith("model name")), "")
    return (
        f"{name or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def plot(rows: dict[tuple[int, int, str], dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    grids = sorted({grid for grid, _, _ in rows})
    figure, axes = plt.subplots(2, len(grids), figsize=(5 * len(grids), 7), squeeze=False)
    for column, grid in enumerate(grids):
        for way in WAYS:
            found = [(v, row) for (g, v, w), row in rows.items() if (g, w) == (grid, way)]
            for axis, key in ((axes[0][column], "seconds"), (axes[1][column], "memory_gb")):
                axis.plot([v for v, _ in found], [r[key] for _, r in found], "o-", label=way)
        views = sorted({v for g, v, _ in rows if g == grid})
        for axis, title in ((axes[0][column], "seconds a call"), (axes[1][column], "GB")):
            axis.set(xscale="log", yscale="log", xlabel="views", title=f"{grid} x {grid}: {title}")
            axis.set_xticks(views, [str(v) for v in views], minor=False)
            axis.set_xticks([], minor=True)
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        kind, way, views, grid = sys.argv[2:]
        print(json.dumps(KINDS[kind](way, int(views), int(grid))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("output", type=Path)
    parser.add_argument("--views", type=int, nargs="+")
    parser.add_argument("--grids", type=int, nargs="+")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    is_kernel = options.kind == "kernel"
    all_views = options.views or ([2, 4, 8, 16] if is_kernel else [4])
    grids = options.grids or ([32, 64] if is_kernel else [32])
    options.output.mkdir(parents=True, exist_ok=True)
    print(hardware(), flush=True)
    rows: dict[tuple[int, int, str], dict] = {}
    print("| grid | views | way | seconds | of masked | memory, GB | kept | prepared in, s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for grid in grids:
        for views in all_views:
            runs: dict[str, list] = {way: [] for way in options.ways}
            for _ in range(options.rounds):
                for way in options.ways:
                    # One that failed fails again.
                    if not runs[way] or isinstance(runs[way][-1], dict):
                        runs[way].append(measured(options.kind, way, views, grid))
            for way, found in runs.items():
                done = [run for run in found if isinstance(run, dict)]
                if not done:
                    print(f"| {grid}² | {views} | {way} | {found[0]} | | | | |", flush=True)
                    continue
                row = {key: median(run[key] for run in done) for key in done[0] if key != "seconds"}
                row["seconds"] = median(s for run in done for s in run["seconds"])
                rows[grid, views, way] = row
                base = rows.get((grid, views, "masked"), {}).get("seconds", math.nan)
                print(
                    f"| {grid}² | {views} | {way} | {row['seconds']:.3g} | "
                    f"{row['seconds'] / base:.2f} | {row['memory_gb']:.2f} | {row['kept']:.3f} | "
                    f"{row['prepare_s']:.2g} |",
                    flush=True,
                )
    table = [{"grid": g, "views": v, "way": w, **row} for (g, v, w), row in rows.items()]
    (options.output / f"{options.kind}.json").write_text(json.dumps(table, indent=1) + "\n")
    if not is_kernel:
        return
    for grid in grids:
        for way in options.ways:
            points = [(v, rows[grid, v, way]["seconds"]) for v in all_views if v >= 4
                      and (grid, v, way) in rows]  # fmt: skip
            if len(points) > 1:
                slope = exponent(*map(list, zip(*points, strict=True)))
                reach = f"{points[0][0]} to {points[-1][0]} views"
                print(f"{grid}², {way}: time grows with views to the {slope:.2f}, {reach}")
    plot(rows, options.output / "attention.png")


if __name__ == "__main__":
    main()
