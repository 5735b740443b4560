"""Gaussian splats of an object: seeded on a mesh, fitted to views, written as PLY or GLB."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spad.cameras import Cameras
from spad.images.color import linear_from_srgb
from spad.reconstruction.adam import Adam
from spad.reconstruction.splat_rendering import Gaussians, draw_gaussians
from spad.reconstruction.textured_mesh import TexturedMesh

# Value of the spherical harmonic of degree 0, by which splat files scale colors.
_HARMONIC = 0.28209479177387814
# Of a triangle's size: how far a splat reaches along the surface, and across.
_ALONG, _ACROSS = 0.6, 0.1
_OPACITY = 0.95
# Learning rates of means (in mean splat sizes), log scales, quaternions, opacities and colors, at
# first; a tenth is left at the end.
_RATES = (0.05, 0.02, 0.01, 0.05, 0.01)
_FINAL_RATE = 0.1
_MASK = 0.5
# The turn from z up to y up, as a quaternion, w first.
_Y_UP = torch.tensor([0.5**0.5, -(0.5**0.5), 0.0, 0.0])


@dataclass(frozen=True, eq=False)
class Splats:
    """Gaussian splats with one color each, in the cameras' world.

    Attributes:
        gaussians: on the CPU.
        psnr: mean over the views they were fitted to, all pixels on white, in dB.
    """

    gaussians: Gaussians
    psnr: float

    def ply(self) -> bytes:
        """A binary PLY file as viewers of Gaussian splats read it, with spherical harmonics of
        degree 0; z up, the world's lengths.

        Source: the fields of Kerbl et al. 2023: logarithms of scales, logits of opacities, w first
            in quaternions.
        """
        of, count = self.gaussians, len(self.gaussians.means)
        names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
        names += [f"scale_{axis}" for axis in range(3)] + [f"rot_{part}" for part in range(4)]
        colors = (of.colors - 0.5) / _HARMONIC
        columns = [
            of.means,
            torch.zeros(count, 3),
            colors,
            of.opacity_logits[:, None],
            of.log_scales,
            torch.nn.functional.normalize(of.quaternions, dim=1),
        ]
        header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
        header += [f"property float {name}" for name in names] + ["end_header", ""]
        return (
            "\n".join(header).encode() + torch.cat(columns, dim=1).numpy().astype("<f4").tobytes()
        )

    def glb(self) -> bytes:
        """A GLB file of points with glTF's extension for Gaussian splats; y up, the world's
        lengths. Viewers without it show colored points.

        Source: KHR_gaussian_splatting, as ratified: scales and opacities as they are, w last in
            quaternions.
        """
        of = self.gaussians
        colors, opacity = of.colors.clamp(0, 1), torch.sigmoid(of.opacity_logits[:, None])
        linear = torch.from_numpy(linear_from_srgb(colors.numpy())).float()
        turned = _product(_Y_UP, torch.nn.functional.normalize(of.quaternions, dim=1))
        splat = "KHR_gaussian_splatting"
        attributes = {
            "POSITION": of.means[:, [0, 2, 1]] * torch.tensor([1.0, 1.0, -1.0]),
            "COLOR_0": torch.cat([linear, opacity], dim=1),
            f"{splat}:ROTATION": turned.roll(-1, dims=1),
            f"{splat}:SCALE": of.log_scales.exp(),
            f"{splat}:OPACITY": opacity,
            f"{splat}:SH_DEGREE_0_COEF_0": (of.colors - 0.5) / _HARMONIC,
        }
        extension = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
        return _points_glb(attributes, {splat: extension})


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Products (n, 4) of quaternions (4,) or (n, 4), w first: the second turn, then the first."""
    first = first.expand_as(second)
    real = first[:, :1] * second[:, :1] - (first[:, 1:] * second[:, 1:]).sum(1, keepdim=True)
    along = first[:, :1] * second[:, 1:] + second[:, :1] * first[:, 1:]
    return torch.cat([real, along + torch.linalg.cross(first[:, 1:], second[:, 1:])], dim=1)


