"""`spad reconstruct`: a watertight, textured 3D model from posed images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras
from spad.data.renders import list_sets
from spad.data.view_sets import PosedImages, ViewSet, resized
from spad.files import RECORD, check_new_files, read_json, slug, whole_file
from spad.geometry.focus import Ball, object_ball
from spad.meshes.raycast import Light
from spad.reconstruction.agreement import Disagreement, disagreeing_views
from spad.reconstruction.config import ReconstructConfig
from spad.reconstruction.hull_field import cuts_off, outline_distance
from spad.reconstruction.mesh_extraction import extract_mesh
from spad.reconstruction.model_views import draw_model, on_white, turntable
from spad.reconstruction.scores import FITTED, HELD_OUT, LEFT_OUT, Scores, score_views
from spad.reconstruction.splats import Splats, fit_splats
from spad.reconstruction.surface import (
    DRAWN_SMOOTHNESS,
    DistanceGrid,
    FitSettings,
    fit_surface,
)
from spad.reconstruction.texture import texture_mesh
from spad.reconstruction.textured_mesh import TexturedMesh, model_files

if TYPE_CHECKING:
    from spad.reconstruction.learned_surface import SurfaceNetwork

FEWEST_VIEWS = 3
_LONGEST_SIDE, _SPLATS_SIDE = 1024, 256
# Whether views agree is judged on a coarse grid, for which larger masks tell nothing more.
_JUDGED_SIDE = 256
# Views within so many degrees of each other see one side of the object.
_ONE_SIDE_DEG = 75.0
# Share of the outlines' area that may be missing before it is said.
_MISSING = 0.03
# Pixels this far below white are nearly white; the background of most images is nearer to it.
_NEARLY_WHITE = 0.04
# Share of such pixels, for one of the object's, that neither outlines and compression explain nor
# the traces that models leave in the background.
_MUCH_NEARLY_WHITE = 0.35
# Of the filter, by how much more smoothness is asked for than true views need.
_ROUNDS, _MOST_ROUNDS = 500, 1000


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A model made from views, and how well it agrees with them.

    Attributes:
        mesh: in the cameras' world: z up, their units.
        scores: by view, of those that were read.
        notes: sentences on what the views left open, or had wrong.
    """

    mesh: TexturedMesh
    scores: Scores
    notes: tuple[str, ...]

    def save(self, path: str | Path) -> list[Path]:
        """Write the model as .glb, .obj, .ply or .stl; returns the files, for .obj three.

        Raises: ValueError: another suffix. OSError: it cannot be written.
        """
        return write_model(self.mesh, Path(path))

    def save_turntable(self, path: str | Path) -> None:
        """Write an animation of the model that turns, as .webp or .gif."""
        path = Path(path)
        with whole_file(path) as unfinished:
            unfinished.write_bytes(turntable(self.mesh, path.suffix[1:].lower()))


def write_model(mesh: TexturedMesh, path: Path) -> list[Path]:
    """Write a model as .glb, .obj, .ply or .stl; returns the files, for .obj three.

    Raises: ValueError: another suffix. OSError: it cannot be written.
    """
    written = []
    for name, data in mesh.files(path.name).items():
        with whole_file(path.with_name(name)) as unfinished:
            unfinished.write_bytes(data)
        written.append(path.with_name(name))
    return written


