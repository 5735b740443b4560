"""Thresholded symmetric epipolar distance (TSED): do matched features fit the cameras?"""

from __future__ import annotations

import math

import numpy as np
import torch

from spad.cameras import Cameras
from spad.data.view_sets import ViewSet
from spad.geometry.focus import angles_between
from spad.installation import install_command

# At larger angles SIFT finds hardly a true match; at smaller ones nothing moves.
MOST_DEG, _LEAST_DEG = 35.0, 5.0
_FEWEST_MATCHES = 6
# Lengths as shares of the image's longer side: 2 and 1.5 pixels of 128.
_NEAR_LINE, _STILL = 2 / 128, 1.5 / 128
# RANSAC threshold of the affine map that matches must fit.
_SPREAD = 6 / 128
_RATIO = 0.85
# Features closer to the outline change with the background.
_OUTLINE = 1 / 128
# SIFT is designed for photographs; smaller images are enlarged to this size.
_MATCHING_SIDE = 256

_Features = tuple[np.ndarray, np.ndarray]


def tsed(view_set: ViewSet) -> float:
    """Share of neighboring pairs of views whose matched features fit the cameras.

    Formula: SIFT features inside the masks; for each pair of views 5 to 35 degrees apart, the
    mutual nearest neighbors that pass Lowe's ratio test (0.85) and fit one affine map of the image
    to 6 pixels (RANSAC). Matching does not use the cameras. A pair is consistent if it has at least
    6 matches, the median of their symmetric epipolar distances is below 2 pixels, and the median
    match moves by at least 1.5 pixels. All pixels are those of an image of 128.
    Range: 0 to 1. Textured objects reach 0.9 to 1, flat-colored low-poly ones 0.4 to 0.8, since
    SIFT finds little on them: compare with renders of the same kind.
    NaN: no pair of views is 5 to 35 degrees apart. Rings of twelve or more views have such pairs.
    Source: Yu et al. 2023, "Long-Term Photometric Consistent Novel View Synthesis with Diffusion
    Models", section 4.1; OpenCV's SIFT (Lowe 2004). Differs: masks, RANSAC, fewer
    required matches since the images are small, and the required motion: without it, copied images,
    whose features match in place, would score well at low elevations.
    Cannot see: errors along epipolar lines; copies that are shifted; wrong cameras among
    views that are far apart; objects without texture.
    Cost: about 1 s for 12 views on one CPU core. Needs OpenCV.

    Raises: ModuleNotFoundError: OpenCV is missing.
    """
    angles = angles_between(view_set.cameras)
    first, second = ((angles > _LEAST_DEG) & (angles < MOST_DEG)).triu(1).nonzero(as_tuple=True)
    if len(first) == 0:
        return math.nan
    features = [_features(view_set, view) for view in range(len(view_set))]
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    verdicts = [_is_consistent(view_set.cameras, features, a, b) for a, b in pairs]
    return sum(verdicts) / len(verdicts)


def symmetric_epipolar_distance(
    cameras: Cameras, first: int, second: int, xy_first: np.ndarray, xy_second: np.ndarray
) -> np.ndarray:
    """Mean distance (n,), pixels, of matched points (n, 2) from each other's epipolar lines."""
    intrinsics, poses = cameras.intrinsics.double(), cameras.world_from_cam.double()
    motion = torch.linalg.inv(poses[second]) @ poses[first]
    x, y, z = motion[:3, 3].tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    inverse = torch.linalg.inv(intrinsics)
    fundamental = (inverse[second].T @ cross @ motion[:3, :3] @ inverse[first]).numpy()
    one = np.ones((len(xy_first), 1))
    a, b = np.hstack([xy_first, one]), np.hstack([xy_second, one])
    lines_b, lines_a = a @ fundamental.T, b @ fundamental
    off = np.abs((b * lines_b).sum(1))
    lengths = [np.linalg.norm(lines[:, :2], axis=1).clip(1e-12) for lines in (lines_a, lines_b)]
    return (off / lengths[0] + off / lengths[1]) / 2


def _is_consistent(cameras: Cameras, features: list[_Features], first: int, second: int) -> bool:
    side = max(cameras.height, cameras.width)
    a, b = _match(features[first], features[second], _SPREAD * side)
    if len(a) < _FEWEST_MATCHES:
        return False
    off = symmetric_epipolar_distance(cameras, first, second, a, b)
    moved = np.linalg.norm(a - b, axis=1)
    return bool(np.median(off) < _NEAR_LINE * side and np.median(moved) >= _STILL * side)


def _features(view_set: ViewSet, view: int) -> _Features:
    """Positions (n, 2) in pixels and descriptors (n, 128) of SIFT features inside the mask."""
    cv2 = _opencv()
    pixels = (view_set.images[view].movedim(0, -1) * 255).round().byte().numpy()
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    side = max(gray.shape)
    scale = max(1.0, _MATCHING_SIDE / side)
    gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    # A lower contrast threshold than for photographs, as shading of flat colors is soft.
    points, descriptors = cv2.SIFT.create(0, 3, 0.005, 20, 1.6).detectAndCompute(gray, None)
    if not points:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    xy = np.array([point.pt for point in points]) / scale
    mask = (view_set.alpha[view] > 0.5).byte().numpy()
    width = 2 * math.ceil(_OUTLINE * side) + 1
    mask = cv2.erode(mask, np.ones((width, width), np.uint8))
    column, row = xy.astype(int).T.clip(0, np.array([[mask.shape[1]], [mask.shape[0]]]) - 1)
    kept = mask[row, column] > 0
    # RootSIFT (Arandjelović and Zisserman 2012) matches better.
    roots = np.sqrt(descriptors / descriptors.sum(1, keepdims=True).clip(1e-6))
    return xy[kept], roots[kept]


def _match(first: _Features, second: _Features, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions (m, 2) and (m, 2) of matching features."""
    (xy_a, roots_a), (xy_b, roots_b), none = first, second, np.zeros((0, 2))
    if len(roots_a) < 2 or len(roots_b) < 2:
        return none, none
    distance = np.sqrt((2 - 2 * roots_a @ roots_b.T).clip(0))
    there, back = distance.argmin(1), distance.argmin(0)
    nearest = np.partition(distance, 1, axis=1)
    good = (back[there] == np.arange(len(there))) & (nearest[:, 0] < _RATIO * nearest[:, 1])
    a, b = xy_a[good], xy_b[there[good]]
    if len(a) < _FEWEST_MATCHES:
        return none, none
    cv2 = _opencv()
    # RANSAC is random; the same set must always score the same.
    cv2.setRNGSeed(0)
    _, inside = cv2.estimateAffine2D(
        a, b, method=cv2.RANSAC, ransacReprojThreshold=spread, maxIters=1000
    )
    if inside is None:
        return none, none
    return a[inside[:, 0] > 0], b[inside[:, 0] > 0]


def _opencv():
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matching features needs OpenCV, which is not installed; install it with: "
            f"{install_command('eval')}"
        ) from error
    return cv2
