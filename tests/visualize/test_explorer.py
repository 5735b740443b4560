"""The explorer page in a real browser: what lights up there is what the Python masks say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from in_browser import wait_until
from spad.cameras import Cameras
from spad.geometry import pixel_bands
from spad.visualize.explorer import explorer_page
from spad.visualize.toy_bear import render_stand_in
from spad.visualize.views import ShownViews

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BAND = 6.0

# The pixels of every view that the page has lit: more than half the band's opacity of 0.4.
LIT = """() => canvases.map((canvas) => {
  const alpha = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let text = "";
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++) {
      const y = Math.floor((row + 0.5) * zoom), x = Math.floor((column + 0.5) * zoom);
      text += alpha[4 * (y * canvas.width + x) + 3] > 51 ? "1" : "0";
    }
  return text;
})"""


def posed(cameras: Cameras) -> ShownViews:
    pictures, depth = render_stand_in(cameras, samples_per_side=1)
    return ShownViews(cameras, pictures, tuple(f"view {i}" for i in range(len(cameras))), depth)


@pytest.fixture(scope="module")
def views() -> ShownViews:
    """Four round the bear, one that sees a camera, one at the place of another."""
    around = Cameras.orbit(
        [20, -10, 60, 0, 20, 35], [-60, 30, 120, -150, -60, 120], height=60, width=80
    )
    return posed(around)


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens views from a file on disk; fails on any error or request that leaves it."""
    contexts, problems = [], []

    def open_views(shown: ShownViews, size: dict, touch: bool = False, **options):
        path = tmp_path / "explorer.html"
        path.write_text(explorer_page(shown, BAND, **options), encoding="utf-8")
        context = browser.new_context(viewport=size, has_touch=touch, is_mobile=touch)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text)
                if message.type == "error" else None)  # fmt: skip
        page.on("request", lambda request: problems.append(request.url)
                if not request.url.startswith(("data:", path.as_uri())) else None)  # fmt: skip
        page.goto(path.as_uri())
        return page

    yield open_views
    for context in contexts:
        context.close()
    assert not problems


def pixel_on_screen(page, view: int, row: int, column: int) -> dict:
    canvas = page.locator("canvas").nth(view)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    width, height = page.evaluate("[width, height]")
    return {
        "x": box["x"] + (column + 0.5) / width * box["width"],
        "y": box["y"] + (row + 0.5) / height * box["height"],
    }


def check_lit(page, shown: ShownViews, view: int, row: int, column: int, **depths) -> None:
    """What is lit and the mask lie within one pixel of each other, both ways."""
    wait_until(page, f"!waiting && state.view === {view}")
    words = page.locator("#where").inner_text()
    assert f"view {view}" in words and re.search(rf"row {row}\s+column {column}\b", words)
    height, width = shown.cameras.height, shown.cameras.width
    lit = [np.array(list(text)) == "1" for text in page.evaluate(LIT)]
    bands = pixel_bands(shown.cameras, view, torch.tensor([[column + 0.5, row + 0.5]]), **depths)
    distance = bands.distance_maps(0).numpy()
    for other in set(range(len(lit))) - {view}:
        there = lit[other].reshape(height, width)
        # The edge of the drawn band lies within a pixel of the mask's edge.
        assert there[distance[other] <= BAND / 2 - 1].all(), other
        assert not there[distance[other] > BAND / 2 + 1].any(), other


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pointing_at_a_pixel_lights_its_bands(open_page, views, size):
    page = open_page(views, size)
    for view, row, column in ((0, 30, 40), (1, 5, 70), (2, 59, 0), (4, 12, 33)):
        at = pixel_on_screen(page, view, row, column)
        page.mouse.move(at["x"], at["y"])
        check_lit(page, views, view, row, column)


def test_touching_a_pixel_lights_its_bands(open_page, views):
    page = open_page(views, PHONE, touch=True)
    for view, row, column in ((3, 20, 11), (5, 41, 60)):
        at = pixel_on_screen(page, view, row, column)
        page.touchscreen.tap(at["x"], at["y"])
        check_lit(page, views, view, row, column)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_keys_move_the_pixel_and_the_view(open_page, views):
    page = open_page(views, DESKTOP)
    page.locator("canvas").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    check_lit(page, views, 0, 29, 32)
    page.keyboard.press("PageDown")
    check_lit(page, views, 1, 29, 32)
    page.keyboard.press("Enter")
    at = pixel_on_screen(page, 2, 8, 8)
    page.mouse.move(at["x"], at["y"])
    check_lit(page, views, 1, 29, 32)
    page.keyboard.press("Escape")
    page.mouse.move(at["x"] + 1, at["y"])
    check_lit(page, views, 2, 8, 8)


def test_depth_sliders_cut_the_bands(open_page, views):
    page = open_page(views, DESKTOP)
    page.locator("#near").fill("80")
    page.locator("#far").fill("110")
    near, far = page.evaluate("[state.near, state.far]")
    assert 0 < near < far
    at = pixel_on_screen(page, 0, 25, 45)
    page.mouse.move(at["x"], at["y"])
    check_lit(page, views, 0, 25, 45, near=near, far=far)
    page.locator("#reset").click()
    assert page.evaluate("state.near === 0 && state.far === Infinity")


def test_the_readout_is_the_plucker_coordinates(open_page, views):
    from spad.geometry import plucker_map

    page = open_page(views, DESKTOP)
    at = pixel_on_screen(page, 2, 10, 20)
    page.mouse.move(at["x"], at["y"])
    check_lit(page, views, 2, 10, 20)
    _, direction, moment = page.locator("#where").inner_text().splitlines()
    shown = [float(x) for x in re.findall(r"-?\d+\.\d+", direction + moment)]
    true = plucker_map(views.cameras, 60, 80)[2, :, 10, 20]
    np.testing.assert_allclose(shown, true.numpy(), atol=1e-4)


def test_the_middle_of_the_source_is_shown_first(open_page, views):
    check_lit(open_page(views, DESKTOP, source=3), views, 3, 30, 40)


def test_large_pictures_shrink_and_the_file_stays_small():
    cameras = Cameras.ring(16, height=32, width=1100)
    pictures = np.full((16, 32, 1100, 3), 200, np.uint8)
    page = explorer_page(ShownViews(cameras, pictures, ("x",) * 16), 40.0)
    assert '"width": 1024' in page and len(page) < 200_000
    with pytest.raises(ValueError, match="expected up to 16 views on a page, got 17"):
        shown = ShownViews(Cameras.ring(17), np.zeros((17, 256, 256, 3)), ("x",) * 17)
        explorer_page(shown, 24.0)


def test_names_cannot_break_out_of_the_page():
    cameras = Cameras.ring(1, height=8, width=8)
    pictures = np.full((1, 8, 8, 3), 255, np.uint8)
    page = explorer_page(ShownViews(cameras, pictures, ("</script><b>",)), 2.0)
    assert "</script><b>" not in page


def test_pictures_in_the_page_are_the_pictures(views):
    import base64
    import io

    page = explorer_page(views, BAND)
    first = re.search(r"data:image/webp;base64,([\w+/=]+)", page)[1]
    with Image.open(io.BytesIO(base64.b64decode(first))) as picture:
        off = np.abs(np.asarray(picture.convert("RGB"), float) - views.images[0])
    assert off.mean() < 6


def test_the_page_is_one_file():
    page = Path(explorer_page.__code__.co_filename).with_name("explorer.html").read_text("utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import", page)
