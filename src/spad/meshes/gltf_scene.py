"""Nodes of a glTF file: where each mesh stands, its instances, its skin and its morph weights.

Sections in brackets are those of the Khronos glTF 2.0 specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spad.meshes.gltf_accessors import count_of, read_floats
from spad.meshes.gltf_file import Entry, GltfFile
from spad.meshes.gltf_primitives import Primitive

INSTANCING = "EXT_mesh_gpu_instancing"
_VISIBILITY = "KHR_node_visibility"


@dataclass(frozen=True)
class PlacedMesh:
    """A mesh as one node shows it.

    Attributes:
        mesh: its number.
        node: that shows it.
        world_from_mesh: (i, 4, 4) float64, one for each instance.
        skin: number of the skin that moves it, or None.
    """

    mesh: int
    node: Entry
    world_from_mesh: np.ndarray
    skin: int | None


class Nodes:
    """The forest of a file's nodes [3.5.2] with their global transforms."""

    def __init__(self, file: GltfFile):
        """Raises: ValueError: a node is below itself or below two others."""
        self._file = file
        self._nodes = file.items("nodes")
        self._children = [node.integers("children") for node in self._nodes]
        parents: dict[int, int] = {}
        for number, children in enumerate(self._children):
            for child in children:
                file.item("nodes", child, self._nodes[number].place)
                if child in parents:
                    raise ValueError(
                        f"nodes[{child}] is below nodes {parents[child]} and {number}; "
                        "expected it below one"
                    )
                parents[child] = number
        self._roots = [n for n in range(len(self._nodes)) if n not in parents]
        self._skins: dict[int, np.ndarray] = {}
        self._global = np.zeros((len(self._nodes), 4, 4))
        waiting = [(root, np.eye(4)) for root in self._roots]
        reached = 0
        while waiting:
            number, above = waiting.pop()
            reached += 1
            with np.errstate(over="ignore", invalid="ignore"):  # looked at with the vertices
                self._global[number] = above @ _local(self._nodes[number])
            waiting += [(child, self._global[number]) for child in self._children[number]]
        if reached < len(self._nodes):
            raise ValueError("a node is below itself; expected nodes to be trees")

    def placed_meshes(self) -> Iterator[PlacedMesh]:
        """Meshes of the scene that the file shows at first [3.5.1], in order of their nodes."""
        for number in sorted(self._shown()):
            node = self._nodes[number]
            if "mesh" not in node:
                continue
            mesh = node.integer("mesh")
            self._file.item("meshes", mesh, node.place)
            world = self._global[number][None]
            instances = node.extension(INSTANCING)
            if instances is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    world = world @ _instances(self._file, instances)
            skin = node.integer("skin") if "skin" in node else None
            yield PlacedMesh(mesh, node, world, skin)

    def _shown(self) -> set[int]:
        scenes = self._file.items("scenes")
        roots = self._roots
        if scenes:
            number = self._file.root.integer("scene", 0)
            scene = self._file.item("scenes", number, "scene")
            roots = scene.integers("nodes")
        shown: set[int] = set()
        waiting = list(roots)
        while waiting:
            number = waiting.pop()
            node = self._file.item("nodes", number, "the scene")
            if number in shown:
                continue
            visibility = node.extension(_VISIBILITY)
            if visibility is not None and not visibility.truth("visible", True):
                continue
            shown.add(number)
            waiting += self._children[number]
        return shown

    def joint_matrices(self, skin: int, place: str) -> np.ndarray:
        """(j, 4, 4): global transform of each joint times its inverse bind matrix [3.7.3.1]."""
        if skin not in self._skins:
            entry = self._file.item("skins", skin, place)
            joints = entry.integers("joints")
            for joint in joints:
                self._file.item("nodes", joint, entry.place)
            if not joints:
                raise ValueError(f"{entry.place}: expected joints, got none")
            matrices = self._global[joints]
            if "inverseBindMatrices" in entry:
                index = entry.integer("inverseBindMatrices")
                if count_of(self._file, index, entry.place) < len(joints):
                    raise ValueError(f"{entry.place}: expected a matrix for each joint, got fewer")
                bind = read_floats(self._file, index, entry.place, "MAT4")[: len(joints)]
                with np.errstate(over="ignore", invalid="ignore"):
                    matrices = matrices @ bind.reshape(-1, 4, 4).transpose(0, 2, 1)
            self._skins[skin] = matrices
        return self._skins[skin]


