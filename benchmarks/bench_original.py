"""The original release's code and ours, side by side on this machine's processor, in one run.

    python benchmarks/bench_original.py CLONE [--views 4 8] [--rounds 2] [--output FILE]
        [--model FOLDER] [--prompts 4] [--ours="--steps 20 …"]

CLONE is a checkout of the release with what its code imports installed (for its masks also
pytorch3d); it is not changed. Every number comes from a process of its own; the two sides take
turns, `--rounds` times. CUDA is hidden from both. Needs 4 GB in $TMPDIR and 9 GB of memory.

- Step: a guided step of the UNet in the release's configuration, with the release's masks and one
  set of random weights, which ours converts. In fp32, and in bf16 where the processor has
  instructions for it (the release by torch's autocast). "Difference" is that of the outputs, root
  mean square, relative to the release's in fp32.
- Masks: epipolar masks and Plücker coordinates. "Difference" is the share of mask entries.
- Whole, with --model: prompts of the evaluation protocol to four views each, loading included: the
  release's script with its checkpoint in CLONE/data/checkpoints and 100 DDIM steps, against `spad
  generate` with FOLDER, that checkpoint converted (`spad convert`), and the flags of --ours. The
  views of both are scored; times are of the same work only where the scores are not worse.

What cannot run is named with its reason.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
import yaml
from bench_start import processor, publish
from original_release import timed
from PIL import Image

from spad.cameras import Cameras
from spad.data.renders import list_sets
from spad.data.view_sets import ViewSet
from spad.evaluation.metrics import METRICS
from spad.evaluation.protocol import load_gallery, load_protocol
from spad.evaluation.report import show_number
from spad.evaluation.retrieval import score_retrieval
from spad.evaluation.statistics import estimate_mean, paired_difference
from spad.geometry import plucker_map
from spad.geometry.released_masks import released_mask
from spad.hub.convert import original_unet
from spad.hub.original_layout import UNET, fill
from spad.images.alpha import WHITE_TOLERANCE
from spad.images.pixels import to_floats
from spad.model import MultiViewUNet
from spad.model.conditioning import camera_vectors, condition_on_cameras
from spad.model.precision import has_fast_bfloat16

TIMESTEP, TEXT_LENGTH, WHOLE_VIEWS, RELEASE_STEPS = 500, 77, 4, 100
PREFIX = "[tdv] "


def release_params(config: Path) -> dict:
    """`model.params` of the release's configuration."""
    return yaml.safe_load(config.read_text())["model"]["params"]


def cameras_of(params: dict, views: int) -> Cameras:
    size = 8 * params["unet_config"]["params"]["image_size"]
    return Cameras.ring(views, elevation_deg=45.0, height=size, width=size)


def write_inputs(path: Path, params: dict, views: int) -> None:
    """What both sides' steps read."""
    unet = params["unet_config"]["params"]
    grid, cameras = unet["image_size"], cameras_of(params, views)
    torch.manual_seed(1)
    inputs = {
        "latents": torch.randn(1, views, unet["in_channels"], grid, grid),
        "text": torch.randn(2, TEXT_LENGTH, unet["context_dim"]),
        "camera": camera_vectors(cameras, views, relative=False, with_intrinsics=True)[0],
        "plucker": plucker_map(cameras, grid, grid),
        "mask": released_mask(cameras, grid),
    }
    torch.save(inputs, path)


def our_unet(weights: Path, params: dict) -> MultiViewUNet:
    """Ours with the weights that the release's half has written."""
    state = torch.load(weights, mmap=True)
    config, own = original_unet({k: v for k, v in state.items() if k.startswith(UNET)}, params)
    for index, layer in ((0, "linear_1"), (2, "linear_2")):
        for kind in ("weight", "bias"):
            name = f"camera_embedding.{layer}.{kind}"
            own[name] = state[f"cc_projection.{index}.{kind}"]
    width = own["camera_embedding.linear_1.bias"].shape[0]
    with torch.device("meta"):
        unet = MultiViewUNet(
            **config, camera_vector="absolute", camera_intrinsics=True, camera_embedding_dim=width
        )
    fill(unet, own, "the UNet")
    return unet


