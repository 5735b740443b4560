"""What a GPU makes of spad: attention, steps, training and images, as one Markdown report.

    make bench-gpu
    python benchmarks/bench_gpu.py [--output FILE] [--parts attention step train images]

Needs no model and no data: networks have Stable Diffusion 1.5's size and random weights. Takes
about a quarter of an hour and 40 GB of GPU memory at most; what does not fit is named in its row.

- attention: one call by number of views, `flex` and `sdpa` with epipolar masks, and without a mask
  (8 heads of 40 channels, bf16), forward, and forward and backward
- step: a guided denoising step of 4 views at 256 x 256, bf16: eager, compiled, and as CUDA graphs
- train: a training step of 8 objects of 2 views, bf16 with float32 weights, AdamW
- images: a prompt to 4 views at 256 x 256 and 16 views at 512 x 512 in 25 guided steps

The share of the peak is that of the fastest matrix product measured here; a training step counts as
three forward passes. --tiny makes everything small, to try the script on a CPU.
"""

import argparse
import datetime
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch.utils.flop_counter import FlopCounterMode

from spad.attention import EpipolarMask, multiview_attention, prepare
from spad.cameras import Cameras
from spad.files import slug, write_text
from spad.geometry.rays import scale_intrinsics
from spad.model import MultiViewUNet, SPADPipeline
from spad.model.conditioning import condition_on_cameras
from spad.model.word_tokenizer import build_text_encoder, build_tokenizer

