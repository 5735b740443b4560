"""Google Scanned Objects as MVGBench renders them: OBJECT/RENDERS/000.png …, transforms.json.

RENDERS is named after the cameras, such as `gso100-spad-v16-elev000-amb1.0`. View 0 is the front,
the input image; the others follow evenly round the object, which fills the cube from -1 to 1.

Source: MVGBench (Xie et al. 2025), docs/custom_MVG.md and render/blender_render.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spad.cameras.formats import has_cameras
from spad.data.renders import find_views
from spad.data.view_sets import PosedImages
from spad.evaluation.report import GSO_PROTOCOL


def read_gso(folder: Path) -> list[PosedImages]:
    """Every object of a folder of MVGBench's renders, by name; none has a caption.

    Args:
        folder: has a folder for each object, each with one and the same folder of renders in it.

    Raises: ValueError: there is none, an object has renders of several cameras or others than the
        rest, another number of views, or an image is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of MVGBench's renders, got {folder}: no such folder")
    objects = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    found = {
        each: [f for f in sorted(each.iterdir()) if f.is_dir() and has_cameras(f)]
        for each in objects
    }
    names = Counter(renders.name for inside in found.values() for renders in inside)
    if not names:
        raise ValueError(
            f"expected OBJECT/RENDERS/transforms.json in {folder}, as MVGBench has its renders, "
            "got none"
        )
    usual = names.most_common(1)[0][0]
    for each, inside in found.items():
        if [renders.name for renders in inside] != [usual]:
            got = ", ".join(renders.name for renders in inside) or "none"
            raise ValueError(
                f"expected renders of one kind, {usual}, of every object in {folder}, got {got} "
                f"of {each.name}; move the others elsewhere"
            )
    views = [replace(find_views(inside[0]), uid=each.name) for each, inside in found.items()]
    for one in views:
        if len(one.cameras) != len(views[0].cameras):
            raise ValueError(
                f"expected as many views of every object in {folder}, got {len(one.cameras)} of "
                f"{one.uid} and {len(views[0].cameras)} of {views[0].uid}"
            )
    return views


def gso_label(views: Sequence[PosedImages]) -> str:
    """Name of the protocol: equal for equal objects and cameras."""
    return f"{GSO_PROTOCOL}, {Path(views[0].files[0]).parent.name}, {gso_hash(views)[:12]}"


def gso_hash(views: Sequence[PosedImages]) -> str:
    """Hash of the objects' names and cameras."""
    digest = hashlib.sha256()
    for one in views:
        digest.update(one.uid.encode())
        for tensor in (one.cameras.world_from_cam, one.cameras.intrinsics):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
