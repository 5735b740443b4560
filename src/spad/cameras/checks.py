"""Checks of the arguments of `Cameras`: rigid poses, pinhole intrinsics, equal lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Scalars = float | Sequence[float] | Tensor

# Poses arrive as JSON rounded to a few digits, so the test must be looser than float32's own error.
_ROTATION_TOLERANCE = 1e-3
# Beyond these, float32 no longer tells neighboring pixels or points of one object apart.
_LONGEST_SIDE = 1_000_000
_FARTHEST = 1e7
# Focal lengths and distances of the principal point from the image, in longer sides of the image.
_SHORTEST_FOCAL, _LONGEST_FOCAL, _FARTHEST_CENTER = 1e-4, 1e5, 1e3


def check_size(height: int, width: int) -> None:
    """Raises: ValueError: an image size that is not two whole positive numbers."""
    for name, value in (("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} to be a positive int (pixels), got {value!r}")
        if value > _LONGEST_SIDE:
            raise ValueError(f"expected {name} of at most {_LONGEST_SIDE} pixels, got {value:g}")


def check_rigid(poses: Tensor, name: str) -> None:
    """Raises: ValueError: one of the (v, 4, 4) matrices is not a rotation and a translation.

    `name` says what a matrix is in the message; "{}" in it becomes the index of the view.
    """
    # Some accelerators have no float64.
    poses = poses.detach().cpu().double()
    finite = poses.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ValueError(f"expected finite numbers in the pose of {_first(~finite, name)}")
    is_far = poses[:, :3, 3].abs().amax(1) > _FARTHEST
    if is_far.any():
        view = int(is_far.nonzero()[0])
        raise ValueError(
            f"expected the pose of {name.format(view)} within {_FARTHEST:g} units of the origin, "
            f"got {[float(f'{x:.3g}') for x in poses[view, :3, 3].tolist()]}; move the world there"
        )
    rotation = poses[:, :3, :3]
    last_row_off = (poses[:, 3] - poses.new_tensor([0.0, 0, 0, 1])).abs().amax(1) > 1e-6
    if last_row_off.any():
        view = int(last_row_off.nonzero()[0])
        raise ValueError(
            f"expected the last row of the pose of {name.format(view)} to be 0 0 0 1, got "
            f"{poses[view, 3].tolist()}; a transposed matrix looks like this too"
        )
    gram = rotation.mT @ rotation
    identity = torch.eye(3, dtype=torch.float64)
    skewed = (gram - identity).abs().amax((1, 2)) > _ROTATION_TOLERANCE
    mirrored = torch.linalg.det(rotation) < 0
    if not (skewed | mirrored).any():
        return
    view = int((skewed | mirrored).nonzero()[0])
    who = name.format(view)
    scale = float(gram[view].diagonal().mean().sqrt())
    only_scaled = bool(
        (gram[view] - scale**2 * identity).abs().amax() <= _ROTATION_TOLERANCE * scale**2
    )
    if mirrored[view] and (only_scaled or not skewed[view]):
        raise ValueError(
            f"expected a right-handed pose of {who}, got a mirrored one (determinant below 0); "
            "flip one of its axes"
        )
    if only_scaled and scale > 0:
        raise ValueError(
            f"expected a rotation in the pose of {who}, got one scaled by {scale:.6g}; "
            "divide its first three columns by that"
        )
    raise ValueError(
        f"expected a rotation in the pose of {who}, got axes that are not perpendicular unit "
        "vectors"
    )


def check_intrinsics(intrinsics: Tensor, height: int, width: int) -> None:
    """Raises: ValueError: one of the (v, 3, 3) matrices is not that of a pinhole camera."""
    finite = intrinsics.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ValueError(f"expected finite intrinsics of {_first(~finite)}")
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=-1)
    not_positive = (focal <= 0).any(1)
    if not_positive.any():
        view = int(not_positive.nonzero()[0])
        raise ValueError(
            f"expected focal lengths above 0 pixels for camera {view}, got {focal[view].tolist()}"
        )
    side = max(height, width)
    is_extreme = ((focal < _SHORTEST_FOCAL * side) | (focal > _LONGEST_FOCAL * side)).any(1)
    if is_extreme.any():
        view = int(is_extreme.nonzero()[0])
        raise ValueError(
            f"expected focal lengths from {_SHORTEST_FOCAL * side:g} to {_LONGEST_FOCAL * side:g} "
            f"pixels for camera {view}, got {focal[view].tolist()}"
        )
    is_off = (intrinsics[:, :2, 2].abs() > _FARTHEST_CENTER * side).any(1)
    if is_off.any():
        view = int(is_off.nonzero()[0])
        raise ValueError(
            f"expected the principal point of camera {view} within {_FARTHEST_CENTER * side:g} "
            f"pixels of the image, got {intrinsics[view, :2, 2].tolist()}"
        )
    pinhole = torch.zeros_like(intrinsics)
    pinhole[:, 0, 0], pinhole[:, 1, 1] = focal.unbind(-1)
    pinhole[:, :2, 2] = intrinsics[:, :2, 2]
    pinhole[:, 2, 2] = 1
    other = (intrinsics != pinhole).flatten(1).any(1)
    if other.any():
        raise ValueError(
            f"expected intrinsics [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] of {_first(other)}, got "
            f"{intrinsics[int(other.nonzero()[0])].tolist()}; skew is not supported"
        )


def _first(wrong: Tensor, name: str = "camera {}") -> str:
    return name.format(int(wrong.nonzero()[0]))


def as_vector(name: str, values: Scalars) -> Tensor:
    """One number or a list of them as (n,) float64 on the CPU."""
    try:
        vector = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected {name} to be a number or a list, got {values!r}") from error
    if vector.ndim > 1:
        raise ValueError(
            f"expected {name} to be a number or a flat list, got shape {tuple(vector.shape)}"
        )
    vector = vector.reshape(-1)
    if len(vector) == 0:
        raise ValueError(f"expected at least 1 value of {name}, got an empty list")
    if not vector.isfinite().all():
        raise ValueError(f"expected finite values of {name}, got {vector.tolist()}")
    return vector


def as_points(name: str, values: Sequence | Tensor, per_view: bool) -> Tensor:
    """(3,) float64 vector, or (n, 3) of them when they may differ per view."""
    expected = "(views, 3) or (3,)" if per_view else "(3,)"
    try:
        points = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected {name} of shape {expected}, got {values!r}") from error
    if points.shape[-1:] != (3,) or points.ndim > 1 + per_view or points.numel() == 0:
        raise ValueError(f"expected {name} of shape {expected}, got {tuple(points.shape)}")
    if not points.isfinite().all():
        raise ValueError(f"expected finite values of {name}, got {points.tolist()}")
    return points.reshape(-1, 3) if per_view else points


def common_length(lengths: dict[str, int]) -> int:
    longest = max(lengths.values())
    for name, length in lengths.items():
        if length not in (1, longest):
            most = next(other for other, n in lengths.items() if n == longest)
            raise ValueError(
                f"expected {longest} values of {name}, as many as of {most}, got {length}; "
                "give one per view or a single value"
            )
    return longest


def broadcast_views(**values: Scalars) -> list[Tensor]:
    """Each argument as a float64 vector, single values repeated to the common number of views.

    Raises: ValueError: not finite numbers or flat lists of them, or lists of unequal length.
    """
    vectors = {name: as_vector(name, value) for name, value in values.items()}
    length = common_length({name: len(vector) for name, vector in vectors.items()})
    return [vector.expand(length) for vector in vectors.values()]
