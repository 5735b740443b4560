"""`spad epipolar`: what it writes, what it says, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spad.cameras import Cameras, save_colmap, save_transforms
from spad.cli import main
from spad.images.sheet import Mark, Panel, Sheet, draw_sheet
from spad.installation import install_command
from spad.visualize.animation import wandering_pixels
from spad.visualize.figures import mask_sheet
from spad.visualize.toy_bear import render_stand_in
from spad.visualize.views import load_views

SMALL = ("--views", "3", "--image-size", "48", "--cells", "12", "--panel", "64")


@pytest.fixture
def epipolar(tmp_path, monkeypatch):
    """Runs `spad epipolar ...` in an empty folder, returns the exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["epipolar", *map(str, arguments)])


@pytest.fixture
def capture(tmp_path) -> Path:
    """A folder of four views of the bear, 40 x 64 pixels, with transforms.json and depth."""
    cameras = Cameras.orbit([10, 25, 10, 40], [-110, -60, -20, 40], height=40, width=64)
    pictures, depth = render_stand_in(cameras, samples_per_side=1)
    folder = tmp_path / "capture"
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    for view in range(4):
        Image.fromarray(pictures[view]).save(folder / f"images/{view:03d}.png")
        millis = torch.where(depth[view].isfinite(), depth[view] * 1000, 0).round()
        Image.fromarray(millis.numpy().astype(np.uint16)).save(folder / f"depth/{view:03d}.png")
    save_transforms(folder / "transforms.json", cameras, [f"images/{v:03d}.png" for v in range(4)])
    return folder


