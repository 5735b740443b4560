"""Models in the documentation's gallery: three.js shows them as our own renderer does."""

import io
import math
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made_views import ring, table, views_of
from spad.cameras import Cameras
from spad.reconstruction.model_views import draw_model, on_white
from spad.reconstruction.reconstruct import reconstruct

ROOT = Path(__file__).resolve().parents[1]
SIDE = 200
PAGE = """<!doctype html><body style="margin: 0; background: white">
<a href="table.glb"><img src="table.png" width="200" height="200" alt="a table"></a>
<a href="gone.glb"><img src="table.png" width="200" height="200" alt="none"></a>
<script type="module" src="gallery.js"></script>"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "index.html").write_text(PAGE)
    Image.new("RGB", (SIDE, SIDE), "gray").save(tmp_path / "table.png")
    for script in ("docs/models/gallery.js", "src/spad/app/static/three.js"):
        shutil.copy(ROOT / script, tmp_path)
    return tmp_path


@pytest.fixture
def page(browser, folder):
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # The model turns by itself otherwise.
        context = browser.new_context(
            viewport={"width": 420, "height": 220}, reduced_motion="reduce"
        )
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        yield page
        context.close()
        server.shutdown()


def test_a_click_shows_the_model_as_our_renderer_does(page, folder, tmp_path_factory):
    obj = table(tmp_path_factory.mktemp("table"))
    made = reconstruct(views_of(obj, ring(4)), faces=1500, texture_size=128, cells=32)
    made.save(folder / "table.glb")
    page.click("img[alt='a table']")
    canvas = page.locator("canvas[aria-label='a table, turning']")
    canvas.wait_for()
    page.wait_for_timeout(500)
    shown = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(float)

    low, high = made.mesh.vertices.min(0), made.mesh.vertices.max(0)
    radius = float(np.linalg.norm(high - low)) / 2
    x, y, z = 1.9, -3.2, 1.4
    distance = math.sqrt(x * x + y * y + z * z)
    camera = Cameras.orbit(
        math.degrees(math.asin(z / distance)),
        math.degrees(math.atan2(y, x)),
        distance * radius,
        math.radians(30),
        height=SIDE,
        width=SIDE,
        target=((low + high) / 2).tolist(),
    )
    image, alpha = on_white(draw_model(made.mesh, camera))
    ours = image[0].movedim(0, -1).numpy() * 255
    solid, there = alpha[0].numpy() > 0.5, (shown < 245).any(-1)
    assert (solid & there).sum() / (solid | there).sum() > 0.96
    assert np.abs(ours - shown)[solid & there].mean() < 8


def test_the_link_stays_where_there_is_no_model(page):
    page.click("img[alt='none']")
    page.wait_for_url("**/gone.glb")
