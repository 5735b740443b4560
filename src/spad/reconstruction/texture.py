"""A texture for a mesh from posed images: unwrapped, projected, blended, holes filled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import xatlas
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.rays import rays
from spad.images.color import linear_from_srgb, srgb_from_linear
from spad.meshes.raycast import Light
from spad.reconstruction.hull_field import outline_distance, pixels_to
from spad.reconstruction.mesh_extraction import BareMesh
from spad.reconstruction.textured_mesh import TexturedMesh

# Depth maps have so many pixels for one of the image's, along each side.
_FINER = 2
# Outlines, and edges behind which the object itself hides, are mixed with what lies beyond; from so
# many pixels on a view counts fully.
_EDGE_FROM, _EDGE_TO = 0.7, 3.5
# Fine detail is taken from the view that looks most straight at it, the rest from all that do.
_SHARP, _SOFT = 8.0, 2.0
_DETAIL_PIXELS = 3.0
# Where all views together count less than this, colors are spread from around.
_CONFIDENCE = 0.03


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the triangles of a mesh lie on its texture.

    Attributes:
        uv: (m, 2) float32 from the top left, v down.
        faces: (f, 3) int32 into `uv`, corner by corner as the mesh's.
        vertices: (m,) int32, the mesh's vertex of each of `uv`.
        size: texels along each side.
    """

    uv: np.ndarray
    faces: np.ndarray
    vertices: np.ndarray
    size: int


@dataclass(frozen=True, eq=False)
class _Texels:
    """The texels that lie in a triangle.

    Attributes:
        row, column: (t,) int64.
        face: (t,) int64.
        weights: (t, 3) barycentric.
    """

    row: np.ndarray
    column: np.ndarray
    face: np.ndarray
    weights: np.ndarray

    def of(self, values: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """(t, c) mixed from values at vertices (n, c)."""
        return np.einsum("tk,tkc->tc", self.weights, values[faces[self.face]])


def texture_mesh(
    mesh: BareMesh,
    images: Tensor,
    alpha: Tensor,
    cameras: Cameras,
    size: int,
    light: Light | None = None,
) -> TexturedMesh:
    """The mesh with a texture of `size` texels a side, as the images show it.

    Args: as of `paint`.
    """
    layout = unwrapped(mesh, size)
    texture = paint(mesh, layout, images, alpha, cameras, light)
    return TexturedMesh(
        mesh.vertices,
        mesh.faces,
        mesh.normals,
        layout.uv,
        layout.faces,
        layout.vertices,
        texture,
        light is not None,
    )


def paint(
    mesh: BareMesh,
    layout: Layout,
    images: Tensor,
    alpha: Tensor,
    cameras: Cameras,
    light: Light | None = None,
    corner_normals: np.ndarray | None = None,
    two_sided: bool = False,
) -> np.ndarray:
    """(size, size, 3) uint8 sRGB: the texture of a mesh as images show it.

    Args:
        images: (v, 3, h, w) sRGB in [0, 1], premultiplied by alpha, on the CPU.
        alpha: (v, h, w).
        light: the one the images were made under, which is divided out; None keeps it.
        corner_normals: (f, 3, 3) of the corners of all faces, for meshes with creases.
        two_sided: faces also show colors from behind, for meshes whose normals may point in.
    """
    faces, size = mesh.faces, layout.size
    texels = _rasterized(layout.uv, layout.faces, size)
    points = torch.from_numpy(texels.of(mesh.vertices, faces)).float()
    if corner_normals is None:
        corner_normals = mesh.normals[faces]
    normals = np.einsum("tk,tkc->tc", texels.weights, corner_normals[texels.face])
    normals = F.normalize(torch.from_numpy(normals).float(), dim=1)
    color, confidence = _projected(points, normals, mesh, images, alpha, cameras, two_sided)
    color, confidence = color.numpy().astype(np.float64), confidence.numpy().astype(np.float64)
    spread = texels.of(_spread(mesh, texels, color, confidence), faces)
    share = (confidence / (confidence + _CONFIDENCE))[:, None]
    color = share * color + (1 - share) * spread
    if light is not None:
        shade = light.irradiance(normals.numpy())[:, None]
        color = srgb_from_linear((linear_from_srgb(color.clip(0, 1)) / shade).clip(0, 1))
    return _with_gutters(texels, color, size)


def depth_maps(mesh: BareMesh, cameras: Cameras) -> Tensor:
    """(v, h, w) z-depth of the mesh at the centers of pixels, infinite where it is not."""
    scene = EmbreeScene()
    TriangleMesh(scene=scene, vertices=mesh.vertices, indices=mesh.faces)
    origins, directions = rays(
        cameras.world_from_cam, cameras.intrinsics, cameras.height, cameras.width
    )
    maps = []
    for view in range(len(cameras)):
        ray = directions[view].reshape(-1, 3)
        start = origins[view].reshape(-1, 3)
        found = scene.run(
            np.ascontiguousarray(start.numpy()), np.ascontiguousarray(ray.numpy()), query="DISTANCE"
        )
        depth = torch.from_numpy(found) * (ray @ cameras.world_from_cam[view, :3, 2])
        maps.append(torch.where(torch.from_numpy(found) < 1e30, depth, torch.inf))
    return torch.stack(maps).reshape(len(cameras), cameras.height, cameras.width)


def unwrapped(mesh: BareMesh, size: int) -> Layout:
    """A mesh cut into charts, packed without overlap."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices, mesh.faces.astype(np.uint32), mesh.normals)
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding, pack.bilinear = size, 2, True
    atlas.generate(xatlas.ChartOptions(), pack)
    vertex_of, faces, uv = atlas[0]
    return Layout(uv.astype(np.float32), faces.astype(np.int32), vertex_of.astype(np.int32), size)


def overlap(layout: Layout) -> float:
    """Share of the triangles' area on the texture that lies where another one is."""
    corners = layout.uv[layout.faces].astype(np.float64) * layout.size
    area = np.abs(_cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])).sum() / 2
    covered = len(_rasterized(layout.uv, layout.faces, layout.size).row)
    return max(0.0, 1 - covered / max(area, 1.0))


