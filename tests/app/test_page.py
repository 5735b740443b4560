"""The page of `spad app` in a real browser: what a person does there, and what is shown."""

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app_server import serving
from in_browser import wait_until
from spad.cameras import Cameras, load_cameras, save_transforms
from spad.geometry import pixel_bands

ROOT = Path(__file__).resolve().parents[2]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BAND = 6
IDLE = "spad.state.model !== null && spad.state.abort === null"
DRAWN = f"{IDLE} && spad.state.phase === 'done'"

# Errors that tests cause: requests that are refused, no WebGL.
EXPECTED = ("Failed to load resource", "THREE.WebGLRenderer: THREE.WebGLRenderer: Error creating")

# The pixels of every view that are lit: more than half the band's opacity of 0.4.
LIT = """() => [...document.querySelectorAll(".frame canvas")].map((canvas) => {
  const { width, height } = spad.state.size, zoom = canvas.width / width;
  const alpha = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let text = "";
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++) {
      const y = Math.floor((row + 0.5) * zoom), x = Math.floor((column + 0.5) * zoom);
      text += alpha[4 * (y * canvas.width + x) + 3] > 51 ? "1" : "0";
    }
  return text;
})"""


@pytest.fixture
def open_page(browser, served):
    """Opens the page; fails on any error or request that leaves the server."""
    contexts, problems = [], []

    def open_it(at=served.address, size=DESKTOP, still=True, script=None, **options):
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        if script:
            page.add_init_script(script)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text)
                if message.type == "error" and not message.text.startswith(EXPECTED)
                else None)  # fmt: skip
        page.on("request", lambda request: problems.append(request.url)
                if not request.url.startswith((at, "data:", "blob:")) else None)  # fmt: skip
        page.goto(at + ("#still" if still else ""))
        wait_until(page, "window.spad && spad.state.model !== null")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not problems


def images(page) -> list[str]:
    return page.evaluate("spad.state.cameras.map(({id}) => spad.state.results.get(id)?.png)")


def phase(page) -> str:
    return page.evaluate("spad.state.phase")


def draw(page) -> list[str]:
    page.click("#draw")
    wait_until(page, "spad.state.abort !== null || spad.state.phase === 'done'")
    wait_until(page, DRAWN)
    return images(page)


def on_screen(page, view: int) -> dict[str, float]:
    """Where the middle of a camera's image is in the window."""
    return page.evaluate(
        """(view) => {
          const { rig, state } = spad;
          const frustum = rig.frusta.get(state.cameras[view].id);
          frustum.target.geometry.computeBoundingBox();
          const at = frustum.center.clone().set(0, 0, 0.85).applyMatrix4(frustum.group.matrix)
            .project(rig.eye);
          const box = rig.canvas.getBoundingClientRect();
          return { x: box.left + (at.x + 1) / 2 * box.width,
            y: box.top + (1 - at.y) / 2 * box.height };
        }""",
        view,
    )


def place(page, view: int) -> tuple[float, ...]:
    fields = "elevation azimuth radius fov".split()
    one = page.evaluate(f"spad.state.cameras[{view}]")
    return tuple(one[field] for field in fields)


# Drawing


def test_an_example_is_drawn_at_once_under_the_pages_own_policy(open_page):
    page = open_page(still=False)
    wait_until(page, DRAWN)
    assert len(images(page)) == 4 and all(images(page))
    assert page.locator(".frame img:visible").count() == 4
    assert "4 views of" in page.inner_text("#status")
    assert page.locator("#history li").count() == 1


def test_cameras_shown_are_the_cameras_drawn(open_page):
    page = open_page()
    page.evaluate("Object.assign(spad.state.cameras[1], {elevation: -35, azimuth: 171, fov: 55})")
    page.evaluate("Object.assign(spad.state.cameras[2], {elevation: 90, azimuth: 10, radius: 5})")
    fields = page.evaluate("spad.fields()")
    places = [place(page, view) for view in range(4)]
    elevation, azimuth, radius, fov = (list(values) for values in zip(*places, strict=True))
    fov = np.radians(fov).tolist()
    right = Cameras.orbit(elevation, azimuth, radius, fov, height=128, width=128)
    assert np.allclose(fields["world_from_cam"], right.world_from_cam, atol=1e-5)
    assert np.allclose(fields["intrinsics"], right.intrinsics, rtol=1e-5)
    with page.expect_request("**/api/draw") as sent:
        page.click("#draw")
    assert sent.value.post_data_json["cameras"] == fields
    wait_until(page, DRAWN)