def reconstruct(
    views: ViewSet,
    faces: int = 10_000,
    texture_size: int | None = None,
    cells: int | None = None,
    light: Light | None = None,
    hold_out: int = 0,
    device: torch.device | str | None = None,
    names: Sequence[str] | None = None,
    network: SurfaceNetwork | None = None,
    smoothness: float = FitSettings.smoothness,
) -> Reconstruction:
    """Make a watertight, textured model from views of one object.

    A visual hull of the masks is refined to a signed-distance grid that shows the images' colors
    and masks, then made a mesh, unwrapped and textured. A view that disagrees with the others is
    left out and named.

    Args:
        views: three or more, from different sides, with alpha.
        faces, texture_size, cells, hold_out, device: as in `ReconstructConfig`.
        light: the one the views were made under, to be divided out of the colors.
        names: of the views, for notes and scores; "view 0", "view 1" and so on if None.
        network: gives the surface, in place of fitting one.
        smoothness: as in `ReconstructConfig`; `DRAWN_SMOOTHNESS` for views that a model drew.

    Raises: ValueError: too few views, one that shows nothing, or masks that agree on nothing.
    """
    names = [f"view {view}" for view in range(len(views))] if names is None else list(names)
    uses = _uses(len(views), hold_out)
    images, alpha, cameras = _premultiplied(views, names)
    ball = object_ball(cameras)
    fitted = _fitted(uses)
    notes = _notes_on(alpha[fitted], cameras[fitted], ball, [names[i] for i in fitted])
    if views.alpha_is_estimated:
        notes += _notes_on_white(views, names)
    for one in _disagreements(alpha[fitted], cameras[fitted], ball):
        view = fitted[one.view]
        uses[view] = LEFT_OUT
        notes.append(
            f"{names[view]} is left out: the others' outlines are filled to "
            f"{one.filled_without:.0%} without it, to {one.filled_with:.0%} with it; "
            "its camera is wrong, or it sees a thin part from its edge"
        )
    fitted = _fitted(uses)
    target = _device(device)
    surface = _finder(network, smoothness)(
        images[fitted].to(target),
        alpha[fitted].to(target),
        cameras[fitted].to(target),
        Ball(ball.center.to(target), ball.radius),
        cells,
    )
    closed = extract_mesh(surface, faces, _filter_rounds(smoothness))
    if closed.num_parts > 1:
        notes.append(f"the model has {closed.num_parts} separate parts")
    mesh = texture_mesh(
        closed,
        images[fitted],
        alpha[fitted],
        cameras[fitted],
        texture_size or _texture_size(cameras),
        light,
    )
    drawn = on_white(draw_model(mesh, cameras, light))
    scores = score_views(*drawn, images + 1 - alpha[:, None], alpha, names, uses)
    lost = (alpha - drawn[1]).clamp(min=0).sum((1, 2)) / alpha.sum((1, 2))
    if float(lost[fitted].mean()) > _MISSING:
        notes.append(
            f"{float(lost[fitted].mean()):.0%} of the outlines' area is missing: parts thinner "
            f"than a cell, {surface.grid.cell:.2g} world units, or views that disagree"
        )
    return Reconstruction(mesh, scores, tuple(notes))


def splats_of(
    result: Reconstruction, views: ViewSet, device: torch.device | str | None = None
) -> Splats:
    """Gaussian splats seeded on a model, fitted to the views that it was fitted to.

    Args:
        views: those that the model was made from.
        device: as in `ReconstructConfig`.
    """
    fitted = _fitted([score.use for score in result.scores.views])
    images, alpha, cameras = resized(views, _SPLATS_SIDE)
    target = _device(device)
    premultiplied = (images - 1 + alpha[:, None]).clamp(0, 1)
    return fit_splats(
        result.mesh,
        premultiplied[fitted].to(target),
        alpha[fitted].to(target),
        cameras[fitted].to(target),
    )


