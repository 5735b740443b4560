"""Render a model with Blender in a process of its own: full materials, shadows, FBX and USD.

The environment variable SPAD_BLENDER names a Python with bpy, or Blender's executable. Default:
this Python, if bpy is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from spad.cameras import Cameras, to_blender
from spad.files import read_json
from spad.meshes.gltf import check_references
from spad.meshes.gltf_file import GLTF_SUFFIXES
from spad.meshes.raycast import Light, RenderBuffers, RenderResult, encode_pixels
from spad.meshes.readers import MODEL_SUFFIXES
from spad.meshes.settings import RendererSettings

SCRIPT = Path(__file__).with_name("blender_script.py")
# Keep the script's folder off sys.path: its modules would shadow others of the same names.
_SAFE_PATH = "-P"
# Blender's depth is larger where nothing is visible.
_LARGEST_DEPTH = 1e9


class BlenderRenderer:
    """Blender renderer: color by Cycles, Eevee or Workbench; depth, normals and mask by Cycles.

    Lights, cameras and animations of the file are ignored; rigged models are rendered in their rest
    pose. Normals include normal maps. `back_facing` is None. FBX and USD files define their up axis
    and unit; `object_from_asset` starts from Blender's import of them, z up, in meters.
    """

    version = 1
    suffixes = (*MODEL_SUFFIXES, ".fbx", ".usd", ".usda", ".usdc", ".usdz")

    def __init__(self, threads: int = 1):
        self.threads = threads

    def render(self, path: Path, cameras: Cameras, settings: RendererSettings) -> RenderResult:
        """Render the model at `path`, as `spad.meshes.renderers.Renderer` defines.

        Raises:
            ValueError, ModuleNotFoundError: as there.
            OSError: Blender does not run on this machine.
            MemoryError: Blender was killed.
        """
        # A missing OpenEXR is reported before Blender renders.
        import OpenEXR  # noqa: F401

        path = Path(path)
        if path.suffix.lower() not in self.suffixes:
            raise ValueError(f"expected a model file ({', '.join(self.suffixes)}), got {path.name}")
        if not path.is_file():
            raise ValueError(f"expected a model file, got {path}, which does not exist")
        if path.suffix.lower() in GLTF_SUFFIXES:
            check_references(path)
        command = blender_command()
        with tempfile.TemporaryDirectory(prefix="spad-blender-") as name:
            folder = Path(name)
            job = json.dumps(describe_job(path, cameras, settings, self.threads))
            (folder / "job.json").write_text(job, encoding="utf-8")
            result = _run([*command, name], folder, path)
            views = read_views(folder, len(cameras))
        return RenderResult(views, np.array(result["object_from_asset"]))


def blender_command() -> list[str]:
    """The command line that runs the script, without the folder of the job.

    Raises:
        ValueError: SPAD_BLENDER is not a program.
        ModuleNotFoundError: SPAD_BLENDER is not set, and bpy is not installed.
    """
    named = os.environ.get("SPAD_BLENDER")
    if not named:
        if importlib.util.find_spec("bpy") is None:
            raise ModuleNotFoundError("no Blender; see SPAD_BLENDER", name="bpy")
        return [sys.executable, _SAFE_PATH, str(SCRIPT)]
    program = shutil.which(named)
    if program is None:
        raise ValueError(
            f"expected SPAD_BLENDER to name Blender or a Python with bpy, got {named!r}, "
            "which is not a program"
        )
    if Path(program).name.lower().startswith("python"):
        return [program, _SAFE_PATH, str(SCRIPT)]
    return [program, "--background", "--factory-startup", "--python", str(SCRIPT), "--"]


def describe_job(
    path: Path, cameras: Cameras, settings: RendererSettings, threads: int = 1
) -> dict:
    """The content of job.json: settings of the script, and cameras in Blender's form."""
    matrix_world, angle_x, shift = to_blender(cameras)
    return {
        "path": str(path.resolve()),
        "normalize": settings.normalize,
        "up": settings.up,
        "max_faces": settings.max_faces,
        "engine": settings.blender_engine,
        "samples": settings.blender_samples,
        "device": settings.blender_device,
        "threads": threads,
        "light": asdict(Light()),
        "height": cameras.height,
        "width": cameras.width,
        "matrix_world": matrix_world.tolist(),
        "angle_x": angle_x.tolist(),
        "shift": shift.tolist(),
    }


def _run(command: list[str], folder: Path, path: Path) -> dict:
    """Run the script. Raises: as `BlenderRenderer.render`. Returns: the content of result.json."""
    environment = os.environ | {"TMPDIR": str(folder), "TEMP": str(folder)}
    if command[0] != sys.executable:
        # Another Python must not load the packages of this one.
        environment.pop("PYTHONPATH", None)
        environment.pop("PYTHONHOME", None)
    log_path = folder / "log.txt"
    with log_path.open("wb") as log:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    result_path = folder / "result.json"
    if not result_path.is_file():
        lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = f"; its last message: {lines[-1].strip()}" if lines else ""
        ending = f"status {done.returncode}"
        if done.returncode < 0:
            ending = signal.Signals(-done.returncode).name
        if ending == "SIGKILL":
            raise MemoryError(f"Blender was killed on {path.name}, perhaps for lack of memory")
        raise ValueError(f"cannot render {path.name}: Blender ended with {ending}{last}")
    result = read_json(result_path, dict)
    kind, error = result.get("kind"), " ".join(result.get("error", "").split())
    if kind == "missing":
        raise ModuleNotFoundError(f"no module {error} in {command[0]}", name=error)
    if kind == "machine":
        raise OSError(f"Blender does not run here: {error}")
    if kind:
        raise ValueError(f"cannot use {path.name}: {error}")
    return result


def read_views(folder: Path, num_views: int) -> RenderBuffers:
    """The images that the script wrote."""
    numbers = range(num_views)
    colors = [_read_passes(folder / f"color-{view:03d}.exr") for view in numbers]
    geometry = [_read_passes(folder / f"geometry-{view:03d}.exr") for view in numbers]
    linear = np.stack([_channels(passes, "Combined", "RGBA") for passes in colors])
    depth = np.stack([_channels(passes, "Depth", "Z")[..., 0] for passes in geometry])
    normals = np.stack([_channels(passes, "Normal", "XYZ") for passes in geometry])
    mask = depth < _LARGEST_DEPTH
    lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
    return RenderBuffers(
        rgba=encode_pixels(linear),
        depth=np.where(mask, depth, np.inf).astype(np.float32),
        normals=np.where(mask[..., None], normals / np.maximum(lengths, 1e-12), 0),
        mask=mask,
    )


def _read_passes(path: Path) -> dict[str, np.ndarray]:
    """All channels of an EXR file by the last two parts of their names, such as "Depth.Z"."""
    import OpenEXR

    with OpenEXR.File(str(path), separate_channels=True) as file:
        named = [item for part in file.parts for item in part.channels.items()]
        return {".".join(name.split(".")[-2:]): channel.pixels for name, channel in named}


def _channels(passes: dict[str, np.ndarray], name: str, letters: str) -> np.ndarray:
    return np.stack([passes[f"{name}.{letter}"] for letter in letters], axis=-1)
