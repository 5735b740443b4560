"""`spad epipolar`: read views, check the request, draw and write figures and pages."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import spad
from spad.cameras import Cameras, save_transforms
from spad.cameras.formats import cameras_record
from spad.files import (
    RECORD,
    check_file_output,
    check_output,
    json_text,
    slug,
    whole_folder,
    write_text,
)
from spad.generation.orbit import ORBIT_FLAGS, plan_orbit
from spad.geometry import epipolar_mask
from spad.geometry.correspondence import (
    PairTable,
    pair_table,
    suspect_views,
    twin_views,
    views_at_origin,
)
from spad.geometry.released_masks import released_mask
from spad.hub.registry import GenerationDefaults
from spad.images.posed import PNG_UNIT
from spad.visualize.config import EpipolarConfig
from spad.visualize.figures import (
    band_sheet,
    mask_sheet,
    plucker_channels_sheet,
    plucker_sheet,
    token_sheet,
)
from spad.visualize.toy_bear import render_stand_in
from spad.visualize.views import ShownViews, load_views

logger = logging.getLogger(__name__)

# A matrix of this many tokens squared takes 256 MB.
MOST_TOKENS = 16384
# In the head of a page, which may therefore be replaced.
_PAGE_MARK = "<title>Epipolar explorer</title>"


@dataclass(frozen=True)
class EpipolarReport:
    """Result of a run: files written and text to print, such as the table of pairs."""

    files: tuple[Path, ...]
    lines: tuple[str, ...] = ()


def run_epipolar(settings: EpipolarConfig, command: Sequence[str] = ()) -> EpipolarReport:
    """Draw the requested figures; suspicious cameras are logged as warnings.

    Raises: ValueError: bad input, in one line that names file and view. OSError: the output cannot
        be written. ModuleNotFoundError: an extra is missing.
    """
    capture = settings.save_capture
    wants_folder = _wants_figures(settings) or (settings.html is None and capture is None)
    folder = settings.output or _free_folder(settings)
    if wants_folder:
        check_output(folder, settings.overwrite)
    if settings.html is not None and not settings.html.absolute().parent.is_dir():
        raise ValueError(f"expected --html in a folder that exists, got {settings.html}")
    if settings.html is not None:
        check_file_output(settings.html, _PAGE_MARK)
    if capture is not None:
        if settings.source is not None:
            raise ValueError(
                f"expected cameras such as --views 4 with --save-capture, got {settings.source}"
            )
        check_output(capture, settings.overwrite)
    views = _views(settings)
    where = settings.source or "these cameras"
    view, xy = _pixels(settings, views)
    _warn_about(views.cameras, where)
    lines: list[str] = []
    table = None
    if views.depth is not None and (settings.source is not None or wants_folder):
        table = pair_table(
            views.cameras,
            views.depth,
            settings.cells,
            settings.band_width,
            _table_masks(settings, views),
        )
        lines = table_lines(table)
        _warn_about_table(table, where)
    shown, source = _shown(settings, views, view)
    files: list[Path] = []
    record = {"spad": spad.__version__, "command": list(command)}
    record |= {"cameras": cameras_record(views.cameras)}
    if wants_folder:
        with whole_folder(folder, settings.overwrite) as temporary:
            _write_figures(settings, shown, source, xy, temporary)
            if table is not None:
                write_text(temporary / "pairs.csv", table_csv(table))
            write_text(temporary / RECORD, json_text(record))
            names = sorted(p.name for p in temporary.iterdir() if p.name != RECORD)
        files += [folder / name for name in names]
    if capture is not None:
        with whole_folder(capture, settings.overwrite) as temporary:
            _write_capture(views, temporary)
            write_text(temporary / RECORD, json_text(record))
        files.append(capture)
    if settings.html is not None:
        from spad.visualize.explorer import explorer_page

        band = settings.band_width * _cell(shown.cameras, settings.cells)
        page = explorer_page(shown, band, *_depths(settings), source)
        write_text(settings.html, page)
        files.append(settings.html)
    return EpipolarReport(tuple(files), tuple(lines))


def table_lines(table: PairTable) -> list[str]:
    """The shares of points inside the exact bands, per cent, as lines of text."""
    lines = []
    for name, counts in table.inside.items():
        share = (100 * table.share(counts)).tolist()
        lines.append(
            f"true points inside the {name} bands, per cent (from the view of the row to that of "
            "the column; -- sees none):"
        )
        lines.append("     " + "".join(f"{view:5}" for view in range(len(share))))
        for view, row in enumerate(share):
            cells = ["   --" if math.isnan(x) else f"{math.floor(x):5}" for x in row]
            cells[view] = "    ."
            lines.append(f"{view:5}" + "".join(cells))
    return lines


def table_csv(table: PairTable) -> str:
    """One line for each pair of views: points, confirmed ones, and those inside each mask."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["from", "to", "points", "confirmed", *(f"inside_{n}" for n in table.inside)])
    columns = [table.points, table.found, *table.inside.values()]
    for i, j in (1 - torch.eye(len(table.points))).nonzero().tolist():
        writer.writerow([i, j, *(int(column[i, j]) for column in columns)])
    return text.getvalue()


