"""What tests of the page share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from app_server import Served, serving
from made_views import table, views_of
from spad.app.messages import camera_fields, image_text
from spad.cameras import Cameras


@pytest.fixture(scope="session")
def served(tiny_pipeline_folder: Path) -> Iterator[Served]:
    """The page's server with a tiny, untrained model."""
    with serving(model=str(tiny_pipeline_folder)) as running:
        yield running


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """True views of a table, as the page sends finished ones."""
    cameras = Cameras.ring(4, 20, -60, height=48, width=48)
    views = views_of(table(tmp_path_factory.mktemp("table")), cameras)
    levels = (views.images.movedim(1, -1) * 255).round().byte().numpy()
    images = [image_text(Image.fromarray(one)) for one in levels]
    run = {"prompt": "a table", "seed": 3}
    return {"cameras": camera_fields(cameras), "images": images, "prompt": "a table", "run": run}