def edit(capture: Path, change) -> None:
    path = capture / "transforms.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_cameras_alone_give_every_figure_in_every_format(epipolar, capsys):
    flags = ("--pixel", 20, 24, "--masks", "both", "--plucker", "--sweep", "gif")
    formats = ("--sweep-pixels", 5, "--formats", "png", "pdf", "svg")
    assert epipolar(*SMALL, *flags, *formats, "--output", "out") == 0
    figures = ("masks", "pixels", "plucker", "plucker-channels", "tokens")
    wanted = {f"{name}.{suffix}" for name in figures for suffix in ("png", "pdf", "svg")}
    wanted |= {"sweep.gif", "pairs.csv"}
    assert {p.name for p in Path("out").iterdir()} == wanted | {"run.json"}
    printed = capsys.readouterr().out
    assert all(str(Path("out", name)) in printed for name in wanted)
    assert Path("out/pixels.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in Path("out/pixels.svg").read_text()[:2000]
    with Image.open("out/sweep.gif") as animation:
        assert animation.n_frames == 5 and animation.size == (3 * 64 + 2 * 4, 64)


def test_vector_files_are_repeatable(epipolar):
    for folder in ("a", "b"):
        assert epipolar(*SMALL, "--formats", "pdf", "svg", "--output", folder) == 0
    for name in ("pixels.pdf", "pixels.svg"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_depth_gives_a_table_and_a_file_of_pairs(epipolar, capture, capsys):
    assert epipolar(capture, "--depth", capture / "depth", "--output", "out") == 0
    captured = capsys.readouterr()
    assert "inside the exact bands" in captured.out and "warning" not in captured.err
    with open("out/pairs.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert all(0 <= int(r["inside_exact"]) <= int(r["confirmed"]) <= int(r["points"]) for r in rows)


def test_a_zero_translation_is_said_with_and_without_depth(epipolar, capture, capsys):
    def lose_translation(data):
        for row in data["frames"][2]["transform_matrix"][:3]:
            row[3] = 0.0

    edit(capture, lose_translation)
    assert epipolar(capture) == 0
    warning = capsys.readouterr().err
    assert str(capture) in warning and "view 2 has a zero translation" in warning
    assert "suspect" not in warning
    assert epipolar(capture, "--depth", capture / "depth") == 0
    assert "suspect camera: view 2;" in capsys.readouterr().err


def test_a_wrong_depth_scale_blames_no_view(epipolar, capture, capsys):
    assert epipolar(capture, "--depth", capture / "depth", "--depth-scale", 0.0004) == 0
    warning = capsys.readouterr().err
    assert "is --depth-scale right" in warning and "suspect" not in warning


def test_identical_cameras_are_said(epipolar, capsys):
    assert epipolar("--azimuth", 10, 10, 80, "--image-size", 32) == 0
    assert "views 0 and 1 have identical cameras" in capsys.readouterr().err


def test_only_some_views_can_be_shown(epipolar, capture):
    assert epipolar(capture, "--view", 3, "--to", 1, "--output", "two") == 0
    assert epipolar(capture, "--output", "four") == 0
    sizes = [Image.open(f"{name}/pixels.png").size for name in ("two", "four")]
    assert sizes[0][0] < sizes[1][0] and sizes[0][1] == sizes[1][1]


def test_a_page_alone_makes_no_folder(epipolar, capture):
    assert epipolar(capture, "--html", "page.html") == 0
    assert Path("page.html").read_text().startswith("<!doctype html>")
    assert sorted(p.name for p in Path().iterdir()) == ["capture", "page.html"]


def test_a_failed_run_leaves_nothing(epipolar, capsys):
    assert epipolar("--views", 6, "--image-size", 32, "--cells", 64, "--masks", "exact") == 2
    assert "expected masks of up to 16384 tokens, got 24576" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_saved_capture_can_be_read_and_confirms_itself(epipolar, capsys):
    assert epipolar(*SMALL, "--save-capture", "bear") == 0
    assert [path.name for path in Path().iterdir()] == ["bear"]
    assert capsys.readouterr().out == "bear\n"
    assert epipolar("bear", "--cells", 12, "--depth", "bear/depth", "--output", "out") == 0
    assert "suspect" not in capsys.readouterr().err
    views = load_views(Path("bear"), depth=Path("bear/depth"))
    images, depth = render_stand_in(views.cameras)
    assert np.array_equal(views.images, images)
    torch.testing.assert_close(views.depth, depth, atol=6e-4, rtol=0)
    assert epipolar(*SMALL, "--save-capture", "bear") == 2
    assert epipolar("bear", "--save-capture", "other") == 2


def test_colmap_pictures_are_found_beside_sparse(capture):
    views = load_views(capture)
    names = [f"{view:03d}.png" for view in range(4)]
    save_colmap(capture / "sparse" / "0", views.cameras, names)
    (capture / "transforms.json").unlink()
    for source in (capture, capture / "sparse" / "0"):
        again = load_views(source)
        assert np.array_equal(again.images, views.images)
        torch.testing.assert_close(again.cameras.world_from_cam, views.cameras.world_from_cam)


def test_depth_files_of_all_kinds_say_the_same(capture, tmp_path):
    exr = pytest.importorskip("OpenEXR")
    depth = load_views(capture, depth=capture / "depth").depth
    for kind in ("npy", "exr"):
        folder = tmp_path / kind
        folder.mkdir()
        for view in range(4):
            values = torch.where(depth[view].isfinite(), depth[view], 1e10).numpy()
            if kind == "npy":
                np.save(folder / f"{view:03d}.npy", values)
            else:
                header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
                exr.File(header, {"Z": values}).write(str(folder / f"{view:03d}.exr"))
        torch.testing.assert_close(load_views(capture, depth=folder).depth, depth)


def set_in_frame(index, name, value):
    return lambda data: data["frames"][index].__setitem__(name, value)


def scale_pose(index, by):
    def change(data):
        pose = np.array(data["frames"][index]["transform_matrix"])
        pose[:3, 0] *= by
        data["frames"][index]["transform_matrix"] = pose.tolist()

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(frames=[]), "transforms.json: expected a list 'frames'"),
        (set_in_frame(1, "file_path", "gone.png"), "image 'gone.png' of view 1, got no such file"),
        (lambda d: [f.pop("file_path") for f in d["frames"]], "got a file that names none"),
        (scale_pose(2, float("nan")), "expected frames[2].transform_matrix[0][0] to be finite"),
        (scale_pose(2, 1.5), "transforms.json: expected a rotation in the pose of camera 2"),
        (scale_pose(2, -1), "transforms.json: expected a right-handed pose of camera 2"),
        (set_in_frame(1, "fl_x", 0), "expected focal lengths above 0 pixels for camera 1"),
        (set_in_frame(1, "w", 65), "got 64x40 of view 0 and 65x40 of view 1"),
    ],
)
def test_wrong_files_get_one_line_that_names_file_and_view(
    epipolar, capture, capsys, change, message
):
    edit(capture, change)
    assert epipolar(capture) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(capture) in lines[0] and message in lines[0]