def run_reconstruct(config: ReconstructConfig) -> tuple[Reconstruction, list[Path]]:
    """Read views, make the model, write it; returns it and the files.

    Raises: ValueError: what `list_sets`, `read` and `reconstruct` raise, several objects in the
        folder, or a file that is there already. OSError: a file cannot be written.
    """
    output = config.output or Path("spad-out") / f"{slug(config.source.resolve().stem)}.glb"
    outputs = [*model_files(output), *filter(None, (config.splat, config.turntable))]
    files, names, notes = _chosen_files(config)
    inputs = map(Path, files.files) if files.sample is None else ()
    check_new_files(outputs, config.overwrite, inputs)
    light = _light_of(config.source) if config.delight else None
    views = files.read(config.masks)
    result = reconstruct(
        views,
        config.faces,
        config.texture_size,
        config.cells,
        light,
        config.hold_out,
        config.device,
        names,
        _network(config.network),
        _smoothness(config),
    )
    splats = None
    if config.splat is not None:
        splats = splats_of(result, views, config.device)
        notes.append(f"the splats agree with the views: {splats.psnr:.1f} dB")
    result = replace(result, notes=(*notes, *result.notes))
    written = result.save(output)
    if config.splat is not None and splats is not None:
        with whole_file(config.splat) as unfinished:
            is_glb = config.splat.suffix.lower() == ".glb"
            unfinished.write_bytes(splats.glb() if is_glb else splats.ply())
        written.append(config.splat)
    if config.turntable is not None:
        result.save_turntable(config.turntable)
        written.append(config.turntable)
    return result, written


# Networks are classes of diffusers, whose import takes seconds.


def _finder(network: SurfaceNetwork | None, smoothness: float) -> Callable[..., DistanceGrid]:
    if network is None:
        return partial(fit_surface, settings=FitSettings(smoothness=smoothness))
    from spad.reconstruction.learned_surface import predict_surface

    return partial(predict_surface, network)


def _network(folder: Path | None) -> SurfaceNetwork | None:
    if folder is None:
        return None
    from spad.reconstruction.learned_surface import load_network

    return load_network(folder)


def _filter_rounds(smoothness: float) -> int:
    """Rounds by which the mesh is evened out, too: none for true views, whose detail it would take
    away."""
    return round(min(_ROUNDS * (smoothness - FitSettings.smoothness), _MOST_ROUNDS))


def _smoothness(config: ReconstructConfig) -> float:
    """As asked for, or by who made the views."""
    if config.smoothness is not None:
        return config.smoothness
    folder = config.source if config.source.is_dir() else config.source.parent
    return DRAWN_SMOOTHNESS if _is_drawn(folder) else FitSettings.smoothness


def _is_drawn(folder: Path) -> bool:
    """Whether `spad generate` made the views: its record beside them names prompts and a model."""
    try:
        record = read_json(folder / RECORD, dict)
    except ValueError:
        # Files of this name from other programs may have other contents.
        return False
    return {"prompts", "model"} <= record.keys()


def _chosen_files(config: ReconstructConfig) -> tuple[PosedImages, list[str], list[str]]:
    """The one object of a folder, of many views those from the most different sides; the views'
    names, and a sentence if some are left out."""
    sets = list_sets(config.source)
    if len(sets) > 1:
        some = ", ".join(each.uid for each in sets[:3])
        raise ValueError(
            f"expected views of one object, got {len(sets)} objects in {config.source} "
            f"({some}, …); give the folder of one of them"
        )
    files = sets[0]
    chosen = list(range(len(files.cameras)))
    notes = []
    if len(chosen) > config.most_views:
        notes.append(
            f"{config.most_views} of {len(chosen)} views are used, from the most different sides; "
            "more with --most-views"
        )
        chosen = spread_out(files.cameras, config.most_views)
    return files.chosen(chosen), [f"view {view}" for view in chosen], notes


def spread_out(cameras: Cameras, count: int) -> list[int]:
    """The numbers, ascending, of `count` cameras that look at the object from sides far apart.

    From the first on, each next one is the farthest from those chosen before.
    """
    directions = F.normalize(cameras.centers - object_ball(cameras).center, dim=1)
    chosen = [0]
    nearest = directions @ directions[0]
    while len(chosen) < count:
        # A camera beside a chosen one is never as good as any other, so none is taken twice.
        nearest[chosen] = torch.inf
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, directions @ directions[chosen[-1]])
    return sorted(chosen)


def _uses(count: int, hold_out: int) -> list[str]:
    uses = [FITTED] * count
    if count - hold_out < FEWEST_VIEWS:
        held = f" beside {hold_out} held out" if hold_out else ""
        raise ValueError(
            f"expected {FEWEST_VIEWS} views or more{held}, got {count}; give views from more sides"
        )
    for view in np.linspace(0, count, hold_out, endpoint=False).astype(int).tolist():
        uses[view] = HELD_OUT
    return uses


