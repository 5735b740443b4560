"""Rays, Plücker coordinates and epipolar geometry of views. Needs only torch."""

from spad.geometry.bands import PixelBands, pixel_bands
from spad.geometry.epipolar import epipolar_mask, epipolar_mask_from_matrices
from spad.geometry.rays import plucker, plucker_map, plucker_map_from_matrices

__all__ = [
    "PixelBands",
    "epipolar_mask",
    "epipolar_mask_from_matrices",
    "pixel_bands",
    "plucker",
    "plucker_map",
    "plucker_map_from_matrices",
]
