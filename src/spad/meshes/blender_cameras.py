"""Cameras of a Blender scene to and from cameras.json: an add-on, and a script without a window.

As an add-on: Edit > Preferences > Add-ons > Install from Disk; it adds entries to File > Export and
File > Import. As a script:

    blender scene.blend --background --python blender_cameras.py -- write cameras.json
    blender scene.blend --background --python blender_cameras.py -- read cameras.json new.blend

It runs in Blender's Python, so it imports nothing of spad.
"""

from __future__ import annotations

# bpy and mathutils are part of Blender.
# pyright: reportMissingImports=false
import json
import math
import sys
from pathlib import Path
from typing import Any

import bpy
from bpy_extras.io_utils import ExportHelper, ImportHelper
from mathutils import Matrix

bl_info = {
    "name": "Cameras of spad",
    "description": "Write and read cameras.json, and read transforms.json of nerfstudio",
    "author": "the spad authors",
    "version": (0, 1, 0),
    "blender": (4, 2, 0),
    "category": "Import-Export",
}


def write_cameras(path: str | Path) -> int:
    """Write the selected cameras of the scene, or all if none is selected, in order of name.

    Images have the size of the scene's render settings.

    Raises: ValueError: the scene has no camera, one is not a perspective camera, or pixels are not
        square.
    """
    scene = bpy.context.scene
    cameras = sorted((o for o in scene.objects if o.type == "CAMERA"), key=lambda one: one.name)
    cameras = [one for one in cameras if one.select_get()] or cameras
    if not cameras:
        raise ValueError("expected a scene with cameras, got none")
    scale = scene.render.resolution_percentage / 100
    width = round(scene.render.resolution_x * scale)
    height = round(scene.render.resolution_y * scale)
    if scene.render.pixel_aspect_x != scene.render.pixel_aspect_y:
        raise ValueError("expected square pixels, got others; set the pixel aspect to 1")
    views = [_described(one, height, width) for one in cameras]
    data = {"height": height, "width": width, "cameras": views}
    Path(path).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return len(views)


