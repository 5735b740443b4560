"""Render one model in Blender: run by `spad.meshes.blender` in a Python with bpy, or by Blender.

    python blender_script.py FOLDER
    blender --background --factory-startup --python blender_script.py -- FOLDER

FOLDER contains job.json. For every view this writes color-000.exr, anti-aliased, and
geometry-000.exr, sampled at the pixel centers; then result.json with the transform or an error.
It imports nothing from spad, which is not installed in Blender's Python.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

# bpy and mathutils are part of Blender.
# pyright: reportMissingImports=false

# Oldest supported version: earlier ones name many of these properties differently.
OLDEST = (5, 0)
CREASE_DEG = 40.0
GLTF_SUFFIXES = (".glb", ".gltf")
# Smallest width of a triangle relative to its length, and smallest length relative to the object's.
THINNEST = 1e-6
# Least alpha of an opaque surface: one half, less a rounding error.
SOLID = 0.4999
# Filter width, in pixels, that samples the pixel's center.
NARROWEST_FILTER_PX = 0.01
WORKBENCH_SAMPLES = (5, 8, 11, 16, 32)
GPU_KINDS = ("OPTIX", "CUDA", "HIP", "METAL", "ONEAPI")


class UnusableModel(Exception):
    """The model cannot be used."""


class UnusableMachine(Exception):
    """Blender does not run on this machine, or lacks something."""


class WithoutAnimations:
    """Extension of the glTF importer that drops animations, which would move nodes."""

    def gather_import_animations(self, animations: list | None, options, gltf) -> None:
        if animations:
            animations.clear()


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    try:
        result = {"object_from_asset": render_all(job, folder)}
    except ModuleNotFoundError as error:
        result = {"kind": "missing", "error": error.name}
    except (ImportError, UnusableMachine) as error:
        result = {"kind": "machine", "error": str(error)}
    # Importers may raise anything; it means that the model is unusable.
    except Exception as error:
        result = {"kind": "model", "error": in_one_line(error)}
    partial = folder / "result.json.part"
    partial.write_text(json.dumps(result), encoding="utf-8")
    os.replace(partial, folder / "result.json")


def in_one_line(error: Exception) -> str:
    """The last line of an error: Blender adds a page of text to those of its importers."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Location:")]
    last = next((line for line in reversed(lines) if line), "")
    if isinstance(error, (UnusableModel, RuntimeError)):
        return last.removeprefix("Error: ")
    return f"{type(error).__name__}: {last}"


def render_all(job: dict, folder: Path) -> list[list[float]]:
    """Render all views. Returns: object_from_asset."""
    import bpy

    if bpy.app.version < OLDEST:
        version = bpy.app.version_string
        raise UnusableMachine(f"expected Blender 5.0 or newer, got {version}")
    bpy.ops.wm.read_factory_settings(use_empty=True)
    import_model(bpy, Path(job["path"]))
    check_images(bpy, Path(job["path"]).parent)
    remove_motion(bpy, Path(job["path"]).suffix.lower())
    object_from_asset = normalize(bpy, job)
    complete_materials(bpy, Path(job["path"]).suffix.lower())
    add_lights(bpy, job["light"])
    set_up_color(bpy, job)
    render_views(bpy, job, folder / "color-{:03d}.exr")
    set_up_geometry(bpy)
    render_views(bpy, job, folder / "geometry-{:03d}.exr")
    return object_from_asset.tolist()


def import_model(bpy, path: Path) -> None:
    name, suffix = str(path), path.suffix.lower()
    # Keep the axes of the file: `normalize` turns the model upright.
    as_is = {"forward_axis": "Y", "up_axis": "Z"}
    if suffix in GLTF_SUFFIXES:
        # The importer looks here for extensions.
        importer: Any = sys.modules["io_scene_gltf2"]
        importer.glTF2ImportUserExtension = WithoutAnimations
        bpy.ops.import_scene.gltf(filepath=name, disable_bone_shape=True)
    elif suffix == ".obj":
        bpy.ops.wm.obj_import(filepath=name, **as_is)
    elif suffix == ".ply":
        bpy.ops.wm.ply_import(filepath=name, **as_is)
    elif suffix == ".stl":
        bpy.ops.wm.stl_import(filepath=name, **as_is)
    elif suffix == ".fbx":
        bpy.ops.wm.fbx_import(filepath=name, use_anim=False)
    else:
        skipped = ("cameras", "curves", "lights", "volumes", "points")
        nothing = {f"import_{kind}": False for kind in skipped}
        bpy.ops.wm.usd_import(filepath=name, create_world_material=False, **nothing)