def _wants_figures(settings: EpipolarConfig) -> bool:
    asked = (settings.pixel, settings.grid, settings.sweep, settings.masks, settings.output)
    return settings.plucker or any(value is not None for value in asked)


def _free_folder(settings: EpipolarConfig) -> Path:
    name = "orbit"
    if settings.source is not None:
        path = settings.source.absolute()
        name = slug(path.name if path.is_dir() else path.parent.name)
    folder = Path("spad-out", f"epipolar-{name}")
    numbers = itertools.count(2)
    while folder.exists() and not settings.overwrite:
        folder = folder.with_name(f"epipolar-{name}-{next(numbers)}")
    return folder


def _views(settings: EpipolarConfig) -> ShownViews:
    given = [name for name in (*ORBIT_FLAGS, "image_size") if getattr(settings, name) is not None]
    if settings.source is not None:
        if given:
            raise ValueError(
                f"expected either {settings.source} or --{given[0].replace('_', '-')}, got both"
            )
        return load_views(settings.source, settings.images, settings.depth, settings.depth_scale)
    if settings.images is not None or settings.depth is not None:
        raise ValueError(
            "expected cameras to go with --images and --depth, got none; name a folder"
        )
    if not given:
        raise ValueError(
            "expected a folder of images with cameras, or cameras such as --views 4, got neither"
        )
    orbit = plan_orbit(
        settings.views,
        settings.elevation,
        settings.azimuth,
        settings.radius,
        settings.fov_deg,
        default_views=4,
        defaults=GenerationDefaults(),
    )
    side = settings.image_size or 256
    cameras = orbit.cameras(side, side)
    images, depth = render_stand_in(cameras)
    names = tuple(f"view {view}" for view in range(len(cameras)))
    return ShownViews(cameras, images, names, depth)