def _device(asked: torch.device | str | None) -> torch.device:
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def _fitted(uses: Sequence[str]) -> list[int]:
    return [view for view, use in enumerate(uses) if use == FITTED]


def _premultiplied(views: ViewSet, names: Sequence[str]) -> tuple[Tensor, Tensor, Cameras]:
    """Images times alpha, alpha and cameras, no larger than is of use.

    Raises: ValueError: a view shows nothing.
    """
    for name, alpha in zip(names, views.alpha, strict=True):
        if not (alpha > 0.5).any():
            raise ValueError(
                f"expected the object in every view, got {name} with nothing in it; a white object "
                "on white cannot be told from it: give images with alpha, or --masks"
            )
    images, alpha, cameras = resized(views, _LONGEST_SIDE)
    return (images - 1 + alpha[:, None]).clamp(0, 1), alpha, cameras


def _notes_on(alpha: Tensor, cameras: Cameras, ball: Ball, names: Sequence[str]) -> list[str]:
    """What the views leave open before anything is fitted."""
    notes = []
    directions = F.normalize(cameras.centers - ball.center, dim=1)
    widest = float(torch.rad2deg(torch.acos((directions @ directions.T).clamp(-1, 1))).max())
    if widest < _ONE_SIDE_DEG:
        notes.append(
            f"all views are from one side, within {widest:.0f} degrees: the back is a guess"
        )
    cut = [name for name, is_cut in zip(names, cuts_off(alpha), strict=True) if is_cut]
    if cut:
        notes.append(f"the object is cut off at the border of {', '.join(cut)}")
    return notes


def _notes_on_white(views: ViewSet, names: Sequence[str]) -> list[str]:
    """What of the views may be a white part of the object that was taken for background."""
    below_white = (1 - views.images).amax(1)
    unsure = ((below_white > _NEARLY_WHITE) & (views.alpha == 0)).sum((1, 2))
    share = unsure / views.alpha.sum((1, 2))
    named = [
        name for name, part in zip(names, share.tolist(), strict=True) if part > _MUCH_NEARLY_WHITE
    ]
    if not named:
        return []
    return [
        f"parts of {', '.join(named)} are nearly white and were taken for background: give images "
        "with alpha, or --masks, if they are of the object"
    ]


def _disagreements(alpha: Tensor, cameras: Cameras, ball: Ball) -> list[Disagreement]:
    if len(cameras) <= FEWEST_VIEWS:
        return []
    longer = max(cameras.height, cameras.width)
    if longer > _JUDGED_SIDE:
        size = [max(1, round(n * _JUDGED_SIDE / longer)) for n in (cameras.height, cameras.width)]
        alpha = F.interpolate(alpha[:, None], size, mode="area")[:, 0]
        cameras = cameras.resized(*size)
    return disagreeing_views(outline_distance(alpha), cameras, cuts_off(alpha), ball)


def _texture_size(cameras: Cameras) -> int:
    """Four times the images' side, a power of two."""
    longer = max(cameras.height, cameras.width)
    return min(2048, max(512, 2 ** round(math.log2(4 * longer))))


@dataclass(frozen=True)
class _RenderRecord:
    """What is of use here in a `transforms.json`.

    Attributes:
        renderer: that `spad render` used; none in others' files.
        rest: everything else.
    """

    rest: dict[str, Any]
    renderer: str | None = None


def _light_of(source: Path) -> Light:
    """The light that the views were made under, as their record says.

    Raises: ValueError: it says nothing of a light that is known.
    """
    record = (source if source.is_dir() else source.parent) / "transforms.json"
    if not record.is_file() or read_json(record, _RenderRecord).renderer != "embree":
        raise ValueError(
            f"expected views of spad render (embree) for --delight, whose light is known, got "
            f"others in {source}; leave --delight out"
        )
    return Light()
