"""Ray casting with embree and shading with numpy: color, depth, normals and mask of a mesh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh as EmbreeMesh
from embreex.rtcore_scene import EmbreeScene

from spad.cameras import Cameras
from spad.images.color import srgb_from_linear
from spad.meshes.mesh import TriangleMesh
from spad.meshes.texture_sampling import sample_texture

# Most transparent surfaces (alpha mask or blend) that a ray passes.
MAX_LAYERS = 8


@dataclass(frozen=True)
class Light:
    """Soft illumination fixed in the world, the same for all views.

    The irradiance of a surface with unit normal n is a mix of `ground` and `sky` by the z of n,
    plus `key` and `fill` times a wrapped cosine to their directions. With the defaults it ranges
    from 0.46 (facing down, away from the lights) to about 1. Directions point towards the light,
    in world coordinates, with any length.
    """

    ground: float = 0.45
    sky: float = 0.70
    key: float = 0.40
    key_direction: tuple[float, float, float] = (-0.45, -0.75, 0.9)
    fill: float = 0.12
    fill_direction: tuple[float, float, float] = (0.8, 0.6, 0.1)
    wrap: float = 0.25

    def irradiance(self, normals: np.ndarray) -> np.ndarray:
        """Light (n,) that surfaces of unit normals (n, 3) get, for what is white about 1."""
        height = 0.5 + 0.5 * normals[:, 2]
        total = self.ground + (self.sky - self.ground) * height
        for strength, towards in (
            (self.key, self.key_direction),
            (self.fill, self.fill_direction),
        ):
            direction = _unit(np.array(towards, dtype=np.float32))
            cosine = (normals @ direction + self.wrap) / (1 + self.wrap)
            total += strength * np.maximum(cosine, 0)
        return total


@dataclass(frozen=True)
class RenderBuffers:
    """Images of one object from v cameras; docs/conventions.md defines the axes.

    Attributes:
        rgba: (v, h, w, 4) uint8, sRGB color with straight (not premultiplied) alpha.
        depth: (v, h, w) float32 z-depth at the pixel's center, world units, infinity where nothing
            is visible.
        normals: (v, h, w, 3) float32, unit, world frame, facing the camera, zero where nothing is
            visible.
        mask: (v, h, w) bool, whether the pixel's center sees the object.
        back_facing: (v, h, w) bool, whether it sees the back of a triangle, on which its corners
            run clockwise; None if the renderer does not report it.
    """

    rgba: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    mask: np.ndarray
    back_facing: np.ndarray | None = None


@dataclass(frozen=True)
class RenderResult:
    """The images of an object, and the transform from the file's coordinates to the world.

    Attributes:
        views: the images.
        object_from_asset: (4, 4) float64, from the file's coordinates to the world: z up, centered,
            normalized.
        notes: sentences on parts of the file that were ignored or reinterpreted.
    """

    views: RenderBuffers
    object_from_asset: np.ndarray
    notes: tuple[str, ...] = ()


def render_views(
    obj: TriangleMesh, cameras: Cameras, samples_per_side: int = 2, light: Light = Light()
) -> RenderBuffers:
    """Render an object from every camera.

    Color is the mean of samples_per_side² evenly spaced rays per pixel, in linear light; depth,
    normals and mask come from one ray through the pixel's center.

    Args:
        obj: the object, in world coordinates.
        cameras: v views.
        samples_per_side: color rays per pixel side.
        light: the illumination.

    Raises: ValueError: `samples_per_side` below 1.
    """
    if samples_per_side < 1:
        raise ValueError(f"expected samples_per_side of at least 1, got {samples_per_side}")
    num_views, height, width = len(cameras), cameras.height, cameras.width
    poses = cameras.world_from_cam.cpu().numpy().astype(np.float64)
    intrinsics = cameras.intrinsics.cpu().numpy().astype(np.float64)
    caster = _Caster(obj, light)
    rgba = np.zeros((num_views, height, width, 4), dtype=np.uint8)
    depth = np.full((num_views, height, width), np.inf, dtype=np.float32)
    normals = np.zeros((num_views, height, width, 3), dtype=np.float32)
    back_facing = np.zeros((num_views, height, width), dtype=bool)
    for view, (pose, camera) in enumerate(zip(poses, intrinsics, strict=True)):
        rows, cols = _covered(obj.vertices, pose, camera, height, width)
        if rows.stop <= rows.start or cols.stop <= cols.start:
            continue
        rays = _ray_directions(pose, camera, rows, cols, samples_per_side)
        linear = caster.colors(pose[:3, 3], rays.reshape(-1, 3))
        linear = linear.reshape(*rays.shape[:2], samples_per_side**2, 4)
        linear = np.einsum("hwsc->hwc", linear) / samples_per_side**2
        rgba[view, rows, cols] = encode_pixels(linear)
        rays = _ray_directions(pose, camera, rows, cols, 1).reshape(-1, 3)
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        distances, facing, behind = caster.surfaces(pose[:3, 3], rays)
        # Rays advance one unit along the camera's axis per unit of their parameter.
        depth[view, rows, cols] = distances.reshape(shape)
        normals[view, rows, cols] = facing.reshape(*shape, 3)
        back_facing[view, rows, cols] = behind.reshape(shape)
    return RenderBuffers(rgba, depth, normals, np.isfinite(depth), back_facing)


def _covered(
    vertices: np.ndarray, pose: np.ndarray, camera: np.ndarray, height: int, width: int
) -> tuple[slice, slice]:
    """Rows and columns of the image that may contain the object."""
    cam = (vertices - pose[:3, 3]) @ pose[:3, :3]
    if cam[:, 2].min() <= 1e-3:
        return slice(0, height), slice(0, width)  # the camera is beside or inside the object
    pixels = cam @ camera.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    low = np.floor(pixels.min(axis=0)) - 1
    high = np.ceil(pixels.max(axis=0)) + 1
    (left, top), (right, bottom) = (
        np.clip(corner, 0, (width, height)).astype(int).tolist() for corner in (low, high)
    )
    return slice(top, bottom), slice(left, right)


def _ray_directions(
    pose: np.ndarray, camera: np.ndarray, rows: slice, cols: slice, samples: int
) -> np.ndarray:
    """World directions (rows, cols, samples², 3) with z = 1 in camera axes."""
    offsets = (np.arange(samples) + 0.5) / samples
    y = np.arange(rows.start, rows.stop)[:, None, None, None] + offsets[:, None]
    x = np.arange(cols.start, cols.stop)[:, None, None] + offsets
    world_from_pixel = (pose[:3, :3] @ np.linalg.inv(camera)).astype(np.float32)
    by_row = y.astype(np.float32)[..., None] * world_from_pixel[:, 1] + world_from_pixel[:, 2]
    by_col = x.astype(np.float32)[..., None] * world_from_pixel[:, 0]
    rays = by_row + by_col
    return rays.reshape(rays.shape[0], rays.shape[1], samples * samples, 3)


def encode_pixels(linear: np.ndarray) -> np.ndarray:
    """Premultiplied linear color (..., 4) as uint8 sRGB with straight alpha."""
    alpha = linear[..., 3]
    seen = alpha > 0
    pixels = np.zeros(linear.shape, dtype=np.uint8)
    straight = np.clip(linear[seen][:, :3] / alpha[seen][:, None], 0, 1)
    pixels[seen, :3] = np.rint(srgb_from_linear(straight) * 255)
    pixels[..., 3] = np.rint(alpha * 255)
    return pixels


class _Caster:
    """An object in an embree scene, with its materials as arrays for shading."""

    def __init__(self, obj: TriangleMesh, light: Light):
        self._obj = obj
        self._light = light
        self._scene = EmbreeScene()
        EmbreeMesh(scene=self._scene, vertices=obj.vertices, indices=obj.faces)
        materials = obj.materials
        self._factors = np.array([m.base_factor for m in materials], dtype=np.float32)
        self._base_ids = np.array([m.base_texture for m in materials])
        self._emissive = np.array([m.emissive_factor for m in materials], dtype=np.float32)
        self._emissive_ids = np.array([m.emissive_texture for m in materials])
        self._opacity_ids = np.array([m.opacity_texture for m in materials])
        self._unlit = np.array([m.unlit for m in materials])
        self._opaque = np.array([m.alpha_mode == "OPAQUE" for m in materials])
        self._masked = np.array([m.alpha_mode == "MASK" for m in materials])
        self._cutoffs = np.array([m.alpha_cutoff for m in materials], dtype=np.float32)

    def colors(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Premultiplied linear color and alpha (n, 4) along rays from one point."""
        total = np.zeros((len(rays), 4), dtype=np.float32)
        for ids, faces, weights, passed in self._layers(origin, rays):
            rgb, alpha = self._shade(faces, weights, rays[ids])
            total[ids, :3] += rgb * (passed * alpha)[:, None]
            total[ids, 3] += passed * alpha
        return total

    def surfaces(
        self, origin: np.ndarray, rays: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first surface of alpha ≥ 0.5 on each ray.

        Returns: ray parameter (n,), shading normal (n, 3) facing the camera, and whether the
            triangle's own normal faces away (n,).
        """
        distances = np.full(len(rays), np.inf, dtype=np.float32)
        normals = np.zeros((len(rays), 3), dtype=np.float32)
        back_facing = np.zeros(len(rays), dtype=bool)
        for ids, faces, weights, _ in self._layers(origin, rays):
            solid = self._alpha(faces, weights) >= 0.5
            solid &= np.isinf(distances[ids])
            ids, faces, weights = ids[solid], faces[solid], weights[solid]
            points = _interpolate(weights, self._obj.vertices[self._obj.faces[faces]])
            ray = rays[ids]
            along = _dot(points - origin.astype(np.float32), ray) / _dot(ray, ray)
            distances[ids] = along
            behind = self._behind(faces, ray)
            normals[ids] = self._normals(faces, weights, behind)
            back_facing[ids] = behind
        return distances, normals, back_facing

    def _layers(
        self, origin: np.ndarray, rays: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """The surfaces along rays, front to back.

        Yields: ray ids (m,), faces (m,), barycentric weights (m, 3), transmittance so far (m,).
        """
        ids = np.arange(len(rays))
        starts = np.zeros(len(rays), dtype=np.float32)
        passed = np.ones(len(rays), dtype=np.float32)
        base = origin.astype(np.float32)
        origins, directions = np.broadcast_to(base, rays.shape).copy(), rays
        for _ in range(MAX_LAYERS):
            hit = self._scene.run(origins, directions, output=True)
            found = hit["primID"] >= 0
            u, v = hit["u"][found], hit["v"][found]
            ids, faces, passed = ids[found], hit["primID"][found], passed[found]
            if len(ids) == 0:
                return
            weights = np.stack([1 - u - v, u, v], axis=-1)
            yield ids, faces, weights, passed
            if self._opaque.all():
                return
            # Continue 1/10,000 of the distance behind the surface, so as not to hit it again.
            starts = (starts[found] + hit["tfar"][found]) * np.float32(1 + 1e-4)
            passed = passed * (1 - self._alpha(faces, weights))
            visible = passed > 1 / 255
            ids, starts, passed = ids[visible], starts[visible], passed[visible]
            if len(ids) == 0:
                return
            directions = rays[ids]
            origins = base + starts[:, None] * directions

    def _base(self, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Linear base color and alpha (n, 4)."""
        material = self._obj.face_materials[faces]
        base = self._factors[material]
        if self._obj.corner_colors is not None:
            base = base * _interpolate(weights, self._obj.corner_colors[faces])
        uvs = self._obj.base_uvs
        base = self._textured(base, self._base_ids[material], uvs, faces, weights)
        opacity_ids = self._opacity_ids[material]
        if (opacity_ids >= 0).any():
            opacity = np.ones_like(base)
            uvs = self._obj.opacity_uvs
            base[:, 3] *= self._textured(opacity, opacity_ids, uvs, faces, weights)[:, 3]
        return base

    def _textured(
        self,
        values: np.ndarray,
        texture_ids: np.ndarray,
        uvs: np.ndarray | None,
        faces: np.ndarray,
        weights: np.ndarray,
    ) -> np.ndarray:
        """Values (n, c) multiplied by their textures, where there are any, in place."""
        for texture_id in np.unique(texture_ids):
            if texture_id < 0:
                continue
            assert uvs is not None
            chosen = texture_ids == texture_id
            part = slice(None) if chosen.all() else chosen
            uv = _interpolate(weights[part], uvs[faces[part]])
            texels = sample_texture(self._obj.textures[texture_id], uv)
            values[part] *= texels[:, : values.shape[1]]
        return values

    def _alpha(self, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
        material = self._obj.face_materials[faces]
        if self._opaque.all():
            return np.ones(len(faces), dtype=np.float32)
        return self._coverage(self._base(faces, weights)[:, 3], material)

    def _coverage(self, alpha: np.ndarray, material: np.ndarray) -> np.ndarray:
        """Alpha (n,) as the alpha modes of the materials interpret it."""
        cut = np.where(alpha >= self._cutoffs[material], np.float32(1), np.float32(0))
        alpha = np.where(self._masked[material], cut, np.clip(alpha, 0, 1))
        return np.where(self._opaque[material], np.float32(1), alpha)

    def _behind(self, faces: np.ndarray, rays: np.ndarray) -> np.ndarray:
        # By the face normal: a smooth normal may point away from the camera near the outline.
        return _dot(self._obj.face_normals[faces], rays) > 0

    def _normals(self, faces: np.ndarray, weights: np.ndarray, behind: np.ndarray) -> np.ndarray:
        normals = _unit(_interpolate(weights, self._obj.corner_normals[faces]))
        normals *= np.where(behind, np.float32(-1), np.float32(1))[:, None]
        return normals

    def _shade(
        self, faces: np.ndarray, weights: np.ndarray, rays: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Linear color (n, 3) and alpha (n,) of hits."""
        material = self._obj.face_materials[faces]
        base = self._base(faces, weights)
        normals = self._normals(faces, weights, self._behind(faces, rays))
        irradiance = self._light.irradiance(normals)
        irradiance = np.where(self._unlit[material], np.float32(1), irradiance)
        rgb = base[:, :3] * irradiance[:, None]
        if self._emissive.any():
            emissive = self._emissive[material]
            ids, uvs = self._emissive_ids[material], self._obj.emissive_uvs
            rgb += self._textured(emissive, ids, uvs, faces, weights)
        return rgb, self._coverage(base[:, 3], material)


# Sums over two to four entries: einsum is several times faster than `.sum(axis)`.


def _interpolate(weights: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Values (n, c) at barycentric weights (n, 3) of corner values (n, 3, c)."""
    return np.einsum("nk,nkc->nc", weights, corners)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...c,...c->...", a, b)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.sqrt(_dot(vectors, vectors)), 1e-12)[..., None]