def read_cameras(path: str | Path) -> int:
    """Add the cameras of a cameras.json, or of nerfstudio's transforms.json, to the scene.

    The render settings get their image size, and the timeline one frame per camera, so that
    rendering the animation renders every view. Images that the file names are shown behind.

    Raises: ValueError: the file holds no cameras.
    """
    path = Path(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    views = data.get("cameras") or data.get("frames")
    if not isinstance(views, list):
        raise ValueError(f"{path}: expected a list 'cameras' or 'frames', got none")
    size = 0, 0
    scene = bpy.context.scene
    collection = bpy.data.collections.new(path.stem)
    scene.collection.children.link(collection)
    for index, view in enumerate(views):
        fields = {**data, **view}
        name = f"view {index:03d}"
        camera = bpy.data.objects.new(name, bpy.data.cameras.new(name))
        collection.objects.link(camera)
        size = _place(camera, fields)
        marker = scene.timeline_markers.new(camera.name, frame=index + 1)
        marker.camera = camera
        _show_behind(camera, path.parent, fields.get("image") or fields.get("file_path"))
    scene.render.resolution_y, scene.render.resolution_x = size
    scene.render.resolution_percentage = 100
    scene.render.pixel_aspect_x = scene.render.pixel_aspect_y = 1
    scene.frame_start, scene.frame_end = 1, len(views)
    scene.camera = scene.timeline_markers[-len(views)].camera
    return len(views)


def _described(camera: Any, height: int, width: int) -> dict[str, Any]:
    if camera.data.type != "PERSP":
        raise ValueError(f"expected perspective cameras, got {camera.data.type} of {camera.name}")
    # The projection knows of sensor fit and shift; NDC are 1 at the edges of the image.
    depsgraph = bpy.context.evaluated_depsgraph_get()
    projection = camera.calc_matrix_camera(depsgraph, x=width, y=height)
    place, turn, _ = camera.matrix_world.decompose()
    return {
        "name": camera.name,
        # As Blender renders, a scaled camera is like one that is not.
        "matrix_world": [list(row) for row in Matrix.LocRotScale(place, turn, None)],
        "fov_rad": 2 * math.atan(1 / projection[0][0]),
        "shift_x": projection[0][2] / 2,
        "shift_y": projection[1][2] * height / (2 * width),
    }


def _place(camera: Any, fields: dict[str, Any]) -> tuple[int, int]:
    """Set up one camera. Returns: height and width of its images."""
    lens = camera.data
    lens.sensor_fit = "HORIZONTAL"
    if "matrix_world" in fields:
        height, width = fields["height"], fields["width"]
        camera.matrix_world = Matrix(fields["matrix_world"])
        lens.angle_x = fields["fov_rad"]
        lens.shift_x, lens.shift_y = fields.get("shift_x", 0.0), fields.get("shift_y", 0.0)
        return int(height), int(width)
    height, width = int(fields["h"]), int(fields["w"])
    # nerfstudio's camera axes are Blender's.
    camera.matrix_world = Matrix(fields["transform_matrix"])
    angle = fields.get("camera_angle_x")
    lens.angle_x = 2 * math.atan(width / (2 * fields["fl_x"])) if "fl_x" in fields else angle
    lens.shift_x = 0.5 - fields.get("cx", width / 2) / width
    lens.shift_y = (fields.get("cy", height / 2) - height / 2) / width
    return height, width


def _show_behind(camera: Any, folder: Path, name: str | None) -> None:
    if name is None or not (folder / name).is_file():
        return
    camera.data.show_background_images = True
    behind = camera.data.background_images.new()
    behind.image = bpy.data.images.load(str(folder / name), check_existing=True)


class ExportCameras(bpy.types.Operator, ExportHelper):
    """Write the selected cameras, or all, for spad generate --cameras"""

    bl_idname = "export_scene.spad_cameras"
    bl_label = "Export cameras.json"
    filename_ext = ".json"

    def execute(self, _context: Any) -> set[str]:
        return _told(self, write_cameras)


class ImportCameras(bpy.types.Operator, ImportHelper):
    """Add the cameras of a cameras.json or transforms.json"""

    bl_idname = "import_scene.spad_cameras"
    bl_label = "Import cameras.json"
    filename_ext = ".json"

    def execute(self, _context: Any) -> set[str]:
        return _told(self, read_cameras)


def _told(operator: Any, function: Any) -> set[str]:
    try:
        count = function(operator.filepath)
    except (ValueError, KeyError, OSError) as error:
        operator.report({"ERROR"}, str(error))
        return {"CANCELLED"}
    operator.report({"INFO"}, f"{count} cameras")
    return {"FINISHED"}


def _export_entry(menu: Any, _context: Any) -> None:
    menu.layout.operator(ExportCameras.bl_idname, text="Cameras of spad (cameras.json)")


def _import_entry(menu: Any, _context: Any) -> None:
    menu.layout.operator(ImportCameras.bl_idname, text="Cameras of spad (.json)")


def register() -> None:
    bpy.utils.register_class(ExportCameras)
    bpy.utils.register_class(ImportCameras)
    bpy.types.TOPBAR_MT_file_export.append(_export_entry)
    bpy.types.TOPBAR_MT_file_import.append(_import_entry)


def unregister() -> None:
    bpy.types.TOPBAR_MT_file_import.remove(_import_entry)
    bpy.types.TOPBAR_MT_file_export.remove(_export_entry)
    bpy.utils.unregister_class(ImportCameras)
    bpy.utils.unregister_class(ExportCameras)


def main(arguments: list[str]) -> None:
    verb, path, *rest = arguments
    if verb == "write":
        write_cameras(path)
    else:
        read_cameras(path)
        if rest:
            bpy.ops.wm.save_as_mainfile(filepath=str(Path(rest[0]).absolute()))


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:])
