"""A closed mesh with a texture, and the files it is written to: GLB, OBJ, PLY, STL."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial

from spad.reconstruction.config import MODEL_SUFFIXES

# As glTF wants it: y up. z up becomes y up by (x, y, z) -> (x, z, -y), as in Blender's exporter.
_Y_UP_FROM_Z_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float32)
_QUALITY = 92


def model_files(path: Path) -> list[Path]:
    """The files that a model consists of: `path`, and for .obj its material and its texture."""
    beside = (".mtl", ".jpg") if path.suffix.lower() == ".obj" else ()
    return [path, *(path.with_suffix(suffix) for suffix in beside)]


@dataclass(frozen=True, eq=False)
class TexturedMesh:
    """A watertight mesh in the cameras' world (z up, its units), with a texture.

    Attributes:
        vertices: (n, 3) float32.
        faces: (f, 3) int32 into `vertices`, counter-clockwise seen from outside.
        normals: (n, 3) float32, unit.
        uv: (m, 2) float32 texture coordinates from the top left, v down; a vertex on a seam has
            several.
        uv_faces: (f, 3) int32 into `uv`, corner by corner as `faces`.
        uv_vertices: (m,) int32, the vertex of each of `uv`.
        texture: (h, w, 3) uint8 sRGB.
        is_lit: the texture holds base color, to be lit; else it shows light already.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    uv_vertices: np.ndarray
    texture: np.ndarray
    is_lit: bool = False

    def vertex_colors(self) -> np.ndarray:
        """(n, 3) uint8 sRGB: the texture at each vertex."""
        height, width = self.texture.shape[:2]
        x, y = (self.uv * (width, height)).astype(int).T
        colors = np.zeros((len(self.vertices), 3), dtype=np.uint8)
        colors[self.uv_vertices] = self.texture[y.clip(0, height - 1), x.clip(0, width - 1)]
        return colors

    def files(self, name: str) -> dict[str, bytes]:
        """The file `name`, and those it refers to, by name.

        GLB: y up, texture inside, unlit unless `is_lit`. OBJ: z up, with a material file and a
        texture. PLY: z up, colors at vertices. STL: z up, no color. Lengths are the world's.

        Raises: ValueError: another suffix.
        """
        suffix = Path(name).suffix.lower()
        if suffix == ".glb":
            return {name: self._glb()}
        if suffix == ".obj":
            return self._obj(name)
        if suffix in (".ply", ".stl"):
            mesh = trimesh.Trimesh(self.vertices, self.faces, process=False)
            if suffix == ".ply":
                mesh.visual = ColorVisuals(mesh, vertex_colors=self.vertex_colors())
            exported = mesh.export(file_type=suffix[1:])
            assert isinstance(exported, bytes), "both are written binary"
            return {name: exported}
        raise ValueError(
            f"expected a model file ({', '.join(MODEL_SUFFIXES)}), got {name}; try model.glb"
        )

    def _glb(self) -> bytes:
        material = PBRMaterial(
            baseColorTexture=self._jpeg(), metallicFactor=0.0, roughnessFactor=1.0
        )
        # trimesh counts v from the bottom.
        uv = np.stack([self.uv[:, 0], 1 - self.uv[:, 1]], axis=1)
        mesh = trimesh.Trimesh(
            self.vertices[self.uv_vertices] @ _Y_UP_FROM_Z_UP.T,
            self.uv_faces,
            vertex_normals=self.normals[self.uv_vertices] @ _Y_UP_FROM_Z_UP.T,
            visual=TextureVisuals(uv=uv, material=material),
            process=False,
        )
        scene = trimesh.Scene(mesh)

        def unlit(tree: dict) -> None:
            for material in tree["materials"]:
                material["extensions"] = {"KHR_materials_unlit": {}}
            tree["extensionsUsed"] = ["KHR_materials_unlit"]

        return export_glb(
            scene, include_normals=True, tree_postprocessor=None if self.is_lit else unlit
        )

    def _jpeg(self) -> Image.Image:
        """The texture as an image that is written as JPEG, a third of PNG's size."""
        encoded = io.BytesIO()
        Image.fromarray(self.texture).save(encoded, "JPEG", quality=_QUALITY, subsampling=0)
        return Image.open(encoded)

    def _obj(self, name: str) -> dict[str, bytes]:
        _, material, image = (path.name for path in model_files(Path(name)))
        corners = np.stack([self.faces, self.uv_faces, self.faces], axis=-1) + 1
        lines = [f"mtllib {material}", "usemtl surface"]
        lines += ["v {:.6g} {:.6g} {:.6g}".format(*row) for row in self.vertices.tolist()]
        lines += [f"vt {u:.6g} {1 - v:.6g}" for u, v in self.uv.tolist()]
        lines += ["vn {:.4g} {:.4g} {:.4g}".format(*row) for row in self.normals.tolist()]
        lines += [
            "f {}/{}/{} {}/{}/{} {}/{}/{}".format(*row) for row in corners.reshape(-1, 9).tolist()
        ]
        encoded = io.BytesIO()
        Image.fromarray(self.texture).save(encoded, "JPEG", quality=_QUALITY, subsampling=0)
        illumination = f"Kd 1 1 1\nKs 0 0 0\nillum {int(self.is_lit)}"
        surface = f"newmtl surface\n{illumination}\nmap_Kd {image}\n"
        return {
            name: ("\n".join(lines) + "\n").encode(),
            material: surface.encode(),
            image: encoded.getvalue(),
        }