def test_a_held_view_stays_and_others_are_drawn_anew(open_page):
    page = open_page()
    before = draw(page)
    page.locator("article").nth(1).get_by_role("button", name="Hold").click()
    page.click("#dice")
    after = draw(page)
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False, False]
    page.locator("article").nth(2).get_by_role("button", name="Redraw").click()
    wait_until(page, "spad.state.abort !== null")
    wait_until(page, DRAWN)
    same = [a == b for a, b in zip(after, images(page), strict=True)]
    assert same == [True, True, False, True]


def test_stop_ends_a_run_and_the_next_one_is_served(open_page):
    page = open_page()
    page.fill("#steps", "500")
    page.click("#draw")
    wait_until(page, "document.querySelector('#status').textContent.startsWith('Drawing')")
    page.click("#stop")
    wait_until(page, f"{IDLE} && spad.state.phase === 'stopped'")
    # What was there is shown as unfinished.
    assert page.locator(".view.stale").count() == 4
    page.fill("#steps", "2")
    draw(page)
    assert page.locator(".view.stale").count() == 0


def test_wrong_input_is_a_sentence(open_page):
    page = open_page()
    page.fill("#prompt", "word " * 150)
    page.click("#draw")
    wait_until(page, f"{IDLE} && spad.state.phase === 'error'")
    assert "expected" in page.inner_text("#status")
    page.fill("#steps", "0")
    page.click("#draw")
    assert page.evaluate("document.querySelector('#steps:invalid') !== null")


def test_words_are_completed_and_what_is_read_is_said(open_page):
    page = open_page()
    page.fill("#prompt", "green dra")
    options = "[...document.querySelectorAll('#captions option')].map((one) => one.value)"
    assert page.evaluate(options) == ["a green dragon"]
    page.fill("#prompt", "two green dragons")
    wait_until(page, "document.querySelector('#reading').textContent.includes('dragon')")


# Cameras


def test_a_camera_is_dragged_on_its_sphere(open_page):
    page = open_page()
    draw(page)
    before, at = place(page, 0), on_screen(page, 0)
    page.mouse.move(at["x"], at["y"])
    page.mouse.down()
    for step in range(1, 6):
        page.mouse.move(at["x"] + 12 * step, at["y"] - 6 * step)
    page.mouse.up()
    after = place(page, 0)
    assert after[1] != before[1] and after[2] == pytest.approx(before[2]) and after[3] == before[3]
    assert page.locator(".view.stale").count() == 1
    assert page.evaluate("spad.state.selected === spad.state.cameras[0].id")
    page.click("#undo")
    assert place(page, 0) == pytest.approx(before)


def test_the_wheel_over_a_camera_changes_its_distance(open_page):
    page = open_page()
    before, at = place(page, 0), on_screen(page, 0)
    page.mouse.move(at["x"], at["y"])
    page.mouse.wheel(0, 100)
    wait_until(page, f"spad.state.cameras[0].radius > {before[2]}")
    assert place(page, 0)[:2] == pytest.approx(before[:2])


def test_numbers_and_buttons_change_cameras(open_page):
    page = open_page()
    page.select_option("#rigs", label="Sphere of 12")
    assert page.locator("article").count() == 12
    page.select_option("#rigs", label="For zero123plus-v1.2")
    assert [round(place(page, view)[0]) for view in range(6)] == [20, -10] * 3
    card = page.locator("article").first
    card.locator("summary").click()
    card.get_by_label("elevation of view 0").fill("33")
    card.get_by_label("elevation of view 0").press("Tab")
    assert place(page, 0)[0] == 33
    card.get_by_role("button", name="Duplicate").click()
    page.click("#add")
    assert page.locator("article").count() == 8
    card.get_by_role("button", name="Delete").click()
    assert page.locator("article").count() == 7
    for _ in range(4):
        page.click("#undo")
    assert place(page, 0)[0] == pytest.approx(20) and page.locator("article").count() == 6
    page.get_by_role("button", name="Raise all").click()
    assert place(page, 0)[0] == pytest.approx(30)


def test_cameras_are_imported_and_exported(open_page, tmp_path):
    given = Cameras.look_at([[3, 0, 1], [0, 2.5, 2], [-3, 1, 0]], [0.1, 0, 0], height=90, width=120)
    save_transforms(tmp_path / "transforms.json", given, [f"{view}.png" for view in range(3)])
    page = open_page()
    page.set_input_files("#files", tmp_path / "transforms.json")
    wait_until(page, "spad.state.cameras.length === 3")
    fields = page.evaluate("spad.fields()")
    assert (fields["height"], fields["width"]) == (96, 128)
    assert np.allclose(fields["world_from_cam"], given.world_from_cam, atol=1e-5)
    with page.expect_download() as saved:
        page.select_option("#export", "cameras.json")
    saved.value.save_as(tmp_path / "cameras.json")
    back = load_cameras(tmp_path / "cameras.json").cameras
    assert np.allclose(back.world_from_cam, given.world_from_cam, atol=1e-4)
    (tmp_path / "no.json").write_text("{}", encoding="utf-8")
    page.set_input_files("#files", tmp_path / "no.json")
    wait_until(page, "spad.state.phase === 'error'")
    assert "no.json" in page.inner_text("#status")


