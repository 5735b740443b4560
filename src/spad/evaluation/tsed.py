"""Matched features against the cameras: thresholded symmetric epipolar distance (TSED)."""

from __future__ import annotations

import math

import numpy as np
import torch

from spad.cameras import Cameras
from spad.data.view_sets import ViewSet
from spad.geometry.focus import angles_between

# Beyond this angle SIFT finds hardly a true match, and below the other one nothing moves.
MOST_DEG, _LEAST_DEG = 35.0, 5.0
_FEWEST_MATCHES = 6
# Lengths as shares of the pictures' longer side: 2 and 1.5 pixels of 128.
_NEAR_LINE, _STILL = 2 / 128, 1.5 / 128
# Matches must move together by one affine map of the picture, up to this much.
_SPREAD = 6 / 128
_RATIO = 0.85
# Features closer than this to the outline change with what is behind them.
_OUTLINE = 1 / 128
# SIFT is made for photographs; small pictures are enlarged for it to this many pixels.
_MATCHING_SIDE = 256


def tsed(view_set: ViewSet) -> float:
    """Share of neighbouring pairs of views whose matched features fit the cameras.

    Formula: of each view SIFT features inside the mask; of each pair of views 5 to 35 degrees apart
    the mutual nearest neighbours that pass Lowe's ratio test (0.85) and agree with one affine map
    of the picture to 6 pixels (RANSAC). None of it knows the cameras. A pair is consistent if it
    has at least 6 matches, the median of their symmetric epipolar distances is below 2 pixels, and
    the median match has moved by at least 1.5 pixels. All pixels are those of a picture of 128.
    Range: 0 to 1. Textured objects reach 0.9 to 1, flat-coloured low-poly ones 0.4 to 0.8, since
    SIFT finds little on them: compare with renders of the same kind.
    NaN: no pair of views is 5 to 35 degrees apart. Twelve or more views evenly round have such.
    Source: Yu et al. 2023, "Long-Term Photometric Consistent Novel View Synthesis with Diffusion
    Models", section 4.1; OpenCV's SIFT (Lowe 2004). Differs: the masks, RANSAC, fewer matches asked
    for as the pictures are small, and that the matches must move: the distance from a line does not
    see that a copied picture matches itself in place, and at low elevations would praise it.
    Cannot see: whatever lies along epipolar lines; copies that were shifted; wrong cameras among
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
    verdicts = [_is_consistent(view_set.cameras, features, *pair) for pair in pairs]
    return sum(verdicts) / len(verdicts)


def symmetric_epipolar_distance(
    cameras: Cameras, first: int, second: int, xy_first: np.ndarray, xy_second: np.ndarray
) -> np.ndarray:
    """Mean distance (n,) in pixels of matched points (n, 2) from each other's epipolar lines."""
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


def _is_consistent(cameras: Cameras, features: list, first: int, second: int) -> bool:
    side = max(cameras.height, cameras.width)
    a, b = _match(*features[first], *features[second], _SPREAD * side)
    if len(a) < _FEWEST_MATCHES:
        return False
    off = symmetric_epipolar_distance(cameras, first, second, a, b)
    moved = np.linalg.norm(a - b, axis=1)
    return bool(np.median(off) < _NEAR_LINE * side and np.median(moved) >= _STILL * side)


def _features(view_set: ViewSet, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 2) in pixels of SIFT features inside the mask, and descriptors (n, 128)."""
    cv2 = _opencv()
    pixels = (view_set.images[view].movedim(0, -1) * 255).round().byte().numpy()
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    side = max(gray.shape)
    scale = max(1.0, _MATCHING_SIDE / side)
    gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    # A lower contrast than for photographs, as shading in flat colours is soft.
    points, descriptors = cv2.SIFT_create(0, 3, 0.005, 20, 1.6).detectAndCompute(gray, None)
    if not points:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    xy = np.array([point.pt for point in points]) / scale
    mask = (view_set.alpha[view] > 0.5).byte().numpy()
    width = 2 * math.ceil(_OUTLINE * side) + 1
    mask = cv2.erode(mask, np.ones((width, width), np.uint8))
    column, row = xy.astype(int).T.clip(0, np.array([[mask.shape[1]], [mask.shape[0]]]) - 1)
    kept = mask[row, column] > 0
    # RootSIFT (Arandjelović and Zisserman 2012): its distances tell more.
    roots = np.sqrt(descriptors / descriptors.sum(1, keepdims=True).clip(1e-6))
    return xy[kept], roots[kept]


def _match(xy_a, roots_a, xy_b, roots_b, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Matching places (m, 2) and (m, 2) of two views' features."""
    none = np.zeros((0, 2))
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
    # RANSAC draws from this generator; the same set must always score the same.
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
            "matching features needs OpenCV, which is not installed; try: pip install 'spad[eval]'"
        ) from error
    return cv2