def test_a_picture_of_another_size_is_named(epipolar, capture, capsys):
    Image.new("RGB", (32, 20)).save(capture / "images/001.png")
    assert epipolar(capture) == 2
    message = "001.png: expected 64x40 pixels (width x height)"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "expected a folder of images with cameras, or cameras such as --views 4"),
        (("nowhere",), "nowhere: expected a readable file"),
        (("--views", 3, "--pixel", 256, 0), "expected --pixel with a row from 0 to 255"),
        (("--views", 3, "--pixel", 0, -1), "expected --pixel of at least 0, got -1"),
        (("--views", 3, "--view", 3), "expected --view from 0 to 2, got 3"),
        (("--views", 3, "--to", 9), "expected --to from 0 to 2, got 9"),
        (("--views", 3, "--grid", 0, 2), "expected --grid of at least 1, got 0"),
        (("--views", 3, "--pixel", 1, 1, "--grid", 2, 2), "expected --pixel or --grid, got both"),
        (("--views", 3, "--elevation", 1, 2), "expected 3 values of --elevation, got 2"),
        (("--views", 3, "--depth", "x"), "expected cameras to go with --images and --depth"),
        (("--views", 3, "--html", "no/page.html"), "expected --html in a folder that exists"),
        (
            ("--views", 17, "--image-size", 16, "--html", "p.html"),
            "expected up to 16 views on a page",
        ),
    ],
)
def test_wrong_requests_get_one_line(epipolar, capsys, flags, message):
    assert epipolar(*flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not list(Path().iterdir())


def test_settings_are_checked(epipolar, capsys):
    assert epipolar("--views", 3, "--band-width", 1) == 2
    assert "expected --band-width of at least 1.415, got 1" in capsys.readouterr().err
    assert epipolar("--views", 3, "--near", 2, "--far", 1) == 2
    assert "expected near below far, got 2 and 1" in capsys.readouterr().err


def test_a_missing_extra_names_its_command(epipolar, capture, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert epipolar(*SMALL, "--formats", "pdf") == 1
    assert install_command("plot") in capsys.readouterr().err


def test_both_formats_of_a_sheet_have_one_layout():
    panel = Panel(np.zeros((40, 80, 3), np.uint8), "title", (Mark(10, 10, (0, 0, 0), "cross"),))
    wide = Sheet(((panel, panel),), "A sheet", ("row",), (((9, 9, 9), "a"), ("dot", "b")))
    assert draw_sheet(wide).width > draw_sheet(Sheet(((panel,),))).width


def test_mask_pictures_show_what_differs():
    mask = torch.block_diag(*torch.ones(2, 4, 4)).bool()
    mask[1, 6] = True
    other = mask.clone()
    other[0, 7] = True
    sheet = mask_sheet({"a": mask, "b": other}, ["view 0", "view 1"])
    same, _, differ = sheet.rows[0]
    assert "50.0% differ" in differ.title and same.image.shape == differ.image.shape
    colors = {tuple(c) for c in differ.image.reshape(-1, 3).tolist()}
    assert len(colors) == 3  # white, in both, only in b


def test_sweeps_stay_in_the_picture_and_close():
    xy = wandering_pixels(30, 50, 400)
    assert ((xy > 0) & (xy < torch.tensor([50.0, 30.0]))).all()
    assert float((xy[0] - xy[-1]).norm()) < 2


def test_the_bear_is_where_its_depth_says():
    cameras = Cameras.orbit([0, 30], [-90, 20], height=48, width=48)
    pictures, depth = render_stand_in(cameras)
    assert pictures.shape == (2, 48, 48, 3) and (pictures[:, 0] == 255).all()
    rows, columns = depth[0].isfinite().nonzero().unbind(1)
    xy = torch.stack([columns, rows], -1) + 0.5
    points = cameras[0].unproject(xy[None], depth[0][rows, columns][None])[0]
    assert float(points.norm(dim=-1).max()) < 1.0
    assert float(points[:, 1].mean()) < 0  # seen from -y, the surface faces -y


def test_the_example_of_the_page_runs(capture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[2] / "docs" / "geometry.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["rays"].shape == (4, 6, 32, 32) and names["lit"].shape == (4, 40, 64)
