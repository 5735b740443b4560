"""Times epipolar masks of 2, 4 and 8 views at 32 x 32: exact, original, and its parts.

    python benchmarks/bench_masks.py

Medians of 15 runs, all kinds in turn. A mask of 8 views takes 64 MB; "memory" is the time the
machine needs to hand out and fill that much fresh memory, which is part of both.
"""

import platform
import statistics
import time

import torch

from spad.cameras import Cameras
from spad.geometry import epipolar_mask
from spad.geometry.released_masks import flat_resize, released_mask

RUNS = 15


def all_levels(cameras: Cameras) -> list[torch.Tensor]:
    """The release's masks for layers of 32, 16 and 8 tokens along a side."""
    finest = released_mask(cameras)
    return [finest, *(flat_resize(finest, len(cameras), side**2).clone() for side in (16, 8))]


def milliseconds(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return 1e3 * (time.perf_counter() - started)


def fill(tokens: int) -> None:
    torch.empty(tokens, tokens, dtype=torch.bool).fill_(True)


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads, medians of {RUNS} runs, ms")
    print(f"{'views':>5} {'exact':>8} {'original':>9} {'memory':>8}")
    for num_views in (2, 4, 8):
        cameras = Cameras.ring(num_views, elevation_deg=45.0)
        tokens = num_views * 32**2
        times = [
            (
                milliseconds(epipolar_mask, cameras, 32, 32),
                milliseconds(all_levels, cameras),
                milliseconds(fill, tokens),
            )
            for _ in range(RUNS)
        ]
        exact, original, memory = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{num_views:5} {exact:8.0f} {original:9.0f} {memory:8.0f}")


if __name__ == "__main__":
    main()
