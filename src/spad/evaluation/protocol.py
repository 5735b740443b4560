"""The fixed protocol: the same prompts, cameras and seeds for every model.

`fixed/objects.json` has ids, captions, cameras and seeds, `fixed/gallery.safetensors` descriptors
of the renders by which captions are ranked. `benchmarks/make_protocol.py` wrote both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files

import numpy as np

from spad.cameras import Cameras
from spad.data.seeds import object_seed
from spad.evaluation.retrieval import Gallery
from spad.files import parse_json


@dataclass(frozen=True)
class Protocol:
    """Prompts, cameras and seeds of an evaluation.

    Attributes:
        version: raised with every change that could change a score.
        captions: id -> prompt of the objects generated from text.
        elevation_deg, azimuth_deg, radius, fov_rad: cameras for text.
        seed: object i of a part is generated with the seed `seed + i`.
        novel: ids of the objects generated from one image, in order.
        novel_views: views generated together from one image, including that of the image.
        quick: number of objects of each part in the quick protocol, the first ones.
        seeds: times that every prompt is generated.
        is_novel_ordered: the views of an object are used in their order, the first as input.
    """

    version: int
    captions: dict[str, str]
    elevation_deg: float
    azimuth_deg: tuple[float, ...]
    radius: float
    fov_rad: float
    seed: int
    novel: tuple[str, ...]
    novel_views: int
    quick: int
    seeds: int = 1
    is_novel_ordered: bool = False

    def cameras(self, size: int) -> Cameras:
        """Cameras for text, for square images of `size` pixels."""
        return Cameras.orbit(
            self.elevation_deg, self.azimuth_deg, self.radius, self.fov_rad, size, size
        )

    def choose_views(self, uid: str, num_views: int) -> list[int]:
        """Indices of the rendered views to use: the input image, then the novel views.

        They depend only on the object's id and its number of views, or are all in their order.
        """
        if self.is_novel_ordered:
            return list(range(num_views))
        order = np.random.default_rng(object_seed(self.seed, uid)).permutation(num_views)
        return order[: self.novel_views].tolist()


@cache
def load_protocol() -> Protocol:
    """The protocol in the package."""
    data = parse_json(_folder().joinpath("objects.json").read_bytes(), dict, "objects.json")
    text, novel, cameras = data["text"], data["novel"], data["text"]["cameras"]
    return Protocol(
        version=data["version"],
        captions=dict(text["objects"]),
        elevation_deg=cameras["elevation_deg"],
        azimuth_deg=tuple(cameras["azimuth_deg"]),
        radius=cameras["radius"],
        fov_rad=cameras["fov_rad"],
        seed=data["seed"],
        novel=tuple(novel["objects"]),
        novel_views=novel["views"],
        quick=data["quick"],
    )


@cache
def load_gallery() -> Gallery:
    """The captions in the package with descriptors of renders of their objects."""
    with as_file(_folder().joinpath("gallery.safetensors")) as path:
        return Gallery.load(path)


def _folder():
    return files("spad.evaluation").joinpath("fixed")
