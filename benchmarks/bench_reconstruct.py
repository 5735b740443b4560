"""How well models made of true views fit their objects, beside their visual hulls, as a table.

    python benchmarks/bench_reconstruct.py MODELS.jsonl --objects 20 --output report.md
        [--network RUN/model]

Objects are drawn at random from the held-out ones of an index or a folder of models. Each is
rendered (embree) from rings of views 20 degrees above the horizon, and from 12 other places between
10 degrees below and 60 above, by which models are scored: outlines (IoU) and PSNR of the whole
image, on white. Shapes are compared with what of the object can be seen from outside. The visual
hull on 128 cells goes through the same simplification and texture. Times are processor seconds of
one core, from views in memory to a model file; ratios and differences are taken object by object.
With --network, models are those of a network of `spad train-reconstructor`, not fitted ones.
"""

import argparse
import platform
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
from bench_start import processor, publish

from spad.cameras import Cameras
from spad.data.assets import find_assets
from spad.data.config import RenderConfig
from spad.data.renders import is_held_out
from spad.data.view_sets import ViewSet
from spad.data.workers import num_cores
from spad.evaluation.mesh_scores import judging_cameras, mean_iou, rendered_set
from spad.evaluation.psnr_ssim import psnr
from spad.evaluation.shape import ShapeScores, compare_shapes, surface_points, visible_points
from spad.geometry.focus import object_ball
from spad.meshes.mesh import TriangleMesh, load_object
from spad.meshes.raycast import Light
from spad.reconstruction.hull_field import cuts_off, hull_distance, outline_distance
from spad.reconstruction.learned_surface import load_network, predict_surface
from spad.reconstruction.mesh_extraction import extract_mesh, is_watertight
from spad.reconstruction.model_views import draw_model, on_white
from spad.reconstruction.surface import DistanceGrid, box_of_hull, fit_surface, grid_over
from spad.reconstruction.texture import texture_mesh
from spad.reconstruction.textured_mesh import TexturedMesh

ELEVATION_DEG, FACES, HULL_CELLS, DELIT_VIEWS = 20.0, 10_000, 128, 8
BASE_COLOR = Light(ground=1.0, sky=1.0, key=0.0, fill=0.0)


@dataclass(frozen=True)
class Result:
    """One model against its object."""

    shape: ShapeScores
    iou: float
    psnr: float
    watertight: bool
    kilobytes: float
    seconds: float


Row = tuple[Result, Result, float | None]


def hull_of(alpha: torch.Tensor, cameras: Cameras) -> DistanceGrid:
    outlines, cut_off = outline_distance(alpha), cuts_off(alpha)
    box = box_of_hull(outlines, cameras, cut_off, object_ball(cameras))
    assert box is not None
    grid = grid_over(*box, HULL_CELLS)
    distance = hull_distance(grid.points(), outlines, cameras, cut_off) / grid.cell
    return DistanceGrid(grid, distance, torch.zeros(len(grid), 3), distance)


def against(mesh: TexturedMesh, true: ViewSet, light: Light | None = None) -> tuple[float, float]:
    """IoU and PSNR of images of a model, means over views."""
    drawn = ViewSet("model", None, *on_white(draw_model(mesh, true.cameras, light)), true.cameras)
    return mean_iou(drawn, true), float(psnr(drawn.images, true.images).mean())


def measure(
    obj: TriangleMesh, truth, num_views: int, size: int, find: Callable[..., DistanceGrid]
) -> Row:
    """The hull, the model by the surface that `find` gives, and what dividing the light out gains,
    dB, at eight views."""
    views = rendered_set(obj, Cameras.ring(num_views, ELEVATION_DEG, height=size, width=size))
    held_out = rendered_set(obj, judging_cameras(size))
    texture_size = 4 * size
    results, meshes = [], []
    for is_hull in (True, False):
        started = time.process_time()
        images = (views.images - 1 + views.alpha[:, None]).clamp(0, 1)
        if is_hull:
            surface = hull_of(views.alpha, views.cameras)
        else:
            surface = find(images, views.alpha, views.cameras, object_ball(views.cameras))
        closed = extract_mesh(surface, FACES)
        mesh = texture_mesh(closed, images, views.alpha, views.cameras, texture_size)
        (data,) = mesh.files("model.glb").values()
        seconds = time.process_time() - started
        shape = compare_shapes(surface_points(mesh.vertices, mesh.faces), truth)
        whole = is_watertight(mesh.vertices, mesh.faces)
        results.append(Result(shape, *against(mesh, held_out), whole, len(data) / 1000, seconds))
        meshes.append((closed, mesh))
    if num_views != DELIT_VIEWS:
        return results[0], results[1], None
    base = rendered_set(obj, held_out.cameras, BASE_COLOR)
    closed, lit = meshes[1]
    delit = texture_mesh(closed, images, views.alpha, views.cameras, texture_size, Light())
    gain = against(delit, base, BASE_COLOR)[1] - against(lit, base)[1]
    return results[0], results[1], gain