PROMPT = "a red mushroom"
HEADS, CHANNELS, BAND = 8, 40, 3.0
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        attention: (views, tokens along a side) of a call.
        step: the same of a denoising step.
        train: objects and views of a training step.
        images: (views, side of the images in pixels).
        matmul: side of the matrices whose product is the peak.
        unet, vae: configurations beside the defaults of diffusers.
    """

    attention: tuple[tuple[int, int], ...]
    step: tuple[int, int]
    train: tuple[int, int]
    images: tuple[tuple[int, int], ...]
    inference_steps: int
    repeats: int
    matmul: int
    text_width: int
    unet: dict[str, Any]
    vae: dict[str, Any]


FULL = Sizes(
    attention=((4, 32), (8, 32), (16, 32), (32, 32), (4, 64), (8, 64), (16, 64)),
    step=(4, 32),
    train=(8, 2),
    images=((4, 256), (16, 512)),
    inference_steps=25,
    repeats=10,
    matmul=8192,
    text_width=768,
    unet={"attention_head_dim": 8},
    vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
)
TINY = Sizes(
    attention=((2, 4),),
    step=(2, 8),
    train=(1, 2),
    images=((2, 64),),
    inference_steps=1,
    repeats=1,
    matmul=64,
    text_width=64,
    unet={
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 16,
    },
    vae={"block_out_channels": (32,) * 4, "layers_per_block": 1},
)


@dataclass(frozen=True)
class Machine:
    """The device, and how calls are timed on it."""

    device: torch.device
    repeats: int

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.is_gpu else torch.float32

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.is_gpu else platform.machine()

    def measure(self, call: Callable[[], object], warm_up: int = 2) -> tuple[float, float] | str:
        """Median seconds, and most GB that torch held on the GPU; or why there is no result."""
        try:
            for _ in range(warm_up if self.is_gpu else 0):
                call()
            self._finish()
            if self.is_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = []
            for _ in range(self.repeats):
                start = time.perf_counter()
                call()
                self._finish()
                seconds.append(time.perf_counter() - start)
        # Also what fails to compile, and what does not fit.
        except RuntimeError as error:
            return str(error).strip().splitlines()[0][:80] or type(error).__name__
        finally:
            if self.is_gpu:
                torch.cuda.empty_cache()
        memory = torch.cuda.max_memory_allocated() / 1e9 if self.is_gpu else math.nan
        return statistics.median(seconds), memory

    def _finish(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    titles = list(titles)
    yield "| " + " | ".join(titles) + " |"
    yield "|---" * len(titles) + "|"
    for row in rows:
        line = "| " + " | ".join(row) + " |"
        print(line, file=sys.stderr, flush=True)
        yield line


def cells(found: tuple[float, float] | str) -> list[str]:
    """Milliseconds and memory."""
    if isinstance(found, str):
        return [found, ""]
    seconds, memory = found
    return [f"{1e3 * seconds:.3g}", "" if math.isnan(memory) else f"{memory:.2f}"]


def compilations(machine: Machine) -> dict[str, dict[str, Any] | None]:
    """Ways to run a UNet: arguments of its `compile`; None is eager."""
    ways: dict[str, dict[str, Any] | None] = {"eager": None}
    if machine.is_gpu:
        ways |= {"torch.compile": {}, "CUDA graphs": {"mode": "reduce-overhead"}}
    return ways


def attention(machine: Machine, sizes: Sizes) -> Iterator[str]:
    yield "## Attention between views, one call"
    yield ""

    def rows() -> Iterator[list[str]]:
        backends = ["sdpa"]
        if machine.is_gpu and find_spec("triton"):
            backends.insert(0, "flex")
        for views, side in sizes.attention:
            for backend in backends:
                shown = [f"{side}²", str(views), backend]
                yield [*shown, *attention_cells(machine, views, side, backend)]
            yield [f"{side}²", str(views), "no mask", *attention_cells(machine, views, side)]

    titles = ("tokens", "views", "way", "ms, mask", "ms, forward", "GB")
    yield from table((*titles, "ms, with backward", "GB"), rows())


def attention_cells(
    machine: Machine, views: int, side: int, backend: str | None = None
) -> list[str]:
    """Of one way to compute attention: its mask, forward, and forward and backward."""
    shape = (views, HEADS, side * side, CHANNELS)
    kind = {"device": machine.device, "dtype": machine.dtype, "requires_grad": True}
    tensors = [torch.randn(shape, **kind) for _ in range(3)]
    mask, prepared = None, [""]
    if backend is not None:
        cameras = Cameras.ring(views, elevation_deg=20.0)
        size = (cameras.height, cameras.width)
        pixels = scale_intrinsics(cameras.intrinsics, size, (side, side)).to(machine.device)
        poses = cameras.world_from_cam.to(machine.device)
        mask = EpipolarMask(poses[None], pixels[None], side, side, BAND)
        once = replace(machine, repeats=1)
        prepared = cells(once.measure(lambda: prepare(mask, backend), warm_up=0))[:1]

    def forward() -> torch.Tensor:
        return multiview_attention(*tensors, views, mask, backend)

    with torch.no_grad():
        found = machine.measure(forward)
    trained = machine.measure(lambda: torch.autograd.grad(forward().sum(), tensors))
    return [*prepared, *cells(found), *cells(trained)]


def unet_of(sizes: Sizes, side: int) -> MultiViewUNet:
    torch.manual_seed(0)
    return MultiViewUNet(
        sample_size=side, cross_attention_dim=sizes.text_width, band_width=BAND, **sizes.unet
    )


def peak(machine: Machine, side: int) -> float:
    """FLOP a second of a matrix product."""
    a, b = torch.randn(2, side, side, device=machine.device, dtype=machine.dtype)
    found = machine.measure(lambda: a @ b)
    assert not isinstance(found, str), found
    return 2 * side**3 / found[0]


def flop(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def step(machine: Machine, sizes: Sizes) -> Iterator[str]:
    views, side = sizes.step
    yield f"## A guided step of {views} views at {8 * side} x {8 * side}"
    yield ""
    unet = unet_of(sizes, side).to(machine.device, machine.dtype).eval()
    unet.to(memory_format=torch.channels_last)
    cameras = Cameras.ring(views, height=8 * side, width=8 * side).to(machine.device)
    kind = {"device": machine.device, "dtype": machine.dtype}
    sample = torch.randn(2, views, 4, side, side, **kind)
    text = torch.randn(2, 77, sizes.text_width, **kind)
    fastest = peak(machine, sizes.matmul)

    def rows() -> Iterator[list[str]]:
        conditions = condition_on_cameras(unet, cameras, side, side, text=text)

        def call() -> torch.Tensor:
            return unet(sample, 500, text, conditions).sample

        work = flop(call)
        for way, options in compilations(machine).items():
            if options is not None:
                torch.compiler.reset()
                unet.compile(**options)
            found = machine.measure(call, warm_up=3)
            share = "" if isinstance(found, str) else f"{work / found[0] / fastest:.0%}"
            yield [way, *cells(found), f"{work / 1e12:.2f}", share]

    with torch.no_grad():
        yield from table(("way", "ms", "GB", "TFLOP", "of the peak"), rows())
    yield ""
    yield f"Peak: {fastest / 1e12:.0f} TFLOP/s, a product of two {sizes.matmul}² matrices."


def train(machine: Machine, sizes: Sizes) -> Iterator[str]:
    objects, views = sizes.train
    side = sizes.step[1]
    yield f"## A training step of {objects} objects of {views} views at {8 * side} x {8 * side}"
    yield ""
    cameras = Cameras.cat([Cameras.ring(views, height=8 * side, width=8 * side)] * objects)
    cameras = cameras.to(machine.device)
    sample = torch.randn(objects, views, 4, side, side, device=machine.device)
    text = torch.randn(objects, 77, sizes.text_width, device=machine.device)
    fastest = peak(machine, sizes.matmul)

    def measured(checkpointing: bool, is_compiled: bool) -> list[str]:
        unet = unet_of(sizes, side).to(machine.device).train()
        # The compiler would unroll other backends; so does spad train --compile.
        unet.attention_backend = "sdpa"
        if checkpointing:
            unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(unet.parameters(), fused=machine.is_gpu)

        def loss() -> torch.Tensor:
            with torch.autocast(machine.device.type, machine.dtype, enabled=machine.is_gpu):
                own = condition_on_cameras(unet, cameras, side, side, views)
                return unet(sample, 500, text, own).sample.float().square().mean()

        def call() -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        with torch.no_grad():
            work = 3 * flop(loss)
        if is_compiled:
            torch.compiler.reset()
            unet.compile()
        found = machine.measure(call, warm_up=3)
        if isinstance(found, str):
            return [*cells(found), "", ""]
        speed = f"{objects * views / found[0]:.3g}"
        return [*cells(found), speed, f"{work / found[0] / fastest:.0%}"]

    def rows() -> Iterator[list[str]]:
        for is_compiled in (False, True) if machine.is_gpu else (False,):
            how = "torch.compile" if is_compiled else "eager"
            yield [f"{how}, activations kept", *measured(False, is_compiled)]
            yield [f"{how}, activations recomputed", *measured(True, is_compiled)]

    yield from table(("way", "ms", "GB", "views a second", "of the peak"), rows())


def images(machine: Machine, sizes: Sizes) -> Iterator[str]:
    yield f"## A prompt to images in {sizes.inference_steps} guided steps"
    yield ""
    once = replace(machine, repeats=1)

    def rows() -> Iterator[list[str]]:
        for views, size in sizes.images:
            for way, options in compilations(machine).items():
                pipeline = random_pipeline(machine, sizes, size)
                if options is not None:
                    torch.compiler.reset()
                    pipeline.unet.compile(**options)
                call = partial(
                    pipeline,
                    PROMPT,
                    Cameras.ring(views, height=size, width=size),
                    num_inference_steps=sizes.inference_steps,
                    guidance_scale=7.5,
                )
                found = once.measure(call, warm_up=1)
                seconds = found if isinstance(found, str) else f"{found[0]:.3g}"
                yield [f"{views} views, {size} x {size}", way, seconds, cells(found)[1]]

    yield from table(("images", "way", "seconds", "GB"), rows())


def random_pipeline(machine: Machine, sizes: Sizes, size: int) -> SPADPipeline:
    """A pipeline of random weights for images of a size in pixels."""
    tokenizer = build_tokenizer([PROMPT])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **sizes.vae,
    )
    encoder = build_text_encoder(tokenizer, width=sizes.text_width)
    unet = unet_of(sizes, size // 8).eval()
    pipeline = SPADPipeline(vae.eval(), encoder, tokenizer, unet, DDIMScheduler())
    pipeline.to(machine.device, machine.dtype)
    pipeline.set_progress_bar_config(disable=True)
    unet.to(memory_format=torch.channels_last)
    return pipeline


PARTS = {"attention": attention, "step": step, "train": train, "images": images}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parts", choices=tuple(PARTS), nargs="+", default=tuple(PARTS))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("expected a CUDA device, got none; --tiny tries the script on a CPU")
    sizes = TINY if options.tiny else FULL
    device = torch.device("cpu" if options.tiny else "cuda")
    machine = Machine(device, sizes.repeats)
    today = datetime.date.today().isoformat()
    output = options.output or RESULTS / f"gpu-{slug(machine.name)}-{today}.md"
    command = "python benchmarks/bench_gpu.py" + (" --tiny" if options.tiny else "")
    lines = [
        f"# spad on {machine.name}",
        "",
        f"`{command}`, torch {torch.__version__}, Python {platform.python_version()}, {today}. "
        f"Weights are random. Medians of {sizes.repeats} calls; GB is the most that torch held.",
    ]
    for part in options.parts:
        lines += ["", *PARTS[part](machine, sizes)]
        # After every part: what was measured is kept if a later one fails.
        write_text(output, "\n".join(lines) + "\n")
    print(output)


if __name__ == "__main__":
    main()
