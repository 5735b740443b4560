"""Views of a model by ray casting (embree) and numpy shading: colour, depth, normals, mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex import mesh_construction
from embreex.rtcore_scene import EmbreeScene

from spad.images.color import srgb_from_linear
from spad.meshes.mesh import TriangleMesh
from spad.meshes.texture_sampling import sample_texture

# See-through surfaces (alpha mask or blend) a ray may pass before it is given up on.
MAX_LAYERS = 8


@dataclass(frozen=True)
class Light:
    """Soft light fixed in the world, so that all views of an object agree.

    Irradiance of a surface with unit normal n is the hemisphere's mix of `ground` and `sky` by
    n's height, plus `key` and `fill` times a wrapped cosine to their directions. With the
    defaults it runs from 0.46 (turned away, facing down) to about 1: colours stay readable.
    Directions point towards the light, in world coordinates, any length.
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
    """Pictures of one object from v cameras; see docs/conventions.md for axes.

    Attributes:
        rgba: (v, h, w, 4) uint8, sRGB colour with straight (not premultiplied) alpha.
        depth: (v, h, w) float32, distance along the camera's forward axis of what the pixel's
            centre sees, world units, infinity where it sees nothing; None if not asked for.
        normals: (v, h, w, 3) float32, unit, world frame, facing the camera, zero where the
            pixel's centre sees nothing; None if not asked for.
        mask: (v, h, w) bool, whether the pixel's centre sees the object; None likewise.
        back_facing: (v, h, w) bool, whether it sees the rear of a triangle, the side its corners
            run clockwise on; None likewise, or where a renderer cannot tell.
    """

    rgba: np.ndarray
    depth: np.ndarray | None
    normals: np.ndarray | None
    mask: np.ndarray | None
    back_facing: np.ndarray | None = None


@dataclass(frozen=True)
class RenderResult:
    """An object's pictures, and the transform that brought its file into the world they show.

    Attributes:
        views: the pictures.
        object_from_asset: (4, 4) float64, takes the file's coordinates to the cameras' world:
            z up, centred, normalised.
        notes: sentences on what of the file is left out or was read otherwise than it says.
    """

    views: RenderBuffers
    object_from_asset: np.ndarray
    notes: tuple[str, ...] = ()


def render_views(
    obj: TriangleMesh,
    world_from_cam: np.ndarray,
    intrinsics: np.ndarray,
    height: int,
    width: int,
    samples_per_side: int = 2,
    background: tuple[float, float, float] | None = None,
    light: Light = Light(),
    geometry: bool = True,
) -> RenderBuffers:
    """Render an object from every camera.

    Colour is the mean of samples_per_side² evenly spread rays a pixel, taken in linear light.

    Args:
        obj: the object; its coordinates are the world's.
        world_from_cam: (v, 4, 4) poses, OpenCV axes.
        intrinsics: (v, 3, 3) in pixels, origin at the picture's top-left corner.
        height, width: picture size in pixels.
        samples_per_side: rays a pixel along each side, for colour.
        background: sRGB colour in [0, 1] put behind the object; None leaves it transparent.
        light: how surfaces are lit.
        geometry: also make depth, normals and mask, at the cost of one more ray a pixel.

    Raises: ValueError: sizes or shapes do not fit.
    """
    world_from_cam = np.asarray(world_from_cam, dtype=np.float64)
    intrinsics = np.asarray(intrinsics, dtype=np.float64)
    _check_views(world_from_cam, intrinsics, height, width, samples_per_side)
    num_views = len(world_from_cam)
    caster = _Caster(obj, light)
    rgba = np.zeros((num_views, height, width, 4), dtype=np.uint8)
    depth = normals = mask = back_facing = None
    if geometry:
        depth = np.full((num_views, height, width), np.inf, dtype=np.float32)
        normals = np.zeros((num_views, height, width, 3), dtype=np.float32)
        back_facing = np.zeros((num_views, height, width), dtype=bool)
    backdrop = None if background is None else np.asarray(background, dtype=np.float32)
    for view in range(num_views):
        pose, camera = world_from_cam[view], intrinsics[view]
        rows, cols = _covered(obj.vertices, pose, camera, height, width)
        if rows.stop > rows.start and cols.stop > cols.start:
            rays = _ray_directions(pose, camera, rows, cols, samples_per_side)
            linear = caster.colors(pose[:3, 3], rays.reshape(-1, 3))
            linear = linear.reshape(*rays.shape[:2], samples_per_side**2, 4)
            linear = np.einsum("hwsc->hwc", linear) / samples_per_side**2
            rgba[view, rows, cols] = encode_pixels(linear)
            if geometry:
                rays = _ray_directions(pose, camera, rows, cols, 1).reshape(-1, 3)
                shape = (rows.stop - rows.start, cols.stop - cols.start)
                distances, facing, behind = caster.surfaces(pose[:3, 3], rays)
                # Rays advance one unit along the camera's axis per unit of their parameter.
                depth[view, rows, cols] = distances.reshape(shape)
                normals[view, rows, cols] = facing.reshape(*shape, 3)
                back_facing[view, rows, cols] = behind.reshape(shape)
        if backdrop is not None:
            rgba[view] = _over(rgba[view], backdrop)
    if geometry:
        mask = np.isfinite(depth)
    return RenderBuffers(rgba, depth, normals, mask, back_facing)


