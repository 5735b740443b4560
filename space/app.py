"""A page for hosted Gradio Spaces: a prompt and a ring of cameras in, views and a 3D model out."""

import math
import tempfile
from pathlib import Path

import gradio as gr
import numpy as np

from spad import Cameras, load_model
from spad.data.view_sets import set_from_images
from spad.reconstruction.reconstruct import reconstruct

MODEL = "mini"
pipeline = load_model(MODEL)


def ring(views: float, elevation_deg: float) -> Cameras:
    """Cameras evenly round the object, as the model was trained with."""
    own, size = pipeline.defaults, pipeline.image_size
    angles = (elevation_deg, own.start_azimuth_deg, own.radius, math.radians(own.fov_deg))
    return Cameras.ring(int(views), *angles, height=size, width=size)


def draw(prompt: str, views: float, elevation_deg: float, seed: float) -> list:
    """Views of a prompt."""
    return pipeline(prompt, ring(views, elevation_deg), seed=int(seed)).images[0]


def build(images: list | None, views: float, elevation_deg: float) -> str:
    """A GLB file of drawn views."""
    if not images:
        raise gr.Error("Draw views first.")
    pixels = np.stack([np.asarray(image.convert("RGB")) for image, _ in images])
    path = Path(tempfile.mkdtemp()) / "model.glb"
    reconstruct(set_from_images("the views", pixels, ring(views, elevation_deg))).save(path)
    return str(path)


with gr.Blocks(title="spad") as page:
    gr.Markdown("# spad\nText and cameras in, consistent views of one object out.")
    with gr.Row():
        prompt = gr.Textbox("a red mushroom", label="Prompt", scale=3)
        views = gr.Slider(3, 12, 8, step=1, label="Views")
        elevation = gr.Slider(-30, 80, 20, step=1, label="Elevation (degrees)")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    gallery = gr.Gallery(label="Views", columns=4, type="pil", format="png")
    model = gr.Model3D(label="3D model")
    with gr.Row():
        gr.Button("Draw", variant="primary").click(
            draw, [prompt, views, elevation, seed], gallery, api_name="draw"
        )
        gr.Button("Build a 3D model").click(build, [gallery, views, elevation], model)

if __name__ == "__main__":
    page.launch()