def skinned(
    primitive: Primitive, joint_matrices: np.ndarray, place: str, notes: set[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, 3) in the world, and whether each is mirrored [3.7.3.3].

    The transform of the node that shows the mesh has no part in it.
    """
    joints, weights = primitive.joints, primitive.weights
    assert joints is not None and weights is not None, "only skinned primitives come here"
    weights = weights.clip(min=0)
    if (joints[weights > 0] >= len(joint_matrices)).any():
        raise ValueError(f"{place}: expected one of {len(joint_matrices)} joints, got another")
    joints = joints.clip(max=len(joint_matrices) - 1)
    sums = weights.sum(axis=1)
    if (sums <= 0).any():
        notes.add(f"{place}: vertices without a weight follow their first joint")
        weights = weights.copy()
        weights[sums <= 0, 0] = 1.0
        sums = weights.sum(axis=1)
    blended = np.zeros((len(joints), 3, 4))
    with np.errstate(over="ignore", invalid="ignore"):
        for influence in range(joints.shape[1]):
            share = (weights[:, influence] / sums)[:, None, None]
            blended += share * joint_matrices[joints[:, influence], :3]
        moved = np.einsum("nij,nj->ni", blended[..., :3], primitive.positions) + blended[..., 3]
        mirrored = np.linalg.det(np.nan_to_num(blended[..., :3])) < 0
    return moved, mirrored


def morph_weights(node: Entry, mesh: Entry, num_targets: int) -> list[float]:
    """Morph weights of a node, else of its mesh, else zeros [3.7.2.2]; none without targets."""
    for owner in (node, mesh):
        if "weights" in owner and num_targets:
            return owner.numbers("weights", None)
    return [0.0] * num_targets


def _local(node: Entry) -> np.ndarray:
    """A node's own transform [3.5.3], (4, 4)."""
    if "matrix" in node:  # column by column
        return np.array(node.numbers("matrix", None, 16)).reshape(4, 4).T
    return _trs(
        np.array([node.numbers("translation", [0.0, 0.0, 0.0])]),
        np.array([node.numbers("rotation", [0.0, 0.0, 0.0, 1.0])]),
        np.array([node.numbers("scale", [1.0, 1.0, 1.0])]),
    )[0]


def _instances(file: GltfFile, instances: Entry) -> np.ndarray:
    """(i, 4, 4) transforms of EXT_mesh_gpu_instancing."""
    attributes = instances.entry("attributes")
    kinds = {"TRANSLATION": "VEC3", "ROTATION": "VEC4", "SCALE": "VEC3"}
    given = {name: attributes.integer(name) for name in kinds if name in attributes}
    every = {name: attributes.integer(name) for name in attributes.names()}
    counts = {count_of(file, index, attributes.place) for index in every.values()}
    if len(counts) != 1:
        raise ValueError(f"{attributes.place}: expected equally many of each, got {sorted(counts)}")
    num = counts.pop()
    found = {
        name: read_floats(file, index, f"{attributes.place}.{name}", kinds[name])
        for name, index in given.items()
    }
    rest = {"TRANSLATION": [0.0, 0.0, 0.0], "ROTATION": [0.0, 0.0, 0.0, 1.0], "SCALE": [1.0] * 3}
    return _trs(*(found.get(name, np.array([rest[name]])) for name in rest), num=num)


def _trs(
    translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray, num: int = 1
) -> np.ndarray:
    """(n, 4, 4): scale, then rotation by a quaternion x, y, z, w, then translation."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.linalg.norm(rotation, axis=-1, keepdims=True)
        x, y, z, w = (rotation / np.where(length > 0, length, 1)).T
        turn = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        matrices = np.zeros((num, 4, 4))
        matrices[:, :3, :3] = turn.transpose(2, 0, 1) * scale[:, None, :]
    matrices[:, :3, 3] = translation
    matrices[:, 3, 3] = 1
    return matrices