def check_images(bpy, folder: Path) -> None:
    """Refuse images that are missing or outside the model's folder: Blender would not."""
    for image in bpy.data.images:
        if image.source != "FILE":
            continue
        path = Path(bpy.path.abspath(image.filepath)).resolve()
        if not image.packed_file and not path.is_relative_to(folder.resolve()):
            raise UnusableModel(f"it refers to {image.filepath!r}, which lies outside its folder")
        if 0 in image.size:
            raise UnusableModel(f"image {path.name!r} is missing or unreadable")


def remove_motion(bpy, suffix: str) -> None:
    """Hide everything but surfaces, and remove animations."""
    # Joints of a glTF file are nodes, posed without any animation.
    pose = "POSE" if suffix in GLTF_SUFFIXES else "REST"
    scene = bpy.context.scene
    for obj in scene.objects:
        obj.animation_data_clear()
        if obj.type == "ARMATURE":
            obj.data.pose_position = pose
        elif obj.type == "MESH":
            if obj.data.shape_keys:
                obj.data.shape_keys.animation_data_clear()
        elif obj.type != "EMPTY":
            # Hidden, not removed: it may be the parent of a surface.
            obj.hide_render = obj.hide_viewport = True
    scene.frame_set(1)


def normalize(bpy, job: dict) -> np.ndarray:
    """Transform the model into the cameras' world. Returns: object_from_asset."""
    from mathutils import Matrix

    scene = bpy.context.scene
    z_up_from_y_up = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    # Blender's import has already turned glTF from y up to z up.
    is_gltf = Path(job["path"]).suffix.lower() in GLTF_SUFFIXES
    blender_from_asset = z_up_from_y_up if is_gltf else np.eye(4)
    y_up = job["up"] == "y" or (job["up"] is None and is_gltf)
    z_up_from_asset = z_up_from_y_up if y_up else np.eye(4)
    z_up_from_blender = z_up_from_asset @ np.linalg.inv(blender_from_asset)

    parts = []
    num_faces = 0
    for instance in bpy.context.evaluated_depsgraph_get().object_instances:
        obj = instance.object
        if obj.type != "MESH" or not instance.show_self:
            continue
        mesh = obj.to_mesh()
        num_faces += len(mesh.loops) - 2 * len(mesh.polygons)
        if num_faces > job["max_faces"]:
            raise UnusableModel(f"more triangles than --max-faces {job['max_faces']:,}")
        mesh.calc_loop_triangles()
        corners = np.empty(3 * len(mesh.loop_triangles), dtype=np.int32)
        mesh.loop_triangles.foreach_get("vertices", corners)
        points = np.empty(3 * len(mesh.vertices), dtype=np.float32)
        mesh.vertices.foreach_get("co", points)
        points = points.reshape(-1, 3).astype(np.float64)
        pose = z_up_from_blender @ np.array(instance.matrix_world)
        # Vertices without a triangle are not visible, so they are not part of the bounds.
        parts.append((points @ pose[:3, :3].T + pose[:3, 3])[corners.reshape(-1, 3)])
        obj.to_mesh_clear()
    if num_faces == 0:
        raise UnusableModel("expected triangles, got none; is it a point cloud or an empty scene?")
    center, extent = bounds(visible_triangles(np.concatenate(parts), job), job)
    object_from_z_up = np.diag([1 / extent] * 3 + [1.0])
    object_from_z_up[:3, 3] = -center / extent

    root = bpy.data.objects.new("root", None)
    for obj in list(scene.objects):
        if obj.parent is None:
            obj.parent = root
    scene.collection.objects.link(root)
    root.matrix_world = Matrix((object_from_z_up @ z_up_from_blender).tolist())
    return object_from_z_up @ z_up_from_asset


def bounds(points: np.ndarray, job: dict) -> tuple[np.ndarray, float]:
    """The center of the bounding box of points, and the length that becomes 1."""
    points = points.reshape(-1, 3)
    low, high = points.min(axis=0), points.max(axis=0)
    center = (low + high) / 2
    if job["normalize"] == "sphere":
        return center, np.sqrt(((points - center) ** 2).sum(axis=-1).max())
    return center, (high - low).max()