def our_step(request: dict) -> dict:
    params, inputs = release_params(Path(request["config"])), torch.load(request["inputs"])
    dtype = getattr(torch, request["dtype"])
    unet = our_unet(Path(request["weights"]), params).to(dtype)
    unet.to(memory_format=torch.channels_last)
    latents, text = inputs["latents"].to(dtype), inputs["text"].to(dtype)
    views, _, grid, _ = latents[0].shape
    with torch.no_grad():
        conditions = condition_on_cameras(unet, cameras_of(params, views), grid, grid, text=text)

        def call() -> torch.Tensor:
            return unet(torch.cat([latents] * 2), TIMESTEP, text, conditions).sample

        torch.save(call().float(), request["result"])
        return timed(call, request["repeats"])


def our_masks(request: dict) -> dict:
    params = release_params(Path(request["config"]))
    grid = params["unet_config"]["params"]["image_size"]
    cameras = cameras_of(params, request["views"])

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        return released_mask(cameras, grid), plucker_map(cameras, grid, grid)

    mask, plucker = call()
    torch.save({"epi_constraint_masks": mask, "plucker_embeds": plucker}, request["result"])
    return timed(call, request["repeats"])


OURS = {"step": our_step, "masks": our_masks}


def environment() -> dict[str, str]:
    return os.environ | {"CUDA_VISIBLE_DEVICES": ""}


def measured(side: str, kind: str, request: dict) -> dict | str:
    """The answer of a process of its own, or why there is none."""
    path = Path(request["scratch"]) / "request.json"
    answer = path.with_name("answer.json")
    answer.unlink(missing_ok=True)
    path.write_text(json.dumps({**request, "answer": str(answer)}))
    here = Path(__file__).parent
    words = [here / "original_release.py", request["clone"], kind, path]
    if side == "ours":
        words = [here / "bench_original.py", "one", kind, path]
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment()
    )
    if done.returncode:
        last = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return f"not measured: {last[-1]}"
    return json.loads(answer.read_text())


def relative_difference(one: torch.Tensor, reference: torch.Tensor) -> float:
    return float((one - reference).norm() / reference.norm())


def mask_difference(one: dict, reference: dict) -> float:
    masks = one["epi_constraint_masks"], reference["epi_constraint_masks"]
    return float((masks[0] != masks[1].bool()).float().mean())


def compare(kind: str, request: dict, sides: Sequence[tuple[str, str]], rounds: int) -> list[str]:
    """Rows of the table: median seconds, memory, ratio and difference of each (side, dtype)."""
    found: dict[tuple[str, str], list] = {side: [] for side in sides}
    results = {}
    for _ in range(rounds):
        for side, dtype in sides:
            # One that failed fails again.
            if found[side, dtype] and isinstance(found[side, dtype][-1], str):
                continue
            result = str(Path(request["scratch"]) / f"{kind}-{side}-{dtype}.pt")
            asked = request | {"dtype": dtype, "result": result}
            found[side, dtype].append(measured(side, kind, asked))
            results[side, dtype] = result
    base, rows = sides[0], []
    times = {
        side: median(s for run in runs for s in run["seconds"])
        for side, runs in found.items()
        if not any(isinstance(run, str) for run in runs)
    }
    for side, runs in found.items():
        name = f"{kind}, {request['views']} views | {side[0]}, {side[1]}"
        if side not in times:
            rows.append(f"| {name} | {runs[-1]} | | | |")
            continue
        faster = f"{times[base] / times[side]:.2f}" if base in times else "–"
        difference = "–"
        if base in times and side != base:
            one, reference = (torch.load(results[key]) for key in (side, base))
            measure = relative_difference if kind == "step" else mask_difference
            difference = f"{measure(one, reference):.1e}"
        memory = max(run["memory_gb"] for run in runs)
        rows.append(f"| {name} | {times[side]:.3g} | {faster} | {memory:.2f} | {difference} |")
    return rows


