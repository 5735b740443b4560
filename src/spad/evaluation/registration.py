"""Registration by COLMAP: do cameras found from the images alone agree with the requested ones?

Structure from motion sees the images and the lens, but not the poses. It needs texture: of true
renders of plain low-poly objects it registers about half, so a low share says little by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from spad.data.view_sets import ViewSet
from spad.evaluation.metrics import Metric
from spad.images.pixels import to_levels

# SIFT is made for photographs; smaller images are enlarged to this size.
_MATCHING_SIDE = 512
# COLMAP's own limits are for photographs with thousands of features: 100, 16 degrees, 30, 1.5.
_FEWEST_FIRST, _LEAST_FIRST_DEG, _FEWEST_NEXT, _LEAST_DEG = 15, 4.0, 8, 1.0
_FEWEST_VIEWS = 3


@dataclass(frozen=True)
class RegistrationScores:
    """What COLMAP makes of a set.

    Attributes:
        registered: share of the views in its largest model; 0 without a model.
        rotation_deg: mean over pairs of registered views of the angle between their rotation
            relative to each other and the requested one, whatever the world's frame; NaN without
            a pair.
    """

    registered: float
    rotation_deg: float


@lru_cache(maxsize=2)
def registration_scores(view_set: ViewSet) -> RegistrationScores:
    """Registration of a set, cached for both metrics.

    NaN: fewer than 3 views. Two runs may differ, as RANSAC does.
    Cannot see: sets that COLMAP makes nothing of, for want of texture or of overlap.
    Cost: about 5 s for 12 views on one CPU core. Needs pycolmap.

    Source: Schönberger and Frahm 2016, "Structure-from-motion revisited"; COLMAP's incremental
    mapper with lower limits, and the requested lens of view 0 for all.

    Raises: ModuleNotFoundError: pycolmap is missing.
    """
    if len(view_set) < _FEWEST_VIEWS:
        return RegistrationScores(math.nan, math.nan)
    with TemporaryDirectory() as scratch:
        found = _rotations(view_set, Path(scratch))
    requested = view_set.cameras.world_from_cam[:, :3, :3].double().numpy().transpose(0, 2, 1)
    views = sorted(found)
    error = math.nan
    if len(views) > 1:
        error = rotation_error_deg(np.stack([found[v] for v in views]), requested[views])
    return RegistrationScores(len(views) / len(view_set), error)


def rotation_error_deg(found: np.ndarray, requested: np.ndarray) -> float:
    """Mean over pairs of views of the angle between two relative rotations, in degrees.

    Args:
        found, requested: (v, 3, 3) rotations to the cameras, each set from a world of its own.
    """
    first, second = np.triu_indices(len(found), 1)
    one, other = (x[first] @ x[second].transpose(0, 2, 1) for x in (found, requested))
    cosine = (np.einsum("nij,nij->n", one, other) - 1) / 2
    return float(np.degrees(np.arccos(cosine.clip(-1, 1))).mean())


def check_registration_packages() -> None:
    """Raises: ModuleNotFoundError: pycolmap is missing."""
    if find_spec("pycolmap") is None:
        raise ModuleNotFoundError("expected pycolmap, which registers images", name="pycolmap")


def _rotations(view_set: ViewSet, scratch: Path) -> dict[int, np.ndarray]:
    """View -> (3, 3) rotation from COLMAP's world to its camera, of the largest model."""
    import pycolmap  # pyright: ignore[reportMissingImports]  # an extra

    height, width = view_set.cameras.height, view_set.cameras.width
    scale = max(1.0, _MATCHING_SIDE / max(height, width))
    size = round(width * scale), round(height * scale)
    images, output, database = scratch / "images", scratch / "models", scratch / "database.db"
    images.mkdir()
    output.mkdir()
    for view, pixels in enumerate(to_levels(view_set.images)):
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        image.save(images / f"{view:06d}.png")
    lens = view_set.cameras.intrinsics[0].double().numpy()
    across, down = size[0] / width, size[1] / height
    # COLMAP's messages are of no use here, and it writes them to the terminal.
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "PINHOLE"
    reader.camera_params = ",".join(
        str(x)
        for x in (lens[0, 0] * across, lens[1, 1] * down, lens[0, 2] * across, lens[1, 2] * down)
    )
    pycolmap.extract_features(
        database,
        images,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        device=pycolmap.Device.cpu,
    )
    pycolmap.match_exhaustive(database, device=pycolmap.Device.cpu)
    options = pycolmap.IncrementalPipelineOptions()
    options.ba_refine_focal_length = False
    options.ba_refine_principal_point = False
    options.ba_refine_extra_params = False
    options.min_model_size = _FEWEST_VIEWS
    options.min_num_matches = _FEWEST_FIRST
    options.random_seed = 0
    options.mapper.init_min_num_inliers = _FEWEST_FIRST
    options.mapper.init_min_tri_angle = _LEAST_FIRST_DEG
    options.mapper.abs_pose_min_num_inliers = _FEWEST_NEXT
    options.mapper.filter_min_tri_angle = _LEAST_DEG
    models = pycolmap.incremental_mapping(database, images, output, options=options).values()
    if not models:
        return {}
    largest = max(models, key=lambda model: model.num_reg_images())
    return {
        int(image.name.removesuffix(".png")): image.cam_from_world().rotation.matrix()
        for image in largest.images.values()
        if image.has_pose
    }


REGISTRATION_METRICS = (
    Metric(
        "colmap_registered",
        lambda view_set: registration_scores(view_set).registered,
        True,
        1.0,
        "share of views that COLMAP registers from the images alone",
    ),
    Metric(
        "colmap_rotation_deg",
        lambda view_set: registration_scores(view_set).rotation_deg,
        False,
        0.0,
        "angle between relative rotations that COLMAP finds and the requested ones, in degrees",
    ),
)