def visible_triangles(points: np.ndarray, job: dict) -> np.ndarray:
    """Triangles (f, 3, 3) large enough to see, as `spad.meshes.mesh.visible_triangles`."""
    if not np.isfinite(points).all():
        raise UnusableModel("expected finite vertices, got NaN or infinity")
    edges = np.roll(points, -1, axis=1) - points
    longest = (edges**2).sum(axis=-1).max(axis=1)
    doubled_areas = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1)
    keep = doubled_areas > THINNEST * longest
    if not keep.any():
        raise UnusableModel("expected a surface, got only triangles without area")
    _, extent = bounds(points[keep], job)
    return points[keep & (longest > (THINNEST * extent) ** 2)]


def complete_materials(bpy, suffix: str) -> None:
    """Add normals and materials where the file has none, as the embree renderer does."""
    for material in bpy.data.materials:
        material.use_backface_culling = False
        if suffix == ".obj":
            for node in principled(material):
                color = node.inputs["Base Color"].default_value
                # Colors in MTL files are sRGB.
                color[:3] = linear_from_srgb(np.array(color[:3])).tolist()
                glow = node.inputs["Emission Color"].default_value
                glow[:3] = linear_from_srgb(np.array(glow[:3])).tolist()
    defaults: dict[str, object] = {}
    for obj in bpy.context.scene.objects:
        if obj.type != "MESH":
            continue
        mesh = obj.data
        if not mesh.has_custom_normals:
            mesh.shade_smooth()
            mesh.set_sharp_from_angle(angle=np.radians(CREASE_DEG))
        colors = mesh.color_attributes.active_color
        if colors:
            restore_truncated_colors(colors.data)
        if not mesh.materials:
            mesh.materials.append(None)
        for slot in obj.material_slots:
            if slot.material is None:
                name = colors.name if colors else ""
                if name not in defaults:
                    defaults[name] = default_material(bpy, name)
                slot.material = defaults[name]


def restore_truncated_colors(data) -> None:
    """Rescale colors that an exporter cast from [0, 1] to bytes without scaling."""
    values = np.empty(4 * len(data), dtype=np.float32)
    data.foreach_get("color", values)
    if 0 < values.max() < 1.5 / 255:
        data.foreach_set("color", np.rint(values * 255))


def default_material(bpy, color_attribute: str):
    material = bpy.data.materials.new("default")
    material.diffuse_color = (0.6, 0.6, 0.6, 1)
    tree = material.node_tree
    (shader,) = principled(material)
    shader.inputs["Base Color"].default_value = (0.6, 0.6, 0.6, 1)
    shader.inputs["Specular IOR Level"].default_value = 0
    if color_attribute:
        colors = tree.nodes.new("ShaderNodeVertexColor")
        colors.layer_name = color_attribute
        tree.links.new(colors.outputs["Color"], shader.inputs["Base Color"])
    return material


def principled(material) -> list:
    nodes = material.node_tree.nodes if material.node_tree else ()
    return [node for node in nodes if node.type == "BSDF_PRINCIPLED"]


