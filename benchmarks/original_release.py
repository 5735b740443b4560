"""The original release's half of `bench_original.py`: runs its code and imports nothing of ours.

    python benchmarks/original_release.py CLONE step|masks|whole REQUEST

`bench_original.py` writes REQUEST, a JSON file, and reads the answer from the file that it names.
The release runs unchanged, but for what a processor without CUDA needs: torch's attention with the
same additive mask stands in for xformers, and its sampler's tables stay where they are.
"""

import json
import math
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import torch
import yaml

# Calls that take longer than this are not repeated in a process.
LONG = 60.0


def timed(call: Callable[[], object], repeats: int) -> dict[str, object]:
    """Seconds of each call after one that warms up, and the most memory held meanwhile, in GB."""
    peak, is_done = [0.0], threading.Event()
    process = psutil.Process()

    def watch() -> None:
        while not is_done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss / 1e9)

    call()
    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds: list[float] = []
    try:
        while len(seconds) < repeats and (not seconds or seconds[-1] < LONG):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    finally:
        is_done.set()
        watcher.join()
    return {"seconds": seconds, "memory_gb": max(peak[0], process.memory_info().rss / 1e9)}


def open_release(clone: Path) -> None:
    """Make the clone's packages the ones that are imported."""
    # Its package has our package's name and no __init__.py, so an installed spad would win.
    package = ModuleType("spad")
    package.__path__ = [str(clone / "spad")]
    sys.modules["spad"] = package
    sys.path.insert(0, str(clone))
    xformers, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    ops.memory_efficient_attention = attention  # type: ignore[attr-defined]
    xformers.ops = ops  # type: ignore[attr-defined]
    sys.modules |= {"xformers": xformers, "xformers.ops": ops}


def attention(query, key, value, attn_bias=None, op=None):
    """xformers' attention of (b * heads, tokens, channels), by torch's fused one.

    That wants four dimensions: of three, torch would write down all logits, which takes three times
    as long.
    """
    if attn_bias is not None:
        attn_bias = attn_bias[None]
    attended = torch.nn.functional.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=attn_bias
    )
    return attended[0]


def step(request: dict) -> dict:
    """A guided step of its UNet with random weights; writes the weights and what comes out."""
    from spad.mv_unet import SPADUnetModel  # type: ignore[import-not-found]

    config = yaml.safe_load(Path(request["config"]).read_text())
    params = config["model"]["params"]["unet_config"]["params"]
    torch.manual_seed(0)
    unet = SPADUnetModel(**params).eval()
    width = 4 * params["model_channels"]
    projection = torch.nn.Sequential(
        torch.nn.Linear(8, width), torch.nn.SiLU(), torch.nn.Linear(width, width)
    )
    with torch.no_grad():
        for weight in unet.parameters():
            # Layers that start as zero would hide all before them.
            if not weight.any():
                weight.normal_(0, 0.02)
    weights = Path(request["weights"])
    if not weights.exists():
        state = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
        state |= {f"cc_projection.{k}": v for k, v in projection.state_dict().items()}
        torch.save(state, weights)
        del state
    inputs = torch.load(request["inputs"])
    latents, text = inputs["latents"], inputs["text"]
    views = latents.shape[1]
    with torch.no_grad():
        context = [
            text[:, None].expand(-1, views, -1, -1),
            projection(inputs["camera"])[None].expand(2, -1, -1),
            inputs["mask"][None].expand(2, -1, -1),
        ]
        timesteps = torch.full((2, views), request["timestep"])
        half = torch.autocast("cpu", torch.bfloat16, enabled=request["dtype"] == "bfloat16")

        def call() -> torch.Tensor:
            sample = torch.cat([latents, inputs["plucker"][None]], dim=2)
            return unet(torch.cat([sample] * 2), timesteps=timesteps, context=context)

        with half:
            torch.save(call().float(), request["result"])
            return timed(call, request["repeats"])


def masks(request: dict) -> dict:
    """Its masks and Plücker coordinates of cameras evenly round, polar angle 45 degrees."""
    from spad.geometry import get_batch_from_spherical  # type: ignore[import-not-found]

    views = request["views"]
    polar, azimuth = [math.pi / 4] * views, [2 * math.pi * i / views for i in range(views)]

    def call() -> dict[str, torch.Tensor]:
        return get_batch_from_spherical(polar, azimuth)

    made = call()
    torch.save({k: made[k] for k in ("epi_constraint_masks", "plucker_embeds")}, request["result"])
    return timed(call, request["repeats"])


def whole(request: dict) -> dict:
    """Its script from prompts to images, as its users run it; the process is timed by the caller.

    Runs in a folder of its own, so that the clone stays as it is.
    """
    from ldm.models.diffusion import ddim  # type: ignore[import-not-found]

    # As it is, it moves every table to CUDA.
    ddim.DDIMSampler.register_buffer = lambda self, name, value: setattr(self, name, value)
    # The checkpoint has more in it than tensors.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    os.chdir(request["folder"])
    flags = ["--model", request["name"], "--total_views", request["views"]]
    flags += ["--ddim_steps", request["steps"]]
    script = str(Path(request["clone"]) / "scripts/inference.py")
    sys.argv = [script, *map(str, flags)]
    runpy.run_path(script, run_name="__main__")
    return {}


def main() -> None:
    kind, request = sys.argv[2], json.loads(Path(sys.argv[3]).read_text())
    open_release(Path(sys.argv[1]).resolve())
    answer = {"step": step, "masks": masks, "whole": whole}[kind](request)
    Path(request["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