def _points_glb(attributes: dict[str, Tensor], extensions: dict[str, Any]) -> bytes:
    """A GLB file of points (n, c) of float32 attributes."""
    views, accessors, data = [], [], b""
    for name, values in attributes.items():
        array = values.numpy().astype("<f4")
        kind = "SCALAR" if array.shape[1] == 1 else f"VEC{array.shape[1]}"
        accessor: dict[str, Any] = {"bufferView": len(views), "componentType": 5126}
        accessor |= {"count": len(array), "type": kind}
        if name == "POSITION":
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": array.nbytes})
        accessors.append(accessor)
        data += array.tobytes()
    primitive = {
        "mode": 0,
        "attributes": {name: number for number, name in enumerate(attributes)},
        "extensions": extensions,
    }
    scene = {
        "asset": {"version": "2.0", "generator": "spad"},
        "extensionsUsed": list(extensions),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(data)}],
    }
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def fit_splats(
    mesh: TexturedMesh, images: Tensor, alpha: Tensor, cameras: Cameras, steps: int = 200
) -> Splats:
    """Splats seeded on the faces of a mesh, fitted to views on the views' device.

    Args:
        images: (v, 3, h, w) sRGB in [0, 1], premultiplied by alpha.
        alpha: (v, h, w).
        steps: of the optimizer, each with one view.
    """
    gaussians = seeded(mesh).to(images.device)
    tensors = [tensor.requires_grad_() for tensor in gaussians.tensors()]
    size = float(gaussians.log_scales.detach().exp().amax(1).mean())
    optimizer = Adam(tensors, betas=(0.9, 0.99))
    order = torch.Generator().manual_seed(0)
    views: list[int] = []
    for step in range(steps):
        if not views:
            views = torch.randperm(len(cameras), generator=order).tolist()
        view = views.pop()
        drawn = draw_gaussians(gaussians, cameras[view])[0]
        loss = (drawn[:3] - images[view]).abs().mean()
        loss = loss + _MASK * (drawn[3] - alpha[view]).abs().mean()
        gradients = torch.autograd.grad(loss, tensors)
        decay = _FINAL_RATE ** (step / steps)
        rates = [rate * decay for rate in (_RATES[0] * size, *_RATES[1:])]
        optimizer.step(gradients, rates)
    gaussians = Gaussians(*(tensor.detach() for tensor in tensors))
    error = torch.stack(
        [
            (_on_white(draw_gaussians(gaussians, cameras[view])[0]) - white).square().mean()
            for view, white in enumerate(images + 1 - alpha[:, None])
        ]
    )
    psnr = float((-10 * error.clamp(min=1e-6).log10()).mean())
    return Splats(gaussians.to(torch.device("cpu")), psnr)


def seeded(mesh: TexturedMesh) -> Gaussians:
    """One flat splat on every face, as large, with the texture's color at its middle."""
    corners = torch.from_numpy(mesh.vertices[mesh.faces])
    a, b, c = corners.unbind(1)
    across = torch.linalg.cross(b - a, c - a)
    area = across.norm(dim=1).clamp(min=1e-12)
    normal = across / area[:, None]
    along = torch.nn.functional.normalize(b - a, dim=1, eps=1e-12)
    axes = torch.stack([along, torch.linalg.cross(normal, along), normal], dim=2)
    # An equilateral triangle's side.
    side = (area / 2 / 0.433).sqrt()
    scales = side[:, None] * torch.tensor([_ALONG, _ALONG, _ACROSS])
    height, width = mesh.texture.shape[:2]
    column, row = (mesh.uv[mesh.uv_faces].mean(1) * (width, height)).astype(int).T
    color = mesh.texture[row.clip(0, height - 1), column.clip(0, width - 1)].astype(np.float32)
    logit = float(np.log(_OPACITY / (1 - _OPACITY)))
    return Gaussians(
        corners.mean(1).float(),
        scales.clamp(min=1e-6).log().float(),
        _quaternions(axes.float()),
        torch.full((len(corners),), logit),
        torch.from_numpy(color / 255),
    )


def _on_white(drawn: Tensor) -> Tensor:
    return drawn[:3] + 1 - drawn[3:]


def _quaternions(rotations: Tensor) -> Tensor:
    """Unit quaternions (n, 4), w first, of rotation matrices (n, 3, 3).

    Of four formulas, that with the largest denominator is taken.

    Source: Shepperd 1978.
    """
    m = rotations
    x, y, z = m.diagonal(dim1=1, dim2=2).unbind(1)
    # Four times the square of each component, and the products of pairs.
    squares = torch.stack([1 + x + y + z, 1 + x - y - z, 1 - x + y - z, 1 - x - y + z], dim=1)
    wx, wy, wz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    w2, x2, y2, z2 = squares.unbind(1)
    rows = torch.stack(
        [
            torch.stack([w2, wx, wy, wz], dim=1),
            torch.stack([wx, x2, xy, xz], dim=1),
            torch.stack([wy, xy, y2, yz], dim=1),
            torch.stack([wz, xz, yz, z2], dim=1),
        ],
        dim=1,
    )
    best = rows[torch.arange(len(m)), squares.argmax(1)]
    return torch.nn.functional.normalize(best, dim=1)
