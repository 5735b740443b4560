"""Cameras: poses, intrinsics and image size of a set of views, and ways to place them.

Every convention used here is stated once, in docs/conventions.md. In short: the world is
right-handed with z up, camera axes are OpenCV's (x right, y down, z forward), intrinsics are in
pixels with the origin at the top-left corner of the image, elevation is measured from the horizon
and azimuth counter-clockwise from +x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from spad.cameras.checks import (
    Scalars,
    as_points,
    as_vector,
    broadcast_views,
    check_intrinsics,
    check_rigid,
    check_size,
    common_length,
)

DEFAULT_RADIUS = 3.5
DEFAULT_FOV_RAD = 0.702769935131073
DEFAULT_SIZE = 256

# Sine of the angle under which two directions count as parallel (about 0.2 arc seconds).
_PARALLEL = 1e-6


@dataclass(frozen=True, eq=False)
class Cameras:
    """Pinhole cameras of v views with one image size.

    Attributes:
        world_from_cam: (v, 4, 4) rigid poses; the columns are the camera's x (right), y (down) and
            z (forward) axes and its center, in world coordinates.
        intrinsics: (v, 3, 3) `[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]` in pixels; the center of the
            pixel in row r and column c is (c + 0.5, r + 0.5).
        height, width: of every image, in pixels.
        has_own_size: whether this size was asked for. If not, it is 256x256, and a model draws
            the size that it was trained on.

    Cameras may coincide, point in any direction and lie inside the object.

    Raises: ValueError: wrong shapes, mixed devices or types, values that are not finite, a pose
        that is not rigid (mirrored, scaled or sheared), a focal length that is not positive, or
        numbers so large or small that float32 cannot tell pixels or points of an object apart;
        the message names the view.
    """

    world_from_cam: Tensor
    intrinsics: Tensor
    height: int
    width: int
    has_own_size: bool = True

    def __post_init__(self) -> None:
        check_size(self.height, self.width)
        poses, intrinsics = self.world_from_cam, self.intrinsics
        for name, value, size in (("world_from_cam", poses, 4), ("intrinsics", intrinsics, 3)):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if not isinstance(value, Tensor) or value.ndim != 3 or shape[1:] != (size, size):
                raise ValueError(
                    f"expected {name} to be a tensor (views, {size}, {size}), got {shape}"
                )
            if value.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"expected {name} in float32 or float64, got {value.dtype}; half precision "
                    "cannot hold a pose: convert what is computed from it instead"
                )
        if len(poses) == 0:
            raise ValueError("expected at least 1 camera, got 0")
        if len(poses) != len(intrinsics):
            raise ValueError(
                f"expected as many intrinsics as poses, got {len(intrinsics)} and {len(poses)}"
            )
        if poses.device != intrinsics.device or poses.dtype != intrinsics.dtype:
            raise ValueError(
                "expected poses and intrinsics on one device and of one type, got "
                f"{poses.device} {poses.dtype} and {intrinsics.device} {intrinsics.dtype}"
            )
        check_rigid(poses, "camera {}")
        check_intrinsics(intrinsics, self.height, self.width)

    @classmethod
    def orbit(
        cls,
        elevation_deg: Scalars,
        azimuth_deg: Scalars,
        radius: Scalars = DEFAULT_RADIUS,
        fov_rad: Scalars = DEFAULT_FOV_RAD,
        height: int | None = None,
        width: int | None = None,
        target: Sequence[float] | Tensor = (0.0, 0.0, 0.0),
    ) -> Cameras:
        """Cameras on spheres about `target`, looking at it, with their x axis horizontal.

        Each of the first four arguments is one number or one per view; a single number serves
        every view. At elevation ±90 the image's up direction is the limit of that of cameras
        climbing at the same azimuth, so the azimuth turns the image.

        Args:
            elevation_deg: above the horizon, from -90 to 90.
            azimuth_deg: counter-clockwise from +x seen from above; any number.
            radius: distance from the target, world units.
            fov_rad: full horizontal angle across the width of the image.
            height, width: of the images in pixels; pixels are square. Default for one of them:
                the other; for both: the model's, see `has_own_size`.
            target: (3,) point that projects into the center of every image.

        Raises: ValueError: lists of unequal length, or values outside the ranges above.
        """
        height, width, has_own_size = _size(height, width)
        elevation, azimuth, distance, fov = broadcast_views(
            elevation_deg=elevation_deg, azimuth_deg=azimuth_deg, radius=radius, fov_rad=fov_rad
        )
        if (elevation.abs() > 90).any():
            worst = float(elevation[elevation.abs() > 90][0])
            raise ValueError(
                f"expected elevation_deg from -90 to 90 (above the horizon), got {worst:g}; "
                "a polar angle p from +z is elevation 90 - p"
            )
        if (distance <= 0).any():
            worst = float(distance[distance <= 0][0])
            raise ValueError(f"expected a radius above 0 world units, got {worst:g}")
        center_of_orbit = as_points("target", target, per_view=False)

        elevation, azimuth = torch.deg2rad(elevation), torch.deg2rad(azimuth)
        sin_e, cos_e = elevation.sin(), elevation.cos()
        sin_a, cos_a = azimuth.sin(), azimuth.cos()
        backward = torch.stack([cos_e * cos_a, cos_e * sin_a, sin_e], dim=-1)
        right = torch.stack([-sin_a, cos_a, torch.zeros_like(sin_a)], dim=-1)
        down = torch.stack([sin_e * cos_a, sin_e * sin_a, -cos_e], dim=-1)
        eye = center_of_orbit + distance[:, None] * backward
        return cls(
            _poses(right, down, -backward, eye).float(),
            intrinsics_from_fov(fov, height, width).float(),
            height,
            width,
            has_own_size,
        )

    @classmethod
    def ring(
        cls,
        num_views: int,
        elevation_deg: Scalars = 45.0,
        start_azimuth_deg: float = 0.0,
        radius: Scalars = DEFAULT_RADIUS,
        fov_rad: Scalars = DEFAULT_FOV_RAD,
        height: int | None = None,
        width: int | None = None,
    ) -> Cameras:
        """`num_views` orbit cameras, 360 / num_views degrees of azimuth apart, about the origin.

        Raises: ValueError: fewer than 1 view, and what `orbit` raises.
        Source: with 8 views this is the release's default (its polar angle 45°).
        """
        if isinstance(num_views, bool) or not isinstance(num_views, int) or num_views < 1:
            raise ValueError(f"expected a whole number of views, 1 or more, got {num_views!r}")
        azimuth = start_azimuth_deg + 360.0 / num_views * torch.arange(
            num_views, dtype=torch.float64
        )
        return cls.orbit(elevation_deg, azimuth, radius, fov_rad, height, width)

    @classmethod
    def look_at(
        cls,
        eye: Sequence[float] | Sequence[Sequence[float]] | Tensor,
        target: Sequence[float] | Sequence[Sequence[float]] | Tensor = (0.0, 0.0, 0.0),
        up: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
        fov_rad: Scalars = DEFAULT_FOV_RAD,
        height: int | None = None,
        width: int | None = None,
    ) -> Cameras:
        """Cameras at `eye` that look at `target`, `up` pointing up in their images.

        A camera that looks along `up` takes as its x axis the part of world +y (of +x when it
        looks along y) that lies in its image: with z up, that is the orbit camera of azimuth 0
        and elevation ±90.

        Args:
            eye: (v, 3) or (3,) camera centers, world.
            target: (v, 3) or (3,) points that project into the center of the images, world.
            up: (3,) direction, world; need not be a unit vector.
            fov_rad: full horizontal angle, one number or one per view.
            height, width: of the images in pixels; pixels are square. Default for one of them:
                the other; for both: the model's, see `has_own_size`.

        Raises: ValueError: an eye at its target, a zero `up`, lists of unequal length.
        """
        height, width, has_own_size = _size(height, width)
        eyes = as_points("eye", eye, per_view=True)
        targets = as_points("target", target, per_view=True)
        up_direction = as_points("up", up, per_view=False)
        if up_direction.norm() == 0:
            raise ValueError("expected up to be a direction, got (0, 0, 0); try (0, 0, 1)")
        fov = as_vector("fov_rad", fov_rad)
        num_views = common_length({"eye": len(eyes), "target": len(targets), "fov_rad": len(fov)})
        eyes, targets = eyes.expand(num_views, 3), targets.expand(num_views, 3)

        forward = targets - eyes
        distance = forward.norm(dim=-1, keepdim=True)
        if (distance == 0).any():
            view = int((distance[:, 0] == 0).nonzero()[0])
            raise ValueError(
                f"expected camera {view} away from its target, got both at "
                f"{tuple(eyes[view].tolist())}; move one of them"
            )
        forward = forward / distance
        right = torch.linalg.cross(forward, (up_direction / up_direction.norm())[None])
        axes = torch.eye(3, dtype=torch.float64)
        along_y = forward[:, 1:2].abs() > 1 - _PARALLEL
        fallback = torch.where(along_y, axes[0], axes[1])
        fallback = fallback - (fallback * forward).sum(-1, keepdim=True) * forward
        right = torch.where(right.norm(dim=-1, keepdim=True) < _PARALLEL, fallback, right)
        right = right / right.norm(dim=-1, keepdim=True)
        down = torch.linalg.cross(forward, right)
        return cls(
            _poses(right, down, forward, eyes).float(),
            intrinsics_from_fov(fov.expand(num_views), height, width).float(),
            height,
            width,
            has_own_size,
        )

    @classmethod
    def cat(cls, cameras: Sequence[Cameras]) -> Cameras:
        """All views of several `Cameras` of one image size, device and type, in order."""
        if not cameras:
            raise ValueError("expected at least 1 set of cameras, got none")
        sizes = sorted({(c.height, c.width) for c in cameras})
        if len(sizes) > 1:
            raise ValueError(
                f"expected images of one size, got {sizes} (height, width); use resized() first"
            )
        kinds = sorted({f"{c.world_from_cam.device} {c.world_from_cam.dtype}" for c in cameras})
        if len(kinds) > 1:
            raise ValueError(f"expected one device and type, got {kinds}; use to() first")
        return cls(
            torch.cat([c.world_from_cam for c in cameras]),
            torch.cat([c.intrinsics for c in cameras]),
            cameras[0].height,
            cameras[0].width,
            any(c.has_own_size for c in cameras),
        )

    def __len__(self) -> int:
        return len(self.world_from_cam)

    def _repr_html_(self) -> str:
        """A table of the views for notebooks."""
        columns = {
            "view": [str(view) for view in range(len(self))],
            "elevation °": [f"{x:.1f}" for x in self.elevation_deg.tolist()],
            "azimuth °": [f"{x:.1f}" for x in self.azimuth_deg.tolist()],
            "radius": [f"{x:.2f}" for x in self.radius.tolist()],
            "field of view °": [f"{math.degrees(x):.1f}" for x in self.fov_rad.tolist()],
        }
        heads = "".join(f"<th>{name}</th>" for name in columns)
        views = zip(*columns.values(), strict=True)
        body = "".join(f"<tr>{''.join(f'<td>{x}</td>' for x in view)}</tr>" for view in views)
        size = f"{self.width} x {self.height} pixels" if self.has_own_size else "the model's size"
        caption = f"{len(self)} cameras, images of {size}"
        return f"<table><caption>{caption}</caption><tr>{heads}</tr>{body}</table>"

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Cameras:
        """Selected views as `Cameras`; one integer gives a set of one view."""
        if isinstance(index, Integral):
            number = int(index)
            if not -len(self) <= number < len(self):
                raise IndexError(f"expected a view below {len(self)}, got {number}")
            index = [number]
        elif isinstance(index, Tensor):
            index = index.reshape(-1)
        elif not isinstance(index, int | slice):
            index = list(index)
        return replace(
            self, world_from_cam=self.world_from_cam[index], intrinsics=self.intrinsics[index]
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Cameras:
        """The same cameras on `device`, in `dtype` (float32 or float64)."""
        return replace(
            self,
            world_from_cam=self.world_from_cam.to(device=device, dtype=dtype),
            intrinsics=self.intrinsics.to(device=device, dtype=dtype),
        )

    def fit(self, longer_side: int) -> Cameras:
        """Cameras for images whose longer side is `longer_side`; both sides are rounded."""
        scale = longer_side / max(self.height, self.width)
        return self.resized(*(max(1, round(side * scale)) for side in (self.height, self.width)))

    def resized(self, height: int, width: int) -> Cameras:
        """The same cameras for images resized to `height` by `width` pixels."""
        check_size(height, width)
        scale = self.intrinsics.new_tensor([width / self.width, height / self.height, 1.0])
        return Cameras(self.world_from_cam, scale[:, None] * self.intrinsics, height, width)

    def transformed(self, world_from_old: Tensor) -> Cameras:
        """The same cameras after the world moved by the rigid (4, 4) `world_from_old`."""
        if tuple(world_from_old.shape) != (4, 4):
            raise ValueError(
                f"expected world_from_old of shape (4, 4), got {tuple(world_from_old.shape)}"
            )
        motion = world_from_old.to(self.world_from_cam.dtype).to(self.world_from_cam.device)
        check_rigid(motion[None], "world_from_old")
        return replace(self, world_from_cam=motion @ self.world_from_cam)

    @property
    def centers(self) -> Tensor:
        """(v, 3) camera centers, world."""
        return self.world_from_cam[:, :3, 3]

    @property
    def cam_from_world(self) -> Tensor:
        """(v, 4, 4) inverse poses."""
        rotation = self.world_from_cam[:, :3, :3].mT
        inverse = self.world_from_cam.clone()
        inverse[:, :3, :3] = rotation
        inverse[:, :3, 3] = -(rotation @ self.centers[:, :, None])[:, :, 0]
        return inverse

    @property
    def radius(self) -> Tensor:
        """(v,) distance of the centers from the origin, world units."""
        return self.centers.norm(dim=-1)

    @property
    def elevation_deg(self) -> Tensor:
        """(v,) elevation of the centers above the horizon, -90 to 90.

        A camera at the origin gets that of the orbit it would back away onto.
        """
        direction = self._direction_from_origin()
        return torch.rad2deg(torch.atan2(direction[:, 2], direction[:, :2].norm(dim=-1)))

    @property
    def azimuth_deg(self) -> Tensor:
        """(v,) azimuth of the centers, counter-clockwise from +x, 0 to 360 (excluded).

        Straight above or below the origin the position has none; there it is read from the
        camera's x axis, as orbit cameras carry it, so that it does not jump at the poles.
        """
        direction = self._direction_from_origin()
        at_pole = direction[:, :2].norm(dim=-1) < _PARALLEL
        right = self.world_from_cam[:, :3, 0]
        y = torch.where(at_pole, -right[:, 0], direction[:, 1])
        x = torch.where(at_pole, right[:, 1], direction[:, 0])
        azimuth = torch.rad2deg(torch.atan2(y, x)) % 360
        # A tiny negative angle rounds up to 360 itself.
        return torch.where(azimuth >= 360, torch.zeros_like(azimuth), azimuth)

    @property
    def fov_rad(self) -> Tensor:
        """(v,) horizontal field of view `2 atan(width / (2 fx))`, off-center views included."""
        return 2 * torch.atan(self.width / (2 * self.intrinsics[:, 0, 0]))

    @property
    def intrinsics_ndc(self) -> Tensor:
        """(v, 4) focal lengths and principal point (fx, fy, px, py) in pytorch3d's NDC.

        Half the shorter side is 1, x points left and y up, the origin is the image center; a
        centerd square view gives (f, f, 0, 0) with f = 1 / tan(fov / 2).
        """
        half_side = min(self.height, self.width) / 2
        focal = torch.stack([self.intrinsics[:, 0, 0], self.intrinsics[:, 1, 1]], dim=-1)
        middle = self.intrinsics.new_tensor([self.width / 2, self.height / 2])
        return torch.cat([focal, middle - self.intrinsics[:, :2, 2]], dim=-1) / half_side

    def project(self, points_world: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel coordinates and z-depth of world points in every view.

        Args:
            points_world: (..., 3), the same points for all views.

        Returns:
            xy: (v, ..., 2) pixels (x right, y down, from the top-left corner), not cut to the
                image; NaN where the point is not in front of the camera.
            depth: (v, ...) distance along the camera's forward axis, world units.
        """
        if points_world.shape[-1:] != (3,):
            raise ValueError(f"expected points of shape (..., 3), got {tuple(points_world.shape)}")
        # Coordinates before points, as products with three columns are slow: (v, 3, n).
        flat = points_world.to(self.world_from_cam).reshape(-1, 3).mT
        # World minus center first: subtracting large projected numbers would lose digits.
        cam = self.world_from_cam[:, :3, :3].mT @ (flat - self.centers[:, :, None])
        depth = cam[:, 2]
        safe_depth = torch.where(depth > 0, depth, torch.nan)
        xy = self.intrinsics[:, :2] @ (cam / safe_depth[:, None])
        shape = (len(self), *points_world.shape[:-1])
        return xy.mT.reshape(*shape, 2), depth.reshape(shape)

    def unproject(self, xy: Tensor, depth: Tensor) -> Tensor:
        """World points (v, ..., 3) at pixels (v, ..., 2) and z-depths (v, ...) of each view."""
        if xy.shape != (len(self), *xy.shape[1:-1], 2) or depth.shape != xy.shape[:-1]:
            raise ValueError(
                f"expected pixels ({len(self)}, ..., 2) and depths ({len(self)}, ...), got "
                f"{tuple(xy.shape)} and {tuple(depth.shape)}"
            )
        flat = xy.to(self.intrinsics).reshape(len(self), -1, 2)
        focal = torch.stack([self.intrinsics[:, 0, 0], self.intrinsics[:, 1, 1]], dim=-1)
        plane = (flat - self.intrinsics[:, None, :2, 2]) / focal[:, None]
        cam = torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1)
        cam = cam * depth.to(self.intrinsics).reshape(len(self), -1, 1)
        world = cam @ self.world_from_cam[:, :3, :3].mT + self.centers[:, None]
        return world.reshape(*depth.shape, 3)

    def _direction_from_origin(self) -> Tensor:
        """(v, 3) unit vectors towards the centers; backwards for a camera at the origin."""
        radius = self.radius[:, None]
        at_origin = radius < _PARALLEL
        backward = -self.world_from_cam[:, :3, 2]
        return torch.where(at_origin, backward, self.centers / radius.clamp_min(_PARALLEL))


