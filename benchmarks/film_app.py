"""Film the page of `spad app`: a script does what a person would, and the screen becomes a WebP.

Run: python benchmarks/film_app.py docs/pictures/app.webp
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from bench_app import IDLE, browser_page, server
from PIL import Image
from playwright.sync_api import Page

SIZE = (1000, 680)
PROMPT = "a blue chair"
# Where the middle of a camera's image is in the window.
PLACE = """(view) => {
  const { rig, state } = spad, frustum = rig.frusta.get(state.cameras[view].id);
  const at = frustum.center.clone().set(0, 0, 0.85).applyMatrix4(frustum.group.matrix)
    .project(rig.eye), box = rig.canvas.getBoundingClientRect();
  return [box.left + (at.x + 1) / 2 * box.width, box.top + (1 - at.y) / 2 * box.height];
}"""
# Orbit the person's own view, by an angle in degrees.
TURN = """(angle) => {
  const { rig } = spad;
  rig.eye.position.applyAxisAngle(rig.eye.up, angle * Math.PI / 180);
  rig.controls.update();
}"""


class Film:
    """Frames of a page, each shown for a time of its own."""

    def __init__(self, page: Page):
        self.page = page
        self.frames: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def take(self, milliseconds: int = 90) -> None:
        """A frame of what is on the screen."""
        self.page.wait_for_timeout(60)
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        self.frames.append(shot.resize(SIZE, Image.Resampling.LANCZOS))
        self.milliseconds.append(milliseconds)

    def take_until(self, condition: str) -> None:
        """Frames whenever the sentence about progress changes, until a condition holds."""
        said = None
        while not self.page.evaluate(condition):
            now = self.page.inner_text("#status")
            if now != said:
                said = now
                self.take(140)
            self.page.wait_for_timeout(20)
        self.take(1200)

    def save(self, path: Path) -> None:
        """An animated WebP."""
        first, *rest = self.frames
        first.save(path, save_all=True, append_images=rest, duration=self.milliseconds, loop=0,
                   quality=70, method=4)  # fmt: skip


def act(film: Film) -> None:
    """What the film shows."""
    page = film.page
    done = f"{IDLE} && ['done', 'error'].includes(spad.state.phase)"
    page.fill("#prompt", "")
    for end in range(4, len(PROMPT) + 1, 2):
        page.fill("#prompt", PROMPT[:end])
        film.take()
    page.select_option("#rigs", label="Ring of 8")
    film.take(500)
    page.click("#draw")
    film.take_until(done)
    # A pixel, its rays.
    box = page.locator(".frame canvas").nth(0).bounding_box()
    for step in range(14):
        page.mouse.move(
            box["x"] + box["width"] * (0.25 + step / 28), box["y"] + box["height"] * 0.4
        )
        film.take()
    # A camera is dragged.
    x, y = page.evaluate(PLACE, 0)
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 13):
        page.mouse.move(x + 7 * step, y - 9 * step)
        film.take()
    page.mouse.up()
    film.take(500)
    page.click("#draw")
    film.take_until(done)
    page.click("#build")
    film.take_until(done)
    for _ in range(24):
        page.evaluate(TURN, 15)
        film.take()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    settings = parser.parse_args()
    with server("mini", 8) as (_, port), browser_page(port) as page:
        page.goto(f"http://127.0.0.1:{port}/#still")
        page.wait_for_selector("article")
        film = Film(page)
        film.take(600)
        act(film)
        film.save(settings.output)
    print(f"{settings.output}: {len(film.frames)} frames, {settings.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