def _pixels(settings: EpipolarConfig, views: ShownViews) -> tuple[int, Tensor]:
    """The source view and the positions (n, 2) of its pixels."""
    view, count = settings.view, len(views.cameras)
    for name, index in (("--view", view), *(("--to", other) for other in settings.to)):
        if not 0 <= index < count:
            raise ValueError(f"expected {name} from 0 to {count - 1}, got {index}")
    height, width = views.cameras.height, views.cameras.width
    if settings.pixel is not None and settings.grid is not None:
        raise ValueError("expected --pixel or --grid, got both")
    if settings.grid is not None:
        rows, columns = settings.grid
        if not (1 <= rows <= height and 1 <= columns <= width):
            raise ValueError(
                f"expected --grid of 1 to {height} rows and 1 to {width} columns, got {rows} "
                f"{columns}"
            )
        y = height * (0.5 + torch.arange(rows)) / rows
        x = width * (0.5 + torch.arange(columns)) / columns
        return view, torch.cartesian_prod(y, x).reshape(-1, 2).flip(-1).floor() + 0.5
    row, column = settings.pixel or (height // 2, width // 2)
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(
            f"expected --pixel with a row from 0 to {height - 1} and a column from 0 to "
            f"{width - 1}, got {row} {column}"
        )
    return view, torch.tensor([[column + 0.5, row + 0.5]])


def _shown(settings: EpipolarConfig, views: ShownViews, view: int) -> tuple[ShownViews, int]:
    """The views to draw, in their own order, and the index of the source among them."""
    if not settings.to:
        return views, view
    indices = sorted({view, *settings.to})
    return views.chosen(indices), indices.index(view)


def _depths(settings: EpipolarConfig) -> tuple[float, float]:
    """Nearest and farthest depth of the rays, world units."""
    return settings.near, math.inf if settings.far is None else settings.far


def _cell(cameras: Cameras, cells: int) -> float:
    """Side of a token in pixels."""
    return max(cameras.height, cameras.width) / cells


def _masks(settings: EpipolarConfig, views: ShownViews) -> dict[str, Tensor]:
    grid = views.cameras.fit(settings.cells)
    tokens = len(grid) * grid.height * grid.width
    if tokens > MOST_TOKENS:
        raise ValueError(
            f"expected masks of up to {MOST_TOKENS} tokens, got {tokens}; try fewer --cells, or "
            "some views with --to"
        )
    masks = {}
    if settings.masks in ("exact", "both"):
        near, far = _depths(settings)
        masks["exact"] = epipolar_mask(
            views.cameras, grid.height, grid.width, settings.band_width, near, far
        )
    if settings.masks in ("original", "both"):
        masks["original"] = released_mask(views.cameras, settings.cells)
    return masks


def _table_masks(settings: EpipolarConfig, views: ShownViews) -> dict[str, Tensor] | None:
    if settings.masks not in ("original", "both"):
        return None
    return {"original": released_mask(views.cameras, settings.cells)}


def _write_figures(
    settings: EpipolarConfig, views: ShownViews, view: int, xy: Tensor, folder: Path
) -> None:
    near, far = _depths(settings)
    band = settings.band_width * _cell(views.cameras, settings.cells)
    sheets = {}
    others = (settings.sweep, settings.masks, settings.plucker or None)
    if settings.pixel or settings.grid or not any(others):
        sheets["pixels"] = band_sheet(views, view, xy, band, near, far)
    if settings.masks is not None:
        masks = _masks(settings, views)
        sheets["masks"] = mask_sheet(masks, views.names)
        if settings.masks == "both":
            sheets["tokens"] = token_sheet(views, view, xy[0], settings.cells, masks)
    if settings.plucker:
        sheets["plucker"] = plucker_sheet(views)
        sheets["plucker-channels"] = plucker_channels_sheet(views)
    for name, sheet in sheets.items():
        for suffix in settings.formats:
            sheet.save(folder / f"{name}.{suffix}")
    if settings.sweep is not None:
        from spad.visualize.animation import save_sweep, sweep_frames, wandering_pixels

        path = wandering_pixels(views.cameras.height, views.cameras.width, settings.sweep_pixels)
        frames = sweep_frames(views, view, path, band, settings.panel, near, far)
        save_sweep(folder / f"sweep.{settings.sweep}", frames)


def _write_capture(views: ShownViews, folder: Path) -> None:
    """Write images, depth maps as nerfstudio has them, and cameras."""
    assert views.depth is not None
    depth = torch.where(views.depth.isfinite(), views.depth / PNG_UNIT, 0).round()
    names: dict[str, list[str]] = {"images": [], "depth": []}
    for name, pixels in (("images", views.images), ("depth", depth.numpy().astype("uint16"))):
        (folder / name).mkdir()
        for view, image in enumerate(pixels):
            names[name].append(f"{name}/{view:03d}.png")
            Image.fromarray(image).save(folder / names[name][-1])
    path = folder / "transforms.json"
    save_transforms(path, views.cameras, names["images"], depth_file_path=names["depth"])


def _warn_about(cameras: Cameras, where: Path | str) -> None:
    for view in views_at_origin(cameras):
        logger.warning(
            "%s: the camera of view %d has a zero translation: it stands at the world's origin, "
            "unlike the others; its bands are wrong if that is not so",
            where,
            view,
        )
    twins = [f"{first} and {second}" for first, second in twin_views(cameras)]
    if twins:
        more = f" and {len(twins) - 4} more pairs" if len(twins) > 4 else ""
        logger.warning(
            "%s: views %s%s have identical cameras; a pixel's band is then one spot",
            where,
            ", ".join(twins[:4]),
            more,
        )


def _warn_about_table(table: PairTable, where: Path | str) -> None:
    suspects = suspect_views(table)
    count = len(table.points)
    if len(suspects) == count == 2 or 2 * len(suspects) > count:
        off = 1 - torch.eye(count, dtype=torch.long)
        share = (table.found * off).sum() / (table.points * off).sum().clamp(min=1)
        logger.warning(
            "%s: cameras and depth maps disagree in most views, %.0f %% of the points are "
            "confirmed; is --depth-scale right, and is depth along the camera's axis?",
            where,
            100 * float(share),
        )
        return
    for suspect in suspects:
        if math.isnan(suspect.share):
            found = "it shares no visible surface with the other views"
        else:
            found = f"depth confirms {100 * suspect.share:.0f} % of the points it shares"
        logger.warning(
            "%s: suspect camera: view %d; %s (%.0f %% among the other views)",
            where,
            suspect.view,
            found,
            100 * suspect.others,
        )