def intrinsics_from_fov(fov_rad: Tensor, height: int, width: int) -> Tensor:
    """(v, 3, 3) pinhole intrinsics in pixels from (v,) horizontal fields of view.

    Square pixels, principal point in the image center; as `fov_rad` in type and device.

    Raises: ValueError: a field of view outside 0 to pi.
    """
    wrong = ~((fov_rad > 0) & (fov_rad < math.pi))
    if wrong.any():
        value = float(fov_rad[wrong][0])
        hint = f"; if these are degrees, try {math.radians(value):.4f}" if 1 < value < 180 else ""
        raise ValueError(f"expected a field of view between 0 and pi radians, got {value:g}{hint}")
    intrinsics = torch.zeros(len(fov_rad), 3, 3, dtype=fov_rad.dtype, device=fov_rad.device)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = width / (2 * torch.tan(fov_rad / 2))
    intrinsics[:, 0, 2] = width / 2
    intrinsics[:, 1, 2] = height / 2
    intrinsics[:, 2, 2] = 1
    return intrinsics


def _size(height: int | None, width: int | None) -> tuple[int, int, bool]:
    """Height, width and whether one was given."""
    check_size(*(DEFAULT_SIZE if size is None else size for size in (height, width)))
    given = [size for size in (height, width) if size is not None]
    fallback = given[0] if given else DEFAULT_SIZE
    height, width = (fallback if size is None else size for size in (height, width))
    return height, width, bool(given)


def _poses(right: Tensor, down: Tensor, forward: Tensor, center: Tensor) -> Tensor:
    """(v, 4, 4) `world_from_cam` from four (v, 3) columns."""
    poses = torch.eye(4, dtype=center.dtype).repeat(len(center), 1, 1)
    poses[:, :3] = torch.stack([right, down, forward, center], dim=-1)
    return poses
