"""Camera files in and out of the page, and the results as a zip."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from spad.app.messages import MOST_VIEWS, ViewsRequest, bytes_from_text
from spad.cameras import Cameras, load_cameras, save_blender, save_colmap, save_transforms
from spad.files import size_text
from spad.generation.results import write_views

FORMATS = ("transforms.json", "cameras.json", "colmap.zip")
# The files that camera readers look at, and the most they may hold.
_KNOWN = frozenset(
    "transforms.json cameras.json cameras.txt images.txt points3D.txt"
    " cameras.bin images.bin".split()
)
_MOST_BYTES = 32 * 2**20

_HOW_TO = """Views of one object with their cameras, made by spad.

nerfstudio:  ns-train nerfacto --data .
spad:        spad reconstruct . --output model.glb
Python:      spad.load_cameras("transforms.json")
"""


def read_camera_files(files: Mapping[str, str], height: int, width: int) -> Cameras:
    """Cameras of files as a browser sends them: one JSON file, a zip, or the files of COLMAP.

    Nothing is unpacked but files of known names, and those into a folder that goes again.

    Args:
        files: contents in base64 by name.
        height, width: image size, where the files state none.

    Raises: ValueError: no cameras, or too many; the message names the file, and not the folder.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            written = [
                place
                for file, text in files.items()
                for place in _unpack(file, bytes_from_text(text, file), folder)
            ]
            if not written:
                raise ValueError("expected a camera file, got none")
            cameras = load_cameras(_start(written, folder), height, width).cameras
        except ValueError as error:
            raise ValueError(str(error).replace(f"{folder}/", "").replace(name, "files")) from error
    if len(cameras) > MOST_VIEWS:
        raise ValueError(f"expected up to {MOST_VIEWS} cameras, got {len(cameras)}")
    return cameras


def write_camera_file(cameras: Cameras, kind: str) -> bytes:
    """Cameras as the contents of one of `FORMATS`.

    Raises: ValueError: there is no such format.
    """
    images = [f"images/{view:03d}.png" for view in range(len(cameras))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "transforms.json":
            save_transforms(folder / kind, cameras, images)
            return (folder / kind).read_bytes()
        if kind == "cameras.json":
            save_blender(folder / kind, cameras, images)
            return (folder / kind).read_bytes()
        if kind == "colmap.zip":
            save_colmap(folder, cameras, [Path(image).name for image in images])
            return _zipped(folder)
    raise ValueError(f"expected one of {', '.join(FORMATS)}, got {kind[:40]!r}")


def zip_of_views(request: ViewsRequest) -> bytes:
    """A zip of images, cameras, the run's record and a line on how to open them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = {**request.run, "prompts": [request.prompt]}
        write_views(folder, request.views(), request.cameras.cameras(), run)
        (folder / "HOW-TO-OPEN.txt").write_text(_HOW_TO, encoding="utf-8")
        return _zipped(folder)


def _unpack(name: str, data: bytes, folder: Path) -> list[Path]:
    """Write a file, or the known files of a zip, into a folder, flat."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        last = PurePosixPath(name.replace("\\", "/")).name
        # JSON may have any name; other bytes are taken for JSON, and named if they are not.
        is_plain = re.fullmatch(r"[\w .()-]{1,80}\.json", last) is not None
        target = folder / (last if last in _KNOWN or is_plain else "cameras.json")
        target.write_bytes(data)
        return [target]
    written, room = [], _MOST_BYTES
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            last = PurePosixPath(member.filename).name
            if last not in _KNOWN or (folder / last).exists():
                continue
            # What the archive says of its size need not be true.
            with archive.open(member) as file:
                content = file.read(room + 1)
            room -= len(content)
            if room < 0:
                raise ValueError(f"{name}: expected up to {size_text(_MOST_BYTES)} of camera files")
            (folder / last).write_bytes(content)
            written.append(folder / last)
    if not written:
        raise ValueError(f"{name}: expected transforms.json, cameras.json or a COLMAP model in it")
    return written


def _start(written: list[Path], folder: Path) -> Path:
    """What to hand to `load_cameras`."""
    return written[0] if len(written) == 1 and written[0].suffix == ".json" else folder


def _zipped(folder: Path) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return memory.getvalue()
