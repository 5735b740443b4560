"""The paper's ablation on open data: four small models that differ in two flags, judged alike.

    python benchmarks/ablation.py SHARDS OUTPUT [--steps 1500] [--at-once 1] [--full]

SHARDS have 128 x 128 pictures and mini's latents (`spad pack --latents mini`). Trains epipolar
attention on and off, times Plücker coordinates on and off, with the same data, order, noise, seed
and steps; judges each with `spad evaluate` on objects that none has seen, 24 of them or with --full
all of the protocol; compares all with the model that has neither. With --at-once, so many run
beside each other and share the cores. What is printed and logged by each lies in OUTPUT. Every
command goes on where it was stopped, so this one does. Needs `pip install 'spad[train,eval]'`.
"""

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# As the rows of the paper's tables: neither first, both last.
VARIANTS = {
    "neither": ("none", "off"),
    "epipolar": ("exact", "off"),
    "pluecker": ("none", "on"),
    "both": ("exact", "on"),
}


def spad(log: Path, threads: int, *words: object) -> None:
    command = [sys.executable, "-m", "spad", *map(str, words)]
    print(shlex.join(["spad", *command[3:]]), flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, stdout=file, stderr=file, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    output = options.output
    reports = {name: output / f"{name}-report" for name in VARIANTS}
    threads = max(1, (os.cpu_count() or 1) // options.at_once)

    def train_and_judge(name: str) -> None:
        epipolar, plucker = VARIANTS[name]
        log = output / f"{name}.log"
        spad(
            *(log, threads, "train", "--preset", "mini", "--data", options.shards),
            *("--output", output / name, "--epipolar", epipolar, "--plucker", plucker),
            *("--steps", options.steps, "--seed", options.seed),
            *("--num-views", 4, "--clean-view-share", 0.5, "--block-out-channels", 96, 128),
        )
        spad(
            *(log, threads, "evaluate", "--model", output / name / "model"),
            *("--data", options.shards, "--output", reports[name]),
            *([] if options.full else ["--quick"]),
        )

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(train_and_judge, VARIANTS))
    log = output / "comparison.log"
    compared = ["evaluate", "--compare", *reports.values(), "--output", output / "comparison"]
    spad(log, threads, *compared, "--overwrite")


if __name__ == "__main__":
    main()
