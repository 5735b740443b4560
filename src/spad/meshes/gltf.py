"""glTF 2.0 and GLB files read to the letter of the specification, or refused by name.

Sections in brackets are those of the Khronos glTF 2.0 specification.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spad.meshes.gltf_file import Entry, GltfFile
from spad.meshes.gltf_materials import (
    Surface,
    TextureUse,
    bare_surface,
    place_on,
    read_surface,
)
from spad.meshes.gltf_primitives import DRACO, Primitive, count_triangles, read_primitive
from spad.meshes.gltf_scene import INSTANCING, Nodes, PlacedMesh, morph_weights, skinned
from spad.meshes.model_file import Model, Part, Surfaces, check_faces, check_uvs

# What this reader does as they say.
_READ = {
    DRACO,
    INSTANCING,
    "EXT_texture_avif",
    "EXT_texture_webp",
    "KHR_materials_emissive_strength",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_materials_unlit",
    "KHR_mesh_quantization",
    "KHR_node_visibility",
    "KHR_texture_transform",
    "MSFT_texture_dds",
}
# What changes nothing of what is drawn: lights, animations and facts about the file.
_WITHOUT_EFFECT = {
    "KHR_animation_pointer",
    "KHR_lights_punctual",
    "KHR_materials_variants",
    "KHR_xmp",
    "KHR_xmp_json_ld",
}


def read_gltf(path: Path, max_faces: int | None = None, with_textures: bool = True) -> Model:
    """All triangles of the scene that a glTF or GLB file shows, animations and lights left out.

    Args:
        path: the file; what it refers to lies in its folder.
        max_faces: most triangles, instances counted; None takes any number.
        with_textures: also read what shows on surfaces; else triangles alone.

    Raises: ValueError: damaged, malformed, in need of an extension that is not read, or too
        large; the message says where in the file.
    """
    file = GltfFile(path)
    _check_extensions(file)
    file.check_places()
    nodes = Nodes(file)
    placed = list(nodes.placed_meshes())
    counts = {}
    for one in placed:
        if one.mesh not in counts:
            primitives = _primitives(file, one.mesh)
            counts[one.mesh] = sum(count_triangles(file, primitive) for primitive in primitives)
    check_faces(sum(counts[one.mesh] * len(one.world_from_mesh) for one in placed), max_faces)

    surfaces = Surfaces(with_textures)
    parts: list[Part] = []
    num_vertices = 0
    decoded: dict[tuple, Primitive | None] = {}
    for one in placed:
        mesh = file.items("meshes")[one.mesh]
        for number, entry in enumerate(_primitives(file, one.mesh)):
            weights = morph_weights(one.node, mesh, len(entry.entries("targets")))
            key = (one.mesh, number, *weights)
            if key not in decoded:
                decoded[key] = read_primitive(file, entry, weights, with_textures)
            primitive = decoded[key]
            if primitive is None or not len(primitive.triangles):
                continue
            num_vertices += len(primitive.positions) * len(one.world_from_mesh)
            if primitive.material is None:
                surface = bare_surface(surfaces, primitive.colors is not None)
            else:
                surface = read_surface(file, primitive.material, entry.place, surfaces)
            parts += _laid_out(file, nodes, one, entry, primitive, surface)
    if not with_textures:
        parts = [Part(part.corners, part.material) for part in parts]
    return Model(
        tuple(parts),
        tuple(surfaces.materials),
        tuple(surfaces.textures),
        tuple(sorted(file.notes)),
        num_vertices,
        len(file.items("animations")),
    )


def check_references(path: Path) -> None:
    """Look whether all that a GLB or glTF file refers to is there and may be read.

    For renderers that draw a model without the images that they cannot read, and say nothing:
    a white object would be learned from.

    Raises: ValueError: a file lies outside the model's folder, or an image that gives a surface
        its color is missing, damaged, or too large to be one.
    """
    try:
        file = GltfFile(path)
        file.check_places()
        for number in range(len(file.items("materials"))):
            read_surface(file, number, "materials", Surfaces())
    except ValueError as error:
        raise ValueError(f"cannot read {path.name}: {error}") from error


def _primitives(file: GltfFile, mesh: int) -> list[Entry]:
    return file.items("meshes")[mesh].entries("primitives")


def _check_extensions(file: GltfFile) -> None:
    """[3.12] What is required must be read; what is only used may be left out, and is noted."""
    known = _READ | _WITHOUT_EFFECT
    if unread := sorted(file.required - known):
        raise ValueError(f"it requires {', '.join(unread)}, which spad does not read")
    for name in sorted(set(file.root.texts("extensionsUsed")) - known):
        file.notes.add(f"uses {name}, which is left out")


def _laid_out(
    file: GltfFile,
    nodes: Nodes,
    placed: PlacedMesh,
    entry: Entry,
    primitive: Primitive,
    surface: Surface,
) -> list[Part]:
    """The triangles of a primitive in the world, one part for each instance."""
    if placed.skin is not None and primitive.joints is not None:
        joints = nodes.joint_matrices(placed.skin, placed.node.place)
        points, mirrored = skinned(primitive, joints, entry.place, file.notes)
        flipped = mirrored[primitive.triangles[:, 0]]
        # Every instance of a skinned mesh stands where its joints are.
        return [_part(file, entry, primitive, surface, points, flipped)]
    if placed.skin is not None:
        file.notes.add(f"{entry.place} has no joints, so {placed.node.place}'s skin is left out")
    parts = []
    for world in placed.world_from_mesh:
        with np.errstate(over="ignore", invalid="ignore"):
            points = primitive.positions @ world[:3, :3].T + world[:3, 3]
            # [3.7.4] A mirrored instance would turn inside out.
            is_mirrored = np.linalg.det(np.nan_to_num(world[:3, :3])) < 0
        flipped = np.full(len(primitive.triangles), is_mirrored)
        parts.append(_part(file, entry, primitive, surface, points, flipped))
    return parts


def _part(
    file: GltfFile,
    entry: Entry,
    primitive: Primitive,
    surface: Surface,
    points: np.ndarray,
    flipped: np.ndarray,
) -> Part:
    triangles = np.where(flipped[:, None], primitive.triangles[:, ::-1], primitive.triangles)

    def corners_on(use: TextureUse) -> np.ndarray | None:
        if use.texture < 0:
            return None
        if use.texcoord not in primitive.texcoords:
            file.notes.add(f"{entry.place} has no TEXCOORD_{use.texcoord}; it counts as 0, 0")
            return np.zeros((len(triangles), 3, 2), np.float32)
        uv = place_on(use, primitive.texcoords[use.texcoord])
        check_uvs(uv, entry.place)
        return uv[triangles].astype(np.float32)

    colors, own = primitive.colors, primitive.texcoords.get(0)
    return Part(
        points[triangles],
        surface.material,
        None if colors is None else colors[triangles].astype(np.float32),
        corners_on(surface.base),
        corners_on(surface.emissive),
        own_uvs=None if own is None else own[triangles].astype(np.float32),
    )
