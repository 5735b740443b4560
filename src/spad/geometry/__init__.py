"""Rays, Plücker coordinates and epipolar geometry of views. Needs only torch."""

from spad.geometry.epipolar import epipolar_mask, mask_of
from spad.geometry.pixel_bands import Bands, bands_of
from spad.geometry.rays import plucker, plucker_map, plucker_of

__all__ = [
    "Bands",
    "bands_of",
    "epipolar_mask",
    "mask_of",
    "plucker",
    "plucker_map",
    "plucker_of",
]