def table_row(num_views: int, size: int, rows: list[Row]) -> str:
    def middle(of, which: int = 1) -> float:
        return statistics.median(of(row[which]) for row in rows)

    ratios = [model.shape.chamfer / hull.shape.chamfer for hull, model, _ in rows]
    gains = [model.psnr - hull.psnr for hull, model, _ in rows]
    iou = [statistics.mean(row[which].iou for row in rows) for which in (0, 1)]
    delit = [gain for *_, gain in rows if gain is not None]
    cells = [
        f"{num_views} of {size}²",
        f"{middle(lambda r: r.shape.chamfer, 0):.4f} → {middle(lambda r: r.shape.chamfer):.4f}",
        f"{statistics.median(ratios):.2f} ({max(ratios):.2f})",
        f"{middle(lambda r: r.shape.normals, 0):.3f} → {middle(lambda r: r.shape.normals):.3f}",
        f"{iou[0]:.3f} → {iou[1]:.3f}",
        f"{middle(lambda r: r.psnr, 0):.1f} → {middle(lambda r: r.psnr):.1f}",
        f"{statistics.median(gains):+.1f} ({min(gains):+.1f})",
        f"{statistics.median(delit):+.1f}" if delit else "",
        f"{sum(model.watertight for _, model, _ in rows)} of {len(rows)}",
        f"{middle(lambda r: r.kilobytes):.0f} ({max(m.kilobytes for _, m, _ in rows):.0f})",
        f"{middle(lambda r: r.seconds, 0):.1f} → {middle(lambda r: r.seconds):.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def object_line(name: str, num_views: int, size: int, row: Row) -> str:
    hull, model, gain = row
    delit = "" if gain is None else f"{gain:+.1f}"
    return (
        f"| {name} | {num_views} of {size}² | {hull.shape.chamfer:.4f} → {model.shape.chamfer:.4f} "
        f"| {hull.iou:.3f} → {model.iou:.3f} | {hull.psnr:.1f} → {model.psnr:.1f} | {delit} "
        f"| {model.seconds:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, help="an index (.jsonl) or a folder of models")
    parser.add_argument("--root", type=Path, help="folder that the index's paths start from")
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--views", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--seed", type=int, default=0, help="of the choice of objects")
    parser.add_argument("--network", type=Path, help="gives the surface, in place of fitting")
    parser.add_argument("--output", type=Path, help="Markdown file to write as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    find = fit_surface
    if options.network is not None:
        find = partial(predict_surface, load_network(options.network))
    assets = find_assets(RenderConfig(options.models, Path(), root=options.root))
    held_out = [asset for asset in assets if is_held_out(asset.uid)]
    chosen = random.Random(options.seed).sample(held_out, options.objects)
    rows: dict[tuple[int, int], list[Row]] = {}
    lines = []
    for asset in chosen:
        obj = load_object(asset.path)
        truth = visible_points(obj)
        for size in options.sizes:
            for num_views in options.views:
                row = measure(obj, truth, num_views, size, find)
                rows.setdefault((num_views, size), []).append(row)
                lines.append(object_line(asset.path.stem, num_views, size, row))
                print(lines[-1], flush=True)
    heads = (
        "views | Chamfer, hull → model | ratio, median (largest) | normals | IoU | PSNR | gain dB, "
        "median (least) | de-lit dB | watertight | GLB kB (largest) | CPU s, hull → model"
    )
    report = [
        "# Models from true views",
        "",
        f"{len(chosen)} held-out objects of {len(held_out)}, seed {options.seed}; {date.today()}, "
        f"{processor()}, {num_cores()} cores, one thread, Python {platform.python_version()}, "
        f"torch {torch.__version__}. Medians; IoU is the mean. Most memory of the whole run: "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB.",
        "",
        f"| {heads} |",
        "|" + "---|" * (heads.count("|") + 1),
        *(table_row(*key, found) for key, found in sorted(rows.items(), key=lambda x: x[0][::-1])),
        "",
        "| object | views | Chamfer | IoU | PSNR | de-lit dB | CPU s |",
        "|---|---|---|---|---|---|---|",
        *lines,
    ]
    publish("\n".join(report), options.output)


if __name__ == "__main__":
    main()
