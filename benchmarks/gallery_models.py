"""Twelve small 3D models of `mini` for the gallery, each with an image of it.

    python benchmarks/gallery_models.py docs/models

The prompts are the first of mini-prompts.txt. For every one, eight views that agree are generated
(as `spad generate --mesh` does), and reconstructed at few triangles.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spad import load_model
from spad.cameras import Cameras
from spad.data.view_sets import set_from_images
from spad.files import slug, whole_file
from spad.generation.plan import MESH_CONSISTENCY, MESH_VIEWS
from spad.reconstruction.consistent_sampling import ConsistentSampling
from spad.reconstruction.model_views import draw_model, on_white
from spad.reconstruction.reconstruct import reconstruct
from spad.reconstruction.surface import DRAWN_SMOOTHNESS

PROMPTS = 12
FACES, TEXTURE = 2500, 256
# Of the image, from in front and above.
SIDE, ELEVATION_DEG, AZIMUTH_DEG = 240, 25.0, -60.0


def main() -> None:
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    prompts = (Path(__file__).parent / "mini-prompts.txt").read_text().splitlines()[:PROMPTS]
    pipeline = load_model("mini")
    cameras = pipeline.own_cameras(MESH_VIEWS)
    for prompt in prompts:
        agree = ConsistentSampling(cameras, MESH_CONSISTENCY)
        images = pipeline(prompt, cameras, callback_on_step_end=agree).images[0]
        views = set_from_images(prompt, np.stack([np.asarray(one) for one in images]), cameras)
        model = reconstruct(views, FACES, TEXTURE, smoothness=DRAWN_SMOOTHNESS).mesh
        name = slug(prompt)
        (data,) = model.files(f"{name}.glb").values()
        with whole_file(output / f"{name}.glb") as unfinished:
            unfinished.write_bytes(data)
        place = Cameras.orbit(ELEVATION_DEG, AZIMUTH_DEG, height=SIDE, width=SIDE)
        pixels, _ = on_white(draw_model(model, place))
        image = Image.fromarray(pixels[0].mul(255).round().byte().movedim(0, -1).numpy())
        with whole_file(output / f"{name}.webp") as unfinished:
            image.save(unfinished, "WEBP", quality=85)
        print(output / f"{name}.glb")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