def _check_views(world_from_cam, intrinsics, height, width, samples_per_side) -> None:
    if world_from_cam.ndim != 3 or world_from_cam.shape[1:] != (4, 4):
        raise ValueError(f"expected world_from_cam of shape (v, 4, 4), got {world_from_cam.shape}")
    if intrinsics.shape != (len(world_from_cam), 3, 3):
        raise ValueError(
            f"expected intrinsics of shape ({len(world_from_cam)}, 3, 3), got {intrinsics.shape}; "
            "give one matrix per pose"
        )
    if height < 1 or width < 1:
        raise ValueError(f"expected a picture of at least 1x1 pixels, got {height}x{width}")
    if samples_per_side < 1:
        raise ValueError(f"expected samples_per_side of at least 1, got {samples_per_side}")


def _covered(vertices, pose, camera, height, width) -> tuple[slice, slice]:
    """Rows and columns of the picture that the object can appear in."""
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


def _ray_directions(pose, camera, rows, cols, samples) -> np.ndarray:
    """World directions (rows, cols, samples², 3), one unit long along the camera's axis."""
    offsets = (np.arange(samples) + 0.5) / samples
    y = np.arange(rows.start, rows.stop)[:, None, None, None] + offsets[:, None]
    x = np.arange(cols.start, cols.stop)[:, None, None] + offsets
    world_from_pixel = (pose[:3, :3] @ np.linalg.inv(camera)).astype(np.float32)
    by_row = y.astype(np.float32)[..., None] * world_from_pixel[:, 1] + world_from_pixel[:, 2]
    by_col = x.astype(np.float32)[..., None] * world_from_pixel[:, 0]
    rays = by_row + by_col
    return rays.reshape(rays.shape[0], rays.shape[1], samples * samples, 3)


def encode_pixels(linear: np.ndarray) -> np.ndarray:
    """uint8 sRGB with straight alpha from premultiplied linear colour (..., 4)."""
    alpha = linear[..., 3]
    seen = alpha > 0
    pixels = np.zeros(linear.shape, dtype=np.uint8)
    straight = np.clip(linear[seen][:, :3] / alpha[seen][:, None], 0, 1)
    pixels[seen, :3] = np.rint(srgb_from_linear(straight) * 255)
    pixels[..., 3] = np.rint(alpha * 255)
    return pixels


