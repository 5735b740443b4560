"""A picture of an object and, below, its model.

    python benchmarks/model_beside_truth.py stag.glb true-views.webp

The model is made of eight renders from a ring of cameras, and both are seen from six others.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from spad import reconstruct
from spad.cameras import Cameras
from spad.evaluation.mesh_scores import rendered_set
from spad.files import whole_file
from spad.images.pixels import to_levels
from spad.meshes.mesh import load_object
from spad.reconstruction.model_views import draw_model, on_white

SIDE, NUM_VIEWS, VIEWS_ELEVATION_DEG = 256, 8, 20.0
ELEVATION_DEG = [10.0, 35.0, 20.0, 50.0, 0.0, 20.0]
AZIMUTH_DEG = [200.0, 20.0, 140.0, 300.0, 75.0, 250.0]
# Pixels that are cut off on each side of an image.
MARGIN = 24


def main() -> None:
    thing, output = load_object(Path(sys.argv[1])), Path(sys.argv[2])
    ring = Cameras.ring(NUM_VIEWS, VIEWS_ELEVATION_DEG, height=SIDE, width=SIDE)
    model = reconstruct(rendered_set(thing, ring))
    print(model.scores)
    others = Cameras.orbit(ELEVATION_DEG, AZIMUTH_DEG, height=SIDE, width=SIDE)
    rows = [rendered_set(thing, others).images, on_white(draw_model(model.mesh, others))[0]]
    cut = slice(MARGIN, -MARGIN)
    sheet = torch.cat([torch.cat(list(row[..., cut, cut]), dim=2) for row in rows], dim=1)
    with whole_file(output) as unfinished:
        Image.fromarray(to_levels(sheet[None])[0]).save(unfinished, "WEBP", quality=85)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
