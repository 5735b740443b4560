"""The fixed protocol: what is asked of every model, so that two people get the same table.

`fixed/objects.json` holds ids, captions, cameras and seeds, `fixed/gallery.safetensors` the
renders that captions are ranked by, as descriptors. `benchmarks/make_protocol.py` wrote both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files

import numpy as np

from spad.cameras import Cameras
from spad.data.seeds import object_seed
from spad.evaluation.retrieval import Gallery


@dataclass(frozen=True)
class Protocol:
    """What `objects.json` says.

    Attributes:
        version: goes up whenever a number could change.
        captions: of the objects drawn from text, by id; the first ones are the quick protocol's.
        elevation_deg, azimuth_deg, radius, fov_rad: of the cameras that they are drawn from.
        seed: object i of a part is drawn with the seed `seed + i`.
        novel: ids of the objects drawn from one picture, in order.
        novel_views: drawn together, the given one among them.
        quick: so many objects of each part belong to the quick protocol.
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

    def cameras(self, size: int) -> Cameras:
        """Of the views drawn from text, for square pictures of `size` pixels."""
        return Cameras.orbit(
            self.elevation_deg, self.azimuth_deg, self.radius, self.fov_rad, size, size
        )

    def choose_views(self, uid: str, num_views: int) -> list[int]:
        """Which of an object's rendered views are used: the one given, then those to be drawn.

        They depend on the object's id and its number of views alone.
        """
        order = np.random.default_rng(object_seed(self.seed, uid)).permutation(num_views)
        return order[: self.novel_views].tolist()


@cache
def load_protocol() -> Protocol:
    """The protocol in this package."""
    data = json.loads(_folder().joinpath("objects.json").read_text(encoding="utf-8"))
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
    """The captions in this package, and descriptors of renders of their objects."""
    with as_file(_folder().joinpath("gallery.safetensors")) as path:
        return Gallery.load(path)


def _folder():
    return files("spad.evaluation").joinpath("fixed")
