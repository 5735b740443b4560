"""The paper's ablation on open data: four small models that differ in two flags, judged alike.

    python benchmarks/ablation.py SHARDS OUTPUT [--steps 1500] [--full]

SHARDS have 128 x 128 pictures and mini's latents (`spad pack --latents mini`). Trains epipolar
attention on and off, times Plücker coordinates on and off, with the same data, order, noise, seed
and steps; judges each with `spad evaluate` on objects that none has seen, 24 of them or with --full
all of the protocol; compares all with the model that has neither. Every command goes on where it
was stopped, so this one does. Needs `pip install 'spad[train,eval]'`.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

# As the rows of the paper's tables: neither first, both last.
VARIANTS = {
    "neither": ("none", "off"),
    "epipolar": ("exact", "off"),
    "pluecker": ("none", "on"),
    "both": ("exact", "on"),
}


def spad(*words: object) -> None:
    command = [sys.executable, "-m", "spad", *map(str, words)]
    print(shlex.join(["spad", *command[3:]]), flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    for name, (epipolar, plucker) in VARIANTS.items():
        spad(
            *("train", "--preset", "mini", "--data", options.shards),
            *("--output", options.output / name),
            *("--epipolar", epipolar, "--plucker", plucker),
            *("--steps", options.steps, "--seed", options.seed),
            *("--num-views", 4, "--clean-view-share", 0.5, "--block-out-channels", 96, 128),
        )
    reports = []
    for name in VARIANTS:
        reports.append(options.output / f"{name}-report")
        quick = [] if options.full else ["--quick"]
        spad(
            *("evaluate", "--model", options.output / name / "model"),
            *("--data", options.shards, "--output", reports[-1], *quick),
        )
    spad(
        "evaluate", "--compare", *reports, "--output", options.output / "comparison", "--overwrite"
    )


if __name__ == "__main__":
    main()