def watched(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds of a process, and the most memory that it and its children held, in GB.

    Raises: RuntimeError: it failed; the message ends with its last line.
    """
    started, peak = time.perf_counter(), 0.0
    with open(folder / "log.txt", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), cwd=folder)
        own = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [own, *own.children(recursive=True)]
                peak = max(peak, sum(one.memory_info().rss for one in family) / 1e9)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        if process.wait():
            log.seek(0)
            raise RuntimeError((log.read().strip().splitlines() or ["no output"])[-1])
    return time.perf_counter() - started, peak


def release_sets(prompts: list[str], folder: Path) -> list[np.ndarray]:
    """What the release's script wrote in `folder`: views (v, h, w, 3) of each prompt.

    Raises: RuntimeError: it wrote another number of images.
    """
    images = sorted(
        folder.glob("data/visuals/inference/*/*.png"), key=lambda p: p.stat().st_mtime_ns
    )
    if len(images) != len(prompts):
        raise RuntimeError(f"expected {len(prompts)} images of the release, got {len(images)}")
    strips = [np.asarray(Image.open(path).convert("RGB")) for path in images]
    return [np.stack(np.split(strip, WHOLE_VIEWS, axis=1)) for strip in strips]


def set_of(prompt: str, pixels: np.ndarray) -> ViewSet:
    """Generated views (v, h, w, 3) as a set, in which all that is not white is object."""
    images = to_floats(pixels)
    alpha = ((1 - images).amax(1) > WHITE_TOLERANCE).float()
    height, width = alpha.shape[1:]
    cameras = Cameras.ring(len(images), elevation_deg=45.0, height=height, width=width)
    return ViewSet(prompt, prompt, images, alpha, cameras, alpha_is_estimated=True)


def scores(sets: Sequence[ViewSet]) -> dict[str, list[float]]:
    """By metric, of every set. Prompts are of the protocol."""
    gallery = load_gallery()
    table = {m.name: [m.function(one) for one in sets] for m in METRICS}
    table["retrieval_rank"] = [score_retrieval(gallery, one)["retrieval_rank"] for one in sets]
    return table


def whole(clone: Path, config: Path, model: Path, count: int, flags: str, scratch: Path) -> str:
    """Both ways from prompts to views: seconds a prompt, memory, and scores of the views.

    Raises: RuntimeError: one of them failed.
    """
    prompts = list(dict.fromkeys(load_protocol().captions.values()))[:count]
    folder = scratch / "release"
    (folder / "data").mkdir(parents=True)
    (folder / "configs").symlink_to(clone / "configs")
    (folder / "data/checkpoints").symlink_to(clone / "data/checkpoints")
    np.save(folder / "data/captions_eval.npy", np.array([PREFIX + p for p in prompts], object))
    request = {
        "clone": str(clone),
        "folder": str(folder),
        "name": config.stem,
        "views": WHOLE_VIEWS,
        "steps": RELEASE_STEPS,
        "answer": str(scratch / "answer.json"),
    }
    (scratch / "request.json").write_text(json.dumps(request))
    half = Path(__file__).with_name("original_release.py").resolve()
    words = [sys.executable, half, clone, "whole", scratch / "request.json"]
    times = {"original": watched([*map(str, words)], folder)}
    lines = scratch / "prompts.txt"
    lines.write_text("\n".join(prompts) + "\n")
    generate = ["generate", "--prompts", lines, "--model", model.resolve(), "--views", WHOLE_VIEWS]
    generate += ["--elevation", 45, "--output", scratch / "ours", *shlex.split(flags)]
    words = [sys.executable, "-m", "spad", *map(str, generate)]
    times[f"ours {flags}".strip()] = watched(words, scratch)
    rows = [
        "| text → 4 views | seconds a prompt | times as fast | peak memory, GB |",
        "|---|---|---|---|",
    ]
    base = times["original"][0]
    for name, (seconds, memory) in times.items():
        rows.append(f"| {name} | {seconds / count:.1f} | {base / seconds:.1f} | {memory:.2f} |")
    own = {views.prompt: views.images() for views in list_sets(scratch / "ours")}
    both = release_sets(prompts, folder), [own[prompt] for prompt in prompts]
    first, other = (scores(list(map(set_of, prompts, sets))) for sets in both)
    directions = {m.name: m.higher_is_better for m in METRICS} | {"retrieval_rank": False}
    rows += ["", "| score | original | ours | ours is |", "|---|---|---|---|"]
    for name, is_higher in directions.items():
        means = [estimate_mean(table[name]).mean for table in (first, other)]
        verdict = paired_difference(first[name], other[name], is_higher).verdict
        cells = " | ".join(map(show_number, means))
        rows.append(f"| {name} {'↑' if is_higher else '↓'} | {cells} | {verdict} |")
    return "\n".join(rows)


def commit_of(clone: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip() or "not a git checkout"


def report(options: argparse.Namespace, scratch: Path) -> str:
    """The report, in Markdown."""
    clone, config = options.clone.resolve(), (options.clone / options.config).resolve()
    params = release_params(config)
    dtypes = ["float32"] + ["bfloat16"] * has_fast_bfloat16(torch.device("cpu"))
    rows = [
        "| work | side | seconds | times as fast | memory, GB | difference |",
        "|---|---|---|---|---|---|",
    ]
    for views in options.views:
        inputs = scratch / f"inputs-{views}.pt"
        write_inputs(inputs, params, views)
        request = {
            "clone": str(clone),
            "config": str(config),
            "scratch": str(scratch),
            "inputs": str(inputs),
            "weights": str(scratch / "weights.pt"),
            "timestep": TIMESTEP,
            "views": views,
            "repeats": options.repeats,
        }
        sides = [(side, dtype) for dtype in dtypes for side in ("original", "ours")]
        rows += compare("step", request, sides, options.rounds)
        sides = [("original", "float32"), ("ours", "float32")]
        rows += compare("masks", request, sides, options.rounds)
    parts = ["\n".join(rows)]
    if options.model is None:
        parts.append("Text → 4 views: not measured; it needs trained weights, given by --model.")
    else:
        try:
            parts.append(
                whole(clone, config, options.model, options.prompts, options.ours, scratch)
            )
        except RuntimeError as error:
            parts.append(f"Text → 4 views: not measured: {error}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
    parts.append(
        f"- hardware: {processor()}, {torch.get_num_threads()} threads, {platform.system()}\n"
        f"- versions: Python {platform.python_version()}, {versions}; release {commit_of(clone)}, "
        f"{options.config}\n"
        f"- made by `python {shlex.join(sys.argv)}` on {date.today()}"
    )
    return "\n\n".join(parts)


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        kind, request = sys.argv[2], json.loads(Path(sys.argv[3]).read_text())
        Path(request["answer"]).write_text(json.dumps(OURS[kind](request)))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clone", type=Path)
    parser.add_argument("--config", default="configs/spad_four_views.yaml", help="in the clone")
    parser.add_argument("--views", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--repeats", type=int, default=3, help="calls in a process")
    parser.add_argument("--model", type=Path, help="folder converted from the clone's checkpoint")
    parser.add_argument("--prompts", type=int, default=4, help="for the whole way")
    parser.add_argument("--ours", default="", help="more flags of spad generate, as one argument")
    parser.add_argument("--output", type=Path, help="Markdown file to write as well")
    options = parser.parse_args()
    if not (options.clone / options.config).is_file():
        parser.error(
            f"expected a clone of the release, got {options.clone} without {options.config}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        publish(report(options, Path(scratch)), options.output)


if __name__ == "__main__":
    main()