def _rasterized(uv: np.ndarray, faces: np.ndarray, size: int) -> _Texels:
    """The texels whose centers lie in the triangles, each once."""
    corners = uv[faces].astype(np.float64) * size - 0.5
    low = np.ceil(corners.min(1)).astype(np.int64).clip(0)
    high = np.floor(corners.max(1)).astype(np.int64).clip(max=size - 1)
    spans = (high - low + 1).clip(0)
    counts = spans.prod(1)
    face = np.repeat(np.arange(len(faces)), counts)
    number = np.arange(len(face)) - np.repeat(counts.cumsum() - counts, counts)
    column = low[face, 0] + number % spans[face, 0]
    row = low[face, 1] + number // spans[face, 0]
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = _cross(b - a, c - a)
    place = np.stack([column, row], axis=1).astype(np.float64)
    safe = np.where(area == 0, 1.0, area)[face]
    second = _cross(place - a[face], (c - a)[face]) / safe
    third = _cross((b - a)[face], place - a[face]) / safe
    weights = np.stack([1 - second - third, second, third], axis=1)
    inside = (weights >= -1e-9).all(1) & (area != 0)[face]
    _, once = np.unique(row[inside] * size + column[inside], return_index=True)
    kept = inside.nonzero()[0][once]
    return _Texels(row[kept], column[kept], face[kept], weights[kept])


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _projected(
    points: Tensor,
    normals: Tensor,
    mesh: BareMesh,
    images: Tensor,
    alpha: Tensor,
    cameras: Cameras,
    two_sided: bool,
) -> tuple[Tensor, Tensor]:
    """sRGB (t, 3) of surface points as the views show them, and how much these count (t,)."""
    fine = cameras.resized(_FINER * cameras.height, _FINER * cameras.width)
    depth = depth_maps(mesh, fine)
    certainty = _certainty(depth, alpha)
    base, detail = _bands(images, alpha)
    layers = torch.cat([base, detail, certainty[:, None]], dim=1)
    size = points.new_tensor([cameras.width, cameras.height])
    pixel = (cameras.centers - points.mean(0)).norm(dim=1) / cameras.intrinsics[:, 0, 0]
    total = points.new_zeros(len(points), 8)
    for view in range(len(cameras)):
        towards = F.normalize(cameras.centers[view] - points, dim=1)
        cosine = (towards * normals).sum(1)
        cosine = cosine.abs() if two_sided else cosine
        faces_it = (cosine > 0.05).nonzero()[:, 0]
        cosine = cosine[faces_it]
        xy, z = (x[0] for x in cameras[view].project(points[faces_it]))
        place = (xy / size * 2 - 1).nan_to_num(nan=-2.0)[None, None]
        nearest = F.grid_sample(
            depth[view][None, None].clamp(max=1e9), place, mode="nearest", align_corners=False
        )[0, 0, 0]
        # A pixel's worth of the surface's own slope does not hide it.
        seen = z < nearest + pixel[view] * (0.5 + 1 / cosine.clamp(min=0.2))
        values = F.grid_sample(layers[view][None], place, align_corners=False)[0, :, 0].T
        weight = seen * values[:, 6]
        soft, sharp = (weight * cosine**power for power in (_SOFT, _SHARP))
        part = torch.cat([soft[:, None] * values[:, :3], sharp[:, None] * values[:, 3:6]], dim=1)
        total.index_add_(0, faces_it, torch.cat([part, soft[:, None], sharp[:, None]], dim=1))
    soft, sharp = total[:, 6:7], total[:, 7:8]
    color = total[:, :3] / soft.clamp(min=1e-6) + total[:, 3:6] / sharp.clamp(min=1e-6)
    return color.clamp(0, 1), soft[:, 0]


