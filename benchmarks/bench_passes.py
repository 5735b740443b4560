"""Views in passes against all views at once: consistency, time and memory.

    python benchmarks/bench_passes.py [--views 24] [--views-per-pass 8] [--prompts "a red mushroom"]

Prints a Markdown table; --output also writes it to a file. Each set is generated in a process of
its own, with the same seed. Scores are those of `spad evaluate`.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

# ru_maxrss is in bytes on macOS.
KIB = 1 if sys.platform == "darwin" else 1024
SCORES = ("reconstruction_psnr", "reconstruction_ssim", "silhouette_iou", "photo_consistency")


def measure(model: str, prompt: str, views: int, views_per_pass: int | None) -> dict[str, Any]:
    """Scores, seconds and peak memory of one set of views."""
    from spad.evaluation.best_of import choose_best
    from spad.generation.passes import generate_in_passes, plan_passes
    from spad.hub.registry import load_model

    pipeline = load_model(model)
    cameras = pipeline.own_cameras(views)
    start = time.perf_counter()
    images = generate_in_passes(pipeline, cameras, views_per_pass, prompt=prompt)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / 1e9
    _, (scores,) = choose_best(prompt, cameras, [images])
    passes = len(plan_passes(cameras, views_per_pass))
    return {"passes": passes, "seconds": seconds, "memory": memory, **scores}


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    names = ["passes", "seconds", "peak memory, GB", *SCORES]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, sets in found.items():
        means = {key: mean(one[key] for one in sets) for key in sets[0]}
        cells = [f"{means['passes']:.0f}", f"{means['seconds']:.0f}", f"{means['memory']:.2f}"]
        cells += [f"{means[score]:.3f}" for score in SCORES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--views", type=int, default=24)
    parser.add_argument("--views-per-pass", type=int, default=8)
    parser.add_argument("--prompts", nargs="+", default=["a red mushroom", "a yellow taxi"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    variants = {
        f"{options.views} views at once": None,
        f"{options.views_per_pass} at a time": options.views_per_pass,
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, views_per_pass in variants.items():
        for prompt in options.prompts:
            request = (options.model, prompt, options.views, views_per_pass)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.setdefault(name, []).append(pool.apply(measure, request))
    text = f"{table(found)}\n\n{options.model}; {', '.join(options.prompts)}\n"
    print(text, end="")
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
