"""Conditioning of a MultiViewUNet on cameras: camera vectors, rays, epipolar masks."""

import torch
from torch import Tensor

from spad.attention import AttentionMask, DenseMask, EpipolarMask, prepare
from spad.cameras import Cameras
from spad.geometry import plucker_map_from_matrices
from spad.geometry.epipolar import NARROWEST_BAND
from spad.geometry.rays import scale_intrinsics
from spad.geometry.released_masks import flat_resize, released_mask_from_matrices
from spad.model.depth_input import nearness
from spad.model.processors import ViewConditioning
from spad.model.text import TextEmbeddings
from spad.model.unet import MultiViewUNet


def camera_vectors(
    cameras: Cameras, num_views: int, relative: bool, with_intrinsics: bool
) -> Tensor:
    """Camera vectors (b, num_views, 4), or 8 with intrinsics: the input of the camera embedding.

    The first four numbers are the polar angle from +z in radians, sine and cosine of the azimuth,
    and the radius of the camera's center in the world frame; `relative` first subtracts those of
    view 0. The last four are `Cameras.intrinsics_ndc`.

    Source: SPAD, section 3.3, and the release's two-view (relative) and four-view (absolute)
    configurations.
    """
    spherical = [torch.deg2rad(90 - cameras.elevation_deg), torch.deg2rad(cameras.azimuth_deg)]
    polar, azimuth, radius = (x.unflatten(0, (-1, num_views)) for x in (*spherical, cameras.radius))
    if relative:
        polar, azimuth, radius = (x - x[:, :1] for x in (polar, azimuth, radius))
    vectors = torch.stack([polar, azimuth.sin(), azimuth.cos(), radius], dim=-1)
    if not with_intrinsics:
        return vectors
    return torch.cat([vectors, cameras.intrinsics_ndc.unflatten(0, (-1, num_views))], dim=-1)


def condition_on_cameras(
    unet: MultiViewUNet,
    cameras: Cameras,
    height: int,
    width: int,
    num_views: int | None = None,
    text: Tensor | TextEmbeddings | None = None,
    depth: Tensor | None = None,
) -> ViewConditioning:
    """Camera vectors, rays and masks of `cameras`, prepared for `unet`.

    Args:
        height, width: size of the latents.
        num_views: views per object, if `cameras` has those of several objects in a row. Default:
            all are of one object.
        text: text embeddings, if they are the same in all steps; see `prepare_views`.
        depth: (b * v, h, w) z-depth of the images' pixels in world units, 0 or infinity where
            nothing is visible.

    Raises: ValueError: a model with the release's masks needs square images; depth for a model that
        takes none, of another size, or not of floats.
    """
    num_views = num_views or len(cameras)
    config = unet.config

    def per_object(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, num_views))

    poses = per_object(cameras.world_from_cam)
    pixels = per_object(cameras.intrinsics)

    def on_grid(grid: tuple[int, int]) -> Tensor:
        return scale_intrinsics(pixels, (cameras.height, cameras.width), grid)

    # bf16 cannot resolve half a pixel, so geometry runs without autocast.
    with torch.autocast(poses.device.type, enabled=False):
        camera = plucker = None
        if config["use_camera_embedding"]:
            is_relative = config["camera_vector"] == "relative"
            camera = camera_vectors(cameras, num_views, is_relative, config["camera_intrinsics"])
        if config["rays"] in ("map", "both"):
            plucker = plucker_map_from_matrices(poses, on_grid((height, width)), height, width)
        rays: list[Tensor] = []
        if config["rays"] in ("qk", "both"):
            # Through the tokens' own centers: resized coordinates would be those of no line.
            rays = [
                plucker_map_from_matrices(poses, on_grid(grid), *grid).flatten(-2).mT
                for grid in unet.attention_grids(height, width)
            ]
        masks: dict[int, AttentionMask] = {}
        if config["epipolar"] == "exact" and num_views > 1:
            for grid in unet.attention_grids(height, width):
                # The same band of the image at every resolution, as far as cells are fine enough.
                band = max(config["band_width"] * grid[0] / height, NARROWEST_BAND)
                masks[grid[0] * grid[1]] = EpipolarMask(
                    poses, on_grid(grid), *grid, band, config["ball_radius"]
                )
        elif config["epipolar"] == "original" and num_views > 1:
            if (cameras.height, height) != (cameras.width, width):
                raise ValueError(
                    f"expected square images for this model, which has the release's masks, got "
                    f"{cameras.height}x{cameras.width}"
                )
            finest = released_mask_from_matrices(poses, on_grid((height, width)), height)
            for rows, columns in unet.attention_grids(height, width):
                resized = flat_resize(finest, num_views, rows * columns)
                masks[rows * columns] = DenseMask(resized, num_views)
        for mask in masks.values():
            prepare(mask, unet.attention_backend)
        near = None
        if depth is not None:
            _check_depth(depth, len(cameras), height, width, config["depth_patch"])
            near = per_object(nearness(depth.to(poses.device), cameras))
    size = (cameras.height, cameras.width)
    return unet.prepare_views(num_views, camera, plucker, masks, text, rays, size, near)


def _check_depth(depth: Tensor, num_views: int, height: int, width: int, patch: int) -> None:
    if not patch:
        raise ValueError(
            "expected no depth for this model, which was not trained with it, got some; train one "
            "with: spad train --depth-prob 0.5"
        )
    expected = (num_views, patch * height, patch * width)
    if not isinstance(depth, Tensor) or not depth.is_floating_point():
        kind = depth.dtype if isinstance(depth, Tensor) else type(depth).__name__
        raise ValueError(f"expected depth as a tensor of floats, got {kind}")
    if tuple(depth.shape) != expected:
        raise ValueError(f"expected depth of shape {expected}, got {tuple(depth.shape)}")