def _certainty(depth: Tensor, alpha: Tensor) -> Tensor:
    """(v, h, w) in [0, 1]: low at outlines, and where one part of the object ends before another.

    Args:
        depth: (v, f h, f w).
    """
    flat = depth.clamp(max=1e9)[:, None]
    # Depth that is linear in space has a linear inverse in an image; where it bends, a part ends.
    inverse = 1 / flat
    around = F.avg_pool2d(F.pad(inverse, (1,) * 4, mode="replicate"), 3, stride=1)
    jump = (inverse - around).abs() / inverse.clamp(min=1e-6) > 0.015
    reach = int(_EDGE_TO * _FINER) + 1
    from_jump = F.avg_pool2d(pixels_to(jump[:, 0], reach)[:, None], _FINER)[:, 0] / _FINER
    inside = torch.minimum(-outline_distance(alpha), from_jump)
    ramp = ((inside - _EDGE_FROM) / (_EDGE_TO - _EDGE_FROM)).clamp(0, 1)
    # Thin parts have nothing but outline: better than nothing.
    return ramp * ramp * (3 - 2 * ramp) + 0.01 * (alpha > 0.9)


def _bands(images: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Colors blurred within masks, and what the blur leaves out: (v, 3, h, w) each."""
    solid = (alpha > 0.9).float()[:, None]
    color = images / alpha[:, None].clamp(min=0.5)
    near, weight = _blurred(color * solid, 1.0), _blurred(solid, 1.0)
    # Pixels that are part background take the color of those beside them.
    color = torch.where(solid > 0, color, near / weight.clamp(min=1e-4))
    known = (weight > 1e-3).float()
    base = _blurred(color * known, _DETAIL_PIXELS) / _blurred(known, _DETAIL_PIXELS).clamp(min=1e-4)
    return base, (color - base) * known


def _blurred(values: Tensor, sigma: float) -> Tensor:
    reach = int(3 * sigma)
    line = torch.arange(-reach, reach + 1, dtype=values.dtype)
    window = torch.exp(-line.square() / (2 * sigma**2))
    window = window / window.sum()
    channels = values.shape[1]
    down = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    values = F.conv2d(values, down, padding=(reach, 0), groups=channels)
    return F.conv2d(values, down.mT, padding=(0, reach), groups=channels)


def _spread(
    mesh: BareMesh, texels: _Texels, color: np.ndarray, confidence: np.ndarray
) -> np.ndarray:
    """Colors (n, 3) at vertices: what the views show, spread over the surface they do not see."""
    count = len(mesh.vertices)
    corners = mesh.faces[texels.face].reshape(-1)
    share = (texels.weights * confidence[:, None]).reshape(-1)
    known = np.bincount(corners, share, count)
    sums = [np.bincount(corners, share * np.repeat(channel, 3), count) for channel in color.T]
    per_vertex = np.bincount(corners, texels.weights.reshape(-1), count)
    known = known / np.maximum(per_vertex, 1e-9)
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    length = np.linalg.norm(mesh.vertices[edges[:, 0]] - mesh.vertices[edges[:, 1]], axis=1)
    weight = 1 / np.maximum(length, 1e-3 * length.mean())
    links = sparse.coo_matrix((weight, edges.T), shape=(count, count)).tocsr()
    links = links + links.T
    degree = np.asarray(links.sum(1))[:, 0]
    # Seen vertices hold on to their color, the others are the mean of their neighbors. A part that
    # no view sees at all turns gray.
    hold = 10 * known / (known + _CONFIDENCE) * degree
    system = sparse.diags(degree + hold + 1e-6 * degree) - links
    mean = [total / np.maximum(known * per_vertex, 1e-9) for total in sums]
    right = np.stack([hold * channel + 1e-6 * degree * 0.5 for channel in mean], axis=1)
    return np.asarray(spsolve(system.tocsc(), right))


def _with_gutters(texels: _Texels, color: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8; texels outside of all triangles take the color of the nearest."""
    texture = np.zeros((size, size, 3), dtype=np.uint8)
    empty = np.ones((size, size), dtype=bool)
    texture[texels.row, texels.column] = np.rint(color.clip(0, 1) * 255).astype(np.uint8)
    empty[texels.row, texels.column] = False
    nearest = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
    assert nearest is not None, "indices are asked for"
    return texture[nearest[0], nearest[1]]