# Looking


def test_the_rays_of_a_pixel_are_pythons_masks(open_page):
    page = open_page()
    page.select_option("#rigs", label="Two rings of 4")
    fields = page.evaluate("spad.fields()")
    matrices = [torch.tensor(fields[name]) for name in ("world_from_cam", "intrinsics")]
    cameras = Cameras(*matrices, fields["height"], fields["width"])
    canvas = page.locator(".frame canvas").nth(1)
    box = canvas.bounding_box()
    row, column = 40, 75
    page.mouse.move(
        box["x"] + (column + 0.5) / 128 * box["width"], box["y"] + (row + 0.5) / 128 * box["height"]
    )
    wait_until(page, "spad.views.pixel !== null && !spad.views.waiting")
    assert page.evaluate("[spad.views.pixel.x, spad.views.pixel.y]") == [column + 0.5, row + 0.5]
    bands = pixel_bands(cameras, 1, torch.tensor([[column + 0.5, row + 0.5]]))
    distance = bands.distance_maps(0).numpy()
    lit = [np.array(list(text)).reshape(128, 128) == "1" for text in page.evaluate(LIT)]
    for other in set(range(8)) - {1}:
        assert lit[other][distance[other] <= BAND / 2 - 1].all(), other
        assert not lit[other][distance[other] > BAND / 2 + 1].any(), other
    # Enter keeps the pixel when the pointer leaves.
    canvas.focus()
    page.keyboard.press("Enter")
    page.mouse.move(5, 5)
    assert page.evaluate("spad.views.pixel.isKept")


def test_history_restores_and_compares(open_page):
    page = open_page()
    first = draw(page)
    page.click("#dice")
    assert draw(page) != first
    page.locator("#history li").nth(1).get_by_role("button", name="Restore").click()
    assert images(page) == first and page.input_value("#seed") == "0"
    for box in page.locator("#history input").all():
        box.check()
    page.click("#compare")
    assert page.locator("#dialog img").count() == 8
    page.click("#close")


def test_guidance_and_steps_are_tabled(open_page):
    page = open_page()
    page.fill("#steps", "2")
    page.click("#sweep")
    wait_until(page, "document.querySelectorAll('#dialog td').length === 9")
    wait_until(page, IDLE)
    page.locator("#dialog td button").nth(5).click()
    wait_until(page, DRAWN)
    assert page.input_value("#steps") == "4"


def test_a_model_is_built_in_the_scene_and_saved(open_page, finished, tmp_path):
    import trimesh

    page = open_page()
    page.evaluate(
        """({ images, run, cameras }) => {
          const { state } = spad;
          state.size = { width: cameras.width, height: cameras.height };
          state.run = run;
          state.cameras.forEach(({ id }, view) => state.results.set(id,
            { png: images[view], image: `data:image/png;base64,${images[view]}` }));
          spad.show();
        }""",
        finished,
    )
    with page.expect_download() as saved:
        page.click("#zip")
    with zipfile.ZipFile(io.BytesIO(Path(saved.value.path()).read_bytes())) as archive:
        archive.extractall(tmp_path)
    assert len(load_cameras(tmp_path).cameras) == 4
    page.click("#build")
    page.wait_for_timeout(100)
    for _ in range(20):
        if page.evaluate("spad.rig.model !== null || spad.state.phase === 'error'"):
            break
        page.wait_for_timeout(3000)
    assert phase(page) == "done", page.inner_text("#status")
    # As wide as the table, with z up.
    box = page.evaluate(
        """() => { const corners = []; spad.rig.model.updateMatrixWorld(true);
        spad.rig.model.traverse((part) => { if (!part.isMesh) return;
          part.geometry.computeBoundingBox(); const { min, max } = part.geometry.boundingBox;
          for (const v of [min, max]) corners.push(v.clone().applyMatrix4(part.matrixWorld)); });
        const [a, b] = corners.map((corner) => corner.toArray());
        return a.map((value, i) => Math.abs(value - b[i])); }"""
    )
    assert np.allclose(box, [1.6, 1.0, 1.05], atol=0.25)
    with page.expect_download() as saved:
        page.click("#glb")
    assert len(trimesh.load(saved.value.path(), file_type="glb", force="mesh").faces) > 100
    page.uncheck("#shown")
    assert page.evaluate("spad.rig.model === null")


