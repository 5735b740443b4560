"""Correspondence-guided sampling, which spad does not have: does it help?

    python benchmarks/bench_correspondence.py [--prompts "a red mushroom" "a blue fish"] [--views 8]

In the finest attention between views, the strongest weight of a token in another view, if above
0.05, is its correspondence there. What the attention gives for the token is mixed with the means of
a window round its correspondences, in the first steps or in all. Masks limit the search to the
epipolar bands. The control mixes it with the mean of the same window round the token itself.

Prints, as Markdown, paired differences from plain sampling over the prompts, with 95 % intervals:
scores of `spad evaluate`, and seconds of the processor.

Source: CorrAdapter (CVPR 2026), which mixes 0.1 in the first 10 of 50 steps, in a window of 7 x 7
at 64 x 64 tokens.
"""

import argparse
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from spad.evaluation.best_of import choose_best
from spad.evaluation.report import show_number
from spad.evaluation.statistics import paired_difference
from spad.hub.registry import load_model
from spad.model import MultiViewUNet
from spad.model.processors import MultiViewAttnProcessor, ViewConditioning

PROMPTS = (
    "a red mushroom",
    "an orange pumpkin",
    "a blue fish",
    "a gray castle tower",
    "a brown wooden chair",
    "a white horse",
    "a pink frog",
    "a purple pine tree",
)
THRESHOLD = 0.05
SHOWN = (
    *("reconstruction_psnr", "reconstruction_ssim", "silhouette_iou", "photo_consistency"),
    *("likeness", "seconds"),
)


@dataclass(frozen=True)
class Way:
    """How features are mixed; `share_of_steps` counts from the first."""

    mix: float
    share_of_steps: float
    window: int
    is_control: bool = False


WAYS: dict[str, Way | None] = {
    "plain": None,
    "0.1 in a fifth of the steps": Way(0.1, 0.2, 1),
    "0.5 in all steps, 3 x 3": Way(0.5, 1.0, 3),
    "1 in all steps, 3 x 3": Way(1.0, 1.0, 3),
    "control: 0.5 in all steps, 3 x 3": Way(0.5, 1.0, 3, is_control=True),
}


class Guided(MultiViewAttnProcessor):
    """Attention between views whose output is mixed; `way` of None leaves it as it is."""

    way: Way | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        *,
        views: ViewConditioning,
        **options: object,
    ) -> Tensor:
        output = super().__call__(attn, hidden_states, views=views, **options)
        if self.way is None:
            return output
        best, at = correspondences(attn, hidden_states, views)
        found = best > THRESHOLD
        count, tokens = views.num_views, output.shape[1]
        side = math.isqrt(tokens)
        averaged = F.avg_pool2d(
            output.mT.unflatten(-1, (side, side)),
            self.way.window,
            stride=1,
            padding=self.way.window // 2,
            count_include_pad=False,
        )
        averaged = averaged.flatten(-2).mT.unflatten(0, (-1, count))
        own = output.unflatten(0, (-1, count))
        others = averaged
        if not self.way.is_control:
            # (b, v, n, v, c): what each token finds in each view.
            taken = torch.stack(
                [
                    averaged[:, None, view]
                    .expand(-1, count, -1, -1)
                    .gather(2, at[..., view, None].expand(-1, -1, -1, output.shape[-1]))
                    for view in range(count)
                ],
                dim=3,
            )
            weights = found / found.sum(-1, keepdim=True).clamp(min=1)
            others = (taken * weights[..., None]).sum(3)
        mixed = own.lerp(others, self.way.mix)
        return torch.where(found.any(-1, keepdim=True), mixed, own).flatten(0, 1)


def correspondences(
    attn: Attention, hidden: Tensor, views: ViewConditioning
) -> tuple[Tensor, Tensor]:
    """Strongest weight of every token in every other view, and its token: (b, v, n, v) each."""
    assert attn.to_k is not None
    count, tokens = views.num_views, hidden.shape[1]
    query, key = (
        layer(hidden).unflatten(0, (-1, count)).flatten(1, 2).unflatten(-1, (attn.heads, -1))
        for layer in (attn.to_q, attn.to_k)
    )
    logits = torch.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(query.shape[-1])
    if (mask := views.masks.get(tokens)) is not None:
        logits = logits.masked_fill(~mask.dense()[:, None], -torch.inf)
    weights = logits.softmax(-1).mean(1).unflatten(2, (count, tokens)).unflatten(1, (count, tokens))
    is_own = torch.eye(count, dtype=torch.bool)[:, None, :, None]
    best, at = weights.masked_fill(is_own, 0.0).max(-1)
    return best, at


def guide(unet: MultiViewUNet) -> Guided:
    """The processor of the last attention between views at the finest level, now guided."""
    attentions = [m for name, m in unet.named_modules() if "up_blocks" in name]
    blocks = [m for m in attentions if isinstance(m, Attention)]
    attn = [m for m in blocks if isinstance(m.processor, MultiViewAttnProcessor)][-1]
    guided = Guided(attn.processor.name)
    attn.set_processor(guided)
    return guided


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    pipeline = load_model(options.model, "cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    steps = options.steps or pipeline.defaults.num_inference_steps
    guided, cameras = guide(pipeline.unet), pipeline.own_cameras(options.views)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for prompt in options.prompts:
        for name, way in WAYS.items():

            def stop(
                _run: Any, step: int, _timestep: Any, _tensors: Any, way: Way | None = way
            ) -> dict:
                if way is not None and step + 1 >= way.share_of_steps * steps:
                    guided.way = None
                return {}

            guided.way = way
            start = time.process_time()
            images = pipeline(
                prompt, cameras, num_inference_steps=steps, callback_on_step_end=stop
            ).images[0]
            seconds = time.process_time() - start
            _, (scores,) = choose_best(prompt, cameras, [images])
            found[name].append({**scores, "seconds": seconds})
    print("| | " + " | ".join(SHOWN) + " |")
    print("|---" * (len(SHOWN) + 1) + "|")
    for name, rows in found.items():
        cells = []
        for score in SHOWN:
            plain, own = ([row[score] for row in sets] for sets in (found["plain"], rows))
            if name == "plain":
                cells.append(show_number(sum(plain) / len(plain)))
                continue
            estimate = paired_difference(plain, own, higher_is_better=True).estimate
            numbers = (estimate.mean, estimate.low, estimate.high)
            cells.append("{} ({} to {})".format(*map(show_number, numbers)))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
