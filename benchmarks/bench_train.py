"""Training: objects a second of `mini`, and ten steps of a full-size model, on this machine.

    python benchmarks/bench_train.py mini SHARDS
    python benchmarks/bench_train.py full SHARDS --clip FOLDER [FLAGS OF SPAD TRAIN]

`mini` times `spad train --preset mini` in fp32, in bf16 and in other ways, in turns, `--rounds`
times. SHARDS hold 128 x 128 images and mini's latents.

`full` makes a Stable Diffusion 1.5 of random numbers, widens it, and trains it for ten steps of
`--preset two-views` on SHARDS of 256 x 256. FOLDER has CLIP's tokenizer files. Needs 25 GB of disk.
"""

import argparse
import csv
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from spad.data.workers import num_cores

SPAD = [sys.executable, "-m", "spad"]
MINI = {
    "fp32": [],
    "fp32, one worker reads ahead": ["--num-workers", "1"],
    "fp32, activations computed twice": ["--gradient-checkpointing"],
    "bf16": ["--mixed-precision", "bf16"],
}
# Processors without bf16 take half a minute for a step.
MOST_STEPS = {"bf16": 4}
WARMING_UP = 2


def train(arguments: list[str], output: Path) -> tuple[list[dict[str, float]], float]:
    """The rows of loss.csv, and the most memory in GB."""
    command = [*SPAD, "train", *arguments, "--output", str(output), "--log-every", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (output / "loss.csv").open() as file:
        rows = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)]
    return rows, max(row["memory_gb"] for row in rows)


def bench_mini(shards: Path, rounds: int, steps: int) -> None:
    common = ["--preset", "mini", "--data", str(shards), "--views", "4", "--sample-every", "0"]
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in MINI}
    for _ in range(rounds):
        for name, flags in MINI.items():
            with tempfile.TemporaryDirectory() as scratch:
                count = str(min(steps, MOST_STEPS.get(name, steps)))
                arguments = [*common, "--steps", count, "--trackers", *flags]
                rows, memory = train(arguments, Path(scratch) / "run")
            later = rows[WARMING_UP:]
            speed = median(row["objects_per_s"] for row in later)
            found[name].append((speed, median(row["data_wait"] for row in later), memory))
    print("| `mini`, 8 objects of 4 views a step | objects/s | of fp32 | waits for data | memory |")
    print("|---|---|---|---|---|")
    base = median(speed for speed, _, _ in found["fp32"])
    for name, runs in found.items():
        speed, waits, memory = (median(column) for column in zip(*runs, strict=True))
        print(f"| {name} | {speed:.2f} | {speed / base:.2f} | {waits:.1%} | {memory:.1f} GB |")


def random_stable_diffusion(folder: Path, clip: Path) -> None:
    """Its shapes, random numbers, in diffusers' layout."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
    ).save_pretrained(folder / "text_encoder")
    CLIPTokenizer.from_pretrained(clip, local_files_only=True).save_pretrained(folder / "tokenizer")


def bench_full(shards: Path, clip: Path, flags: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        plain, base, run = (Path(scratch) / name for name in ("sd15", "spad-sd15", "run"))
        subprocess.run(
            [
                sys.executable,
                __file__,
                "make",
                str(shards),
                "--clip",
                str(clip),
                "--at",
                str(plain),
            ],
            check=True,
        )
        subprocess.run(
            [*SPAD, "init-from-base", str(plain), str(base), "--cameras", "relative"]
            + ["--no-intrinsics"],
            check=True,
        )
        arguments = ["--preset", "two-views", "--init", str(base), "--data", str(shards)]
        arguments += ["--steps", "10", "--sample-every", "0", "--keep-last", "1", "--trackers"]
        arguments += ["--num-workers", "0", *flags]
        started = time.perf_counter()
        rows, memory = train(arguments, run)
        seconds = time.perf_counter() - started
        steps = [1 / row["objects_per_s"] for row in rows]
        size = max(p.stat().st_size for p in (run / "checkpoints").glob("*.pt"))
    print(f"spad train {' '.join(arguments[:2] + arguments[6:])}")
    losses = ", ".join("{loss:.3f}".format(**row) for row in rows)
    print(f"losses       {losses}")
    print(f"a step       {median(steps):.1f} s for each object in it, median of {len(steps)}")
    print(f"memory       {memory:.1f} GB at most")
    print(f"checkpoint   {size / 1e9:.1f} GB")
    print(f"all of it    {seconds:.0f} s, loading, checkpoint and model included")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("mini", "full", "make"))
    parser.add_argument("shards", type=Path)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    options, flags = parser.parse_known_args()
    if options.what == "make":
        random_stable_diffusion(options.at, options.clip)
        return
    import torch

    print(
        f"{platform.machine()}, {num_cores()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}\n",
        flush=True,
    )
    if options.what == "mini":
        bench_mini(options.shards, options.rounds, options.steps)
    else:
        bench_full(options.shards, options.clip, flags)


if __name__ == "__main__":
    main()