def _over(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Opaque picture with a colour behind it, mixed in sRGB as picture viewers do."""
    alpha = rgba[..., 3:] * np.float32(1 / 255)
    mixed = rgba[..., :3] * alpha + background * 255 * (1 - alpha)
    return np.concatenate([np.rint(mixed).astype(np.uint8), np.full_like(rgba[..., 3:], 255)], -1)


class _Caster:
    """An object in embree's tree, with what shading a hit needs laid out by face."""

    def __init__(self, obj: TriangleMesh, light: Light):
        self._obj = obj
        self._light = light
        self._scene = EmbreeScene()
        mesh_construction.TriangleMesh(scene=self._scene, vertices=obj.vertices, indices=obj.faces)
        materials = obj.materials
        self._factors = np.array([m.base_factor for m in materials], dtype=np.float32)
        self._base_ids = np.array([m.base_texture for m in materials])
        self._emissive = np.array([m.emissive_factor for m in materials], dtype=np.float32)
        self._emissive_ids = np.array([m.emissive_texture for m in materials])
        self._opacity_ids = np.array([m.opacity_texture for m in materials])
        self._unlit = np.array([m.unlit for m in materials])
        # An opaque surface ignores alpha: its cut-off lies below every value.
        self._opaque = np.array([m.alpha_mode == "OPAQUE" for m in materials])
        self._masked = np.array([m.alpha_mode == "MASK" for m in materials])
        self._cutoffs = np.array([m.alpha_cutoff for m in materials], dtype=np.float32)

    def colors(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Premultiplied linear colour and coverage (n, 4) that rays from one point meet."""
        total = np.zeros((len(rays), 4), dtype=np.float32)
        for ids, faces, weights, passed in self._layers(origin, rays):
            rgb, alpha = self._shade(faces, weights, rays[ids])
            total[ids, :3] += rgb * (passed * alpha)[:, None]
            total[ids, 3] += passed * alpha
        return total

    def surfaces(
        self, origin: np.ndarray, rays: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the first surface at least half there: ray parameter (n,), normal (n, 3), rear (n,).

        The normal faces the camera; rear says whether the triangle's own faces away from it.
        """
        distances = np.full(len(rays), np.inf, dtype=np.float32)
        normals = np.zeros((len(rays), 3), dtype=np.float32)
        rear = np.zeros(len(rays), dtype=bool)
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
            rear[ids] = behind
        return distances, normals, rear

    def _layers(self, origin, rays):
        """Yield (ray ids, faces, barycentric weights, light still passing) front to back."""
        ids = np.arange(len(rays))
        starts = np.zeros(len(rays), dtype=np.float32)
        passed = np.ones(len(rays), dtype=np.float32)
        base = origin.astype(np.float32)
        origins, going_on = np.broadcast_to(base, rays.shape).copy(), rays
        for _ in range(MAX_LAYERS):
            hit = self._scene.run(origins, going_on, output=True)
            found = hit["primID"] >= 0
            u, v = hit["u"][found], hit["v"][found]
            ids, faces, passed = ids[found], hit["primID"][found], passed[found]
            if len(ids) == 0:
                return
            weights = np.stack([1 - u - v, u, v], axis=-1)
            yield ids, faces, weights, passed
            if self._opaque.all():
                return
            # A step of a ten-thousandth of the way leaves the surface just met behind.
            starts = (starts[found] + hit["tfar"][found]) * np.float32(1 + 1e-4)
            passed = passed * (1 - self._alpha(faces, weights))
            going = passed > 1 / 255
            ids, starts, passed = ids[going], starts[going], passed[going]
            if len(ids) == 0:
                return
            going_on = rays[ids]
            origins = base + starts[:, None] * going_on

    def _base(self, faces, weights) -> np.ndarray:
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

    def _textured(self, values, texture_ids, uvs, faces, weights) -> np.ndarray:
        for texture_id in np.unique(texture_ids):
            if texture_id < 0:
                continue
            chosen = texture_ids == texture_id
            part = slice(None) if chosen.all() else chosen
            uv = _interpolate(weights[part], uvs[faces[part]])
            texels = sample_texture(self._obj.textures[texture_id], uv)
            values[part] *= texels[:, : values.shape[1]]
        return values

    def _alpha(self, faces, weights) -> np.ndarray:
        material = self._obj.face_materials[faces]
        if self._opaque.all():
            return np.ones(len(faces), dtype=np.float32)
        return self._coverage(self._base(faces, weights)[:, 3], material)

    def _coverage(self, alpha, material) -> np.ndarray:
        cut = np.where(alpha >= self._cutoffs[material], np.float32(1), np.float32(0))
        alpha = np.where(self._masked[material], cut, np.clip(alpha, 0, 1))
        return np.where(self._opaque[material], np.float32(1), alpha)

    def _behind(self, faces, rays) -> np.ndarray:
        # Sides are told apart by the true surface: a smooth normal may lean past the outline.
        return _dot(self._obj.face_normals[faces], rays) > 0

    def _normals(self, faces, weights, behind) -> np.ndarray:
        normals = _unit(_interpolate(weights, self._obj.corner_normals[faces]))
        normals *= np.where(behind, np.float32(-1), np.float32(1))[:, None]
        return normals

    def _shade(self, faces, weights, rays) -> tuple[np.ndarray, np.ndarray]:
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


# Sums over two to four entries, for which einsum is several times faster than `.sum(axis)`.


def _interpolate(weights: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """(n, c) from barycentric weights (n, 3) and corner values (n, 3, c)."""
    return np.einsum("nk,nkc->nc", weights, corners)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...c,...c->...", a, b)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.sqrt(_dot(vectors, vectors)), 1e-12)[..., None]