def linear_from_srgb(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def add_lights(bpy, job: dict) -> None:
    """A sky and two soft suns with the irradiance of `spad.meshes.raycast.Light`."""
    from mathutils import Vector

    scene = bpy.context.scene
    world = bpy.data.worlds.new("sky")
    scene.world = world
    tree = world.node_tree
    tree.nodes.clear()
    background = tree.nodes.new("ShaderNodeBackground")
    background.inputs["Color"].default_value = (1, 1, 1, 1)
    output = tree.nodes.new("ShaderNodeOutputWorld")
    direction = tree.nodes.new("ShaderNodeTexCoord")
    axes = tree.nodes.new("ShaderNodeSeparateXYZ")
    radiance = tree.nodes.new("ShaderNodeMath")
    radiance.operation = "MULTIPLY_ADD"
    # A sky of radiance a + b z lights a surface of normal n by a + 2/3 b n_z.
    radiance.inputs[1].default_value = 0.75 * (job["sky"] - job["ground"])
    radiance.inputs[2].default_value = 0.5 * (job["sky"] + job["ground"])
    for source, target in (
        (direction.outputs["Generated"], axes.inputs[0]),
        (axes.outputs["Z"], radiance.inputs[0]),
        (radiance.outputs[0], background.inputs["Strength"]),
        (background.outputs[0], output.inputs["Surface"]),
    ):
        tree.links.new(source, target)
    for name in ("key", "fill"):
        sun = bpy.data.lights.new(name, "SUN")
        # Wide enough to light surfaces facing away, like the wrapped cosine.
        sun.energy = np.pi * job[name]
        sun.angle = np.pi / 2
        lamp = bpy.data.objects.new(name, sun)
        toward = Vector(job[f"{name}_direction"])
        lamp.rotation_euler = toward.to_track_quat("Z", "Y").to_euler()
        scene.collection.objects.link(lamp)


def set_up_color(bpy, job: dict) -> None:
    """Set the render engine, its quality and the file format."""
    scene = bpy.context.scene
    render, cycles = scene.render, scene.cycles
    render.resolution_x, render.resolution_y = job["width"], job["height"]
    render.resolution_percentage = 100
    render.film_transparent = True
    render.use_persistent_data = True
    render.threads_mode = "FIXED"
    render.threads = job["threads"]
    # Linear light in full precision, without a view transform.
    files = render.image_settings
    files.media_type = "MULTI_LAYER_IMAGE"
    files.file_format = "OPEN_EXR_MULTILAYER"
    files.color_depth = "32"
    files.exr_codec = "ZIP"
    cycles.samples = job["samples"]
    cycles.use_adaptive_sampling = False
    cycles.use_denoising = True
    cycles.seed = 0
    # The mean over the pixel's area, as in the embree renderer.
    cycles.pixel_filter_type = "BOX"
    cycles.filter_width = 1.0
    cycles.max_bounces = 6
    cycles.transparent_max_bounces = 16
    cycles.caustics_reflective = cycles.caustics_refractive = False
    engine = job["engine"]
    render.engine = {"cycles": "CYCLES", "eevee": "BLENDER_EEVEE"}.get(engine, "BLENDER_WORKBENCH")
    if engine == "cycles" and job["device"] == "gpu":
        use_gpu(bpy)
    elif engine == "eevee":
        scene.eevee.taa_render_samples = job["samples"]
        render.filter_size = 1.0
    elif engine == "workbench":
        fitting = [n for n in WORKBENCH_SAMPLES if n >= job["samples"]]
        scene.display.render_aa = str(min(fitting, default=max(WORKBENCH_SAMPLES)))
        scene.display.shading.light = "STUDIO"
        scene.display.shading.color_type = "TEXTURE"
        scene.display.shading.show_backface_culling = False


def use_gpu(bpy) -> None:
    preferences = bpy.context.preferences.addons["cycles"].preferences
    for kind in GPU_KINDS:
        try:
            preferences.compute_device_type = kind
        except TypeError:
            continue  # not supported by this build of Blender
        preferences.refresh_devices()
        found = [device for device in preferences.devices if device.type == kind]
        if found:
            for device in preferences.devices:
                device.use = device.type == kind
            bpy.context.scene.cycles.device = "GPU"
            return
    raise UnusableMachine("expected a GPU for Cycles, got none; try --blender-device cpu")


def set_up_geometry(bpy) -> None:
    """Switch to one exact ray through the center of each pixel."""
    scene = bpy.context.scene
    cycles, layer = scene.cycles, scene.view_layers[0]
    scene.render.engine = "CYCLES"
    cycles.samples = 1
    cycles.use_denoising = False
    cycles.filter_width = NARROWEST_FILTER_PX
    cycles.max_bounces = 0
    layer.use_pass_z = layer.use_pass_normal = True
    layer.pass_alpha_threshold = SOLID
    # A single ray would pass a transparent surface at random.
    for material in bpy.data.materials:
        for node in principled(material):
            alpha = node.inputs["Alpha"]
            if not alpha.is_linked:
                alpha.default_value = float(alpha.default_value >= SOLID)
                continue
            tree = material.node_tree
            solid = tree.nodes.new("ShaderNodeMath")
            solid.operation = "GREATER_THAN"
            solid.inputs[1].default_value = SOLID
            tree.links.new(alpha.links[0].from_socket, solid.inputs[0])
            tree.links.new(solid.outputs[0], alpha)


def render_views(bpy, job: dict, pattern: Path) -> None:
    """Render every view into its own file."""
    from mathutils import Matrix

    scene = bpy.context.scene
    if scene.camera is None:
        scene.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
        scene.collection.objects.link(scene.camera)
    lens = scene.camera.data
    lens.sensor_fit = "HORIZONTAL"
    lens.clip_start, lens.clip_end = 0.01, 1000.0
    views = zip(job["matrix_world"], job["angle_x"], job["shift"], strict=True)
    for view, (matrix_world, angle_x, shift) in enumerate(views):
        scene.camera.matrix_world = Matrix(matrix_world)
        lens.angle = angle_x
        lens.shift_x, lens.shift_y = shift
        scene.render.filepath = str(pattern).format(view)
        bpy.ops.render.render(write_still=True)


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
