"""What MultiViewUNet adds to a step of the plain UNet of a base model: one view, masks off.

    python benchmarks/bench_wrapper.py [--base sdxl] [--width 0.5] [--side 64] [--pairs 8]

Both have the same random weights, and take turns; `--width` scales the channels, so that it fits a
small machine. Processor time of one thread, which other programs of the machine change little.
Prints the median ratio of a pair and an interval of 95 % from resampled pairs.
"""

import argparse
import time
from statistics import median

import numpy as np
import torch
from bench_attention import hardware
from diffusers import UNet2DConditionModel

from spad.cameras import Cameras
from spad.model import MultiViewUNet
from spad.model.bases import BASES
from spad.model.conditioning import condition_on_cameras
from spad.model.text import TextEmbeddings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", choices=[base.name for base in BASES], default="sdxl")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--side", type=int, default=64, help="side of the latents")
    parser.add_argument("--pairs", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = next(base for base in BASES if base.name == options.base)
    config = {
        **base.unet,
        "block_out_channels": [int(c * options.width) for c in base.unet["block_out_channels"]],
        "sample_size": options.side,
    }
    plain = UNet2DConditionModel(**config).eval()
    ours = MultiViewUNet(**config, epipolar="none").eval()
    ours.load_state_dict(plain.state_dict(), strict=False, assign=True)
    side = 8 * options.side
    tokens = torch.randn(1, 77, config["cross_attention_dim"])
    pooled = torch.randn(1, 1280) if base.reading.is_pooled else None
    text = TextEmbeddings(tokens, pooled)
    cameras = Cameras.ring(1, height=side, width=side)
    views = condition_on_cameras(ours, cameras, options.side, options.side, text=text)
    sizes = torch.tensor([[side, side, 0, 0, side, side]])
    added = {} if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
    sample = torch.randn(1, 4, options.side, options.side)
    steps = {
        "plain": lambda: plain(sample, 500, tokens, added_cond_kwargs=added).sample,
        "ours": lambda: ours(sample[:, None], 500, text, views).sample[:, 0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with torch.inference_mode():
        torch.testing.assert_close(steps["ours"](), steps["plain"](), rtol=1e-3, atol=1e-4)
        for pair in range(options.pairs):
            for name in sorted(steps, reverse=pair % 2 == 1):
                started = time.process_time()
                steps[name]()
                seconds[name].append(time.process_time() - started)
    ratios = np.array(seconds["ours"]) / np.array(seconds["plain"])
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    size = f"{options.side} x {options.side} latents"
    print(f"{base.title}, width x {options.width}, {size}; {hardware()}")
    print(f"plain  {median(seconds['plain']):.2f} s a step")
    added_share = f"{np.median(ratios) - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}]"
    print(f"ours   {median(seconds['ours']):.2f} s a step, {added_share}")


if __name__ == "__main__":
    main()
