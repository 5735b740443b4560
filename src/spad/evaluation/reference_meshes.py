"""3D models in files, each with the reference that it should look like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spad.evaluation.psnr_ssim import LARGEST_PSNR
from spad.evaluation.report import Column
from spad.files import file_hash
from spad.meshes.readers import MODEL_SUFFIXES

MESH_COLUMNS = (
    Column(
        "chamfer",
        False,
        0.0,
        "mean distance of the surfaces to each other, in radii of the reference; 1e-3 is one part "
        "in a thousand",
    ),
    Column("f_score", True, 1.0, "F-score: surface within 0.02 radii of the other's"),
    Column("normal_consistency", True, 1.0, "mean |cosine| between normals of nearest points"),
    Column("mesh_psnr", True, LARGEST_PSNR, "PSNR of renders from 12 cameras, all pixels, in dB"),
    Column("mesh_iou", True, 1.0, "IoU of the masks of these renders"),
)


@dataclass(frozen=True)
class MeshPair:
    """The files of a model and of its reference."""

    model: Path
    reference: Path

    def digest(self) -> str:
        """Hash of both files."""
        both = "".join(map(file_hash, (self.model, self.reference)))
        return hashlib.sha256(both.encode()).hexdigest()


def is_mesh_source(path: Path) -> bool:
    """Whether a path is a model file, or a folder with nothing else to evaluate in it."""
    if path.is_dir():
        return any(_mesh_files(path)) and not any(path.glob("*.json*"))
    return path.suffix.lower() in MODEL_SUFFIXES


def mesh_pairs(models: Path, references: Path) -> list[MeshPair]:
    """Models and their references: two files, or two folders of files with equal names.

    Raises: ValueError: one that does not exist, a folder beside a file, a folder without models, or
        a model without a reference.
    """
    for path in (models, references):
        if not path.exists():
            raise ValueError(f"expected a model file or a folder of them, got {path}: no such file")
    if models.is_dir() != references.is_dir():
        raise ValueError(
            f"expected two model files or two folders of them, got {models} and {references}"
        )
    if not models.is_dir():
        return [MeshPair(models, references)]
    known = {path.stem: path for path in _mesh_files(references)}
    pairs = []
    for path in _mesh_files(models):
        if path.stem not in known:
            raise ValueError(
                f"expected a reference of the name of every model, got none of {path.name} in "
                f"{references}"
            )
        pairs.append(MeshPair(path, known[path.stem]))
    if not pairs:
        raise ValueError(f"expected models ({', '.join(MODEL_SUFFIXES)}), got none in {models}")
    return pairs


def _mesh_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in MODEL_SUFFIXES)
