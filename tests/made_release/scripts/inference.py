"""Draws colored discs for the captions of its folder, each object's views in a row."""

import argparse
from pathlib import Path

import numpy as np
from ldm.models.diffusion.ddim import DDIMSampler
from PIL import Image

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="spad_two_views")
    parser.add_argument("--total_views", type=int, default=8)
    parser.add_argument("--ddim_steps", type=int, default=100)
    options = parser.parse_args()
    assert Path("configs", f"{options.model}.yaml").is_file()
    assert Path("data/checkpoints").is_dir()
    DDIMSampler().register_buffer("betas", 0)
    output = Path("data/visuals/inference/1")
    output.mkdir(parents=True)
    y, x = np.mgrid[:64, :64] - 32
    for number, caption in enumerate(np.load("data/captions_eval.npy", allow_pickle=True).tolist()):
        assert caption.startswith("[tdv] ")
        view = np.full((64, 64, 3), 255, np.uint8)
        view[x**2 + y**2 < 400] = (200, 30, 30)
        strip = np.concatenate([view] * options.total_views, axis=1)
        Image.fromarray(strip).save(output / f"{number}.png")
