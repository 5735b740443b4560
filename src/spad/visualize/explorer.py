"""The explorer page: all views in one HTML file that computes the bands itself, offline."""

from __future__ import annotations

import base64
import io
import json
import math
from importlib.resources import files

import numpy as np
from PIL import Image

from spad.visualize.views import ShownViews

MOST_VIEWS = 16
LARGEST_IMAGE = 1024


def explorer_page(
    views: ShownViews,
    band_width: float,
    near: float = 0.0,
    far: float = math.inf,
    source: int = 0,
) -> str:
    """A self-contained HTML page for up to 16 views.

    Args:
        views: images larger than 1024 pixels are made smaller.
        band_width: at the start, in pixels of the images.
        near, far: depths the rays are cut to at the start, world units.
        source: the view whose middle pixel is shown first.

    Raises: ValueError: too many views.
    """
    if len(views.cameras) > MOST_VIEWS:
        raise ValueError(
            f"expected up to {MOST_VIEWS} views on a page, got {len(views.cameras)}; choose some "
            "with --to"
        )
    longer = max(views.cameras.height, views.cameras.width)
    cameras, images = views.cameras, views.images
    if longer > LARGEST_IMAGE:
        cameras, images = views.resized(LARGEST_IMAGE)
    radius = float(cameras.radius.max())
    finite = [depth for depth in (2 * radius, 1.5 * near, far) if depth < math.inf]
    data = {
        "width": cameras.width,
        "height": cameras.height,
        "band": band_width * cameras.width / views.cameras.width,
        "near": near,
        "far": far if far < math.inf else None,
        "reach": max(finite) or 1.0,
        "source": source,
        "views": [
            {
                "name": name,
                "note": f"elev. {elevation:.0f}°, azim. {azimuth:.0f}°",
                "rotation": pose[:3, :3].tolist(),
                "center": pose[:3, 3].tolist(),
                "lens": [float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])],
                "image": _data_url(image),
            }
            for name, elevation, azimuth, pose, k, image in zip(
                views.names,
                cameras.elevation_deg.tolist(),
                cameras.azimuth_deg.tolist(),
                cameras.world_from_cam.double(),
                cameras.intrinsics,
                images,
                strict=True,
            )
        ],
    }
    # "</script>" in a name would end the block that holds the data.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    page = files("spad.visualize").joinpath("explorer.html").read_text(encoding="utf-8")
    return page.replace("__DATA__", text)


def _data_url(image: np.ndarray) -> str:
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(memory.getvalue()).decode()