# Everywhere


def test_keys_alone_do(open_page):
    page = open_page()
    page.focus("#prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("a blue fish")
    page.keyboard.press("Enter")
    wait_until(page, "spad.state.abort !== null || spad.state.phase === 'done'")
    wait_until(page, DRAWN)
    assert "a blue fish" in page.inner_text("#status")
    before = place(page, 0)
    page.focus("#scene")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("-")
    after = place(page, 0)
    assert [a - b for a, b in zip(after[:3], before[:3], strict=True)] == pytest.approx([1, 5, 0.1])
    page.keyboard.press("PageDown")
    assert page.evaluate("spad.state.selected === spad.state.cameras[1].id")
    page.keyboard.press("Delete")
    assert page.locator("article").count() == 3


def test_a_phone_shows_all_and_takes_touches(open_page):
    page = open_page(size=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#draw").tap()
    wait_until(page, DRAWN)
    canvas = page.locator(".frame canvas").nth(0)
    canvas.scroll_into_view_if_needed()
    canvas.tap()
    wait_until(page, "spad.views.pixel !== null")
    small = page.evaluate(
        """[...document.querySelectorAll("button, select, input:not([type=checkbox], [hidden])")]
        .map((one) => [one.id || one.textContent, one.getBoundingClientRect().height])
        .filter(([, height]) => height > 0 && height < 38)"""
    )
    assert not small


@pytest.fixture(scope="session")
def web(tmp_path_factory) -> Path:
    """The page's sources with the packages that they are bundled from; skips without npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm; the page is bundled with Node.js")
    folder = tmp_path_factory.mktemp("web") / "web"
    shutil.copytree(ROOT / "web", folder, ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run([npm, "ci"], cwd=folder, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm ci failed, without network perhaps: {installed.stderr[-200:]}")
    return folder


def test_the_bundle_is_that_of_the_sources(web, tmp_path):
    subprocess.run(["node", "build.js", tmp_path], cwd=web, check=True)
    static, viewer = ROOT / "src/spad/app/static", ROOT / "docs/models/gallery.js"
    for name in ("app.js", "three.js", "three-license.txt", viewer.name):
        committed = viewer if name == viewer.name else static / name
        assert (tmp_path / name).read_bytes() == committed.read_bytes(), name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, web, scheme):
    page = open_page(color_scheme=scheme, bypass_csp=True)
    draw(page)
    page.locator("summary").first.click()
    page.evaluate((web / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then(({ violations }) => violations)")
    serious = [
        (one["id"], [node["html"] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious


def test_dark_is_dark(open_page):
    level = {}
    for scheme in ("light", "dark"):
        shot = open_page(color_scheme=scheme).screenshot()
        level[scheme] = float(np.asarray(Image.open(io.BytesIO(shot)).convert("L")).mean())
    assert level["light"] > 200 and level["dark"] < 80


def test_without_webgl_the_lists_work(open_page):
    page = open_page(
        script="""const get = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
          return kind.startsWith("webgl") ? null : get.call(this, kind, ...rest); };""",
    )
    assert page.evaluate("spad.rig === null") and "no 3D" in page.inner_text(".hint")
    assert all(draw(page))


def test_a_server_that_ends_is_said_and_awaited(open_page, tiny_pipeline_folder):
    with serving(model=str(tiny_pipeline_folder)) as other:
        page = open_page(at=other.address)
        draw(page)
    page.click("#draw")
    wait_until(page, "spad.state.phase === 'lost'")
    assert "does not answer" in page.inner_text("#status") and page.is_disabled("#draw")


def test_more_than_may_wait_are_told(open_page, tiny_pipeline_folder):
    with serving(model=str(tiny_pipeline_folder), waiting=1) as busy:
        pages = [open_page(at=busy.address) for _ in range(3)]
        for page in pages[:2]:
            page.fill("#steps", "900")
            page.click("#draw")
            page.wait_for_timeout(300)
        wait_until(pages[0], "document.querySelector('#status').textContent.startsWith('Drawing')")
        wait_until(pages[1], "spad.state.phase === 'queued'")
        pages[2].click("#draw")
        wait_until(pages[2], "spad.state.phase === 'error'")
        assert "wait" in pages[2].inner_text("#status")
        # A closed tab frees its place.
        pages[0].close()
        wait_until(pages[1], "document.querySelector('#status').textContent.startsWith('Drawing')")
        pages[1].click("#stop")
        draw(pages[2])
