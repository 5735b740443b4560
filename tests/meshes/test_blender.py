"""The Blender renderer: what it tells Blender, what it makes of errors, and, where there is
Blender, that its pictures show what embree's show."""

import base64
import itertools
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from gltf_builder import Gltf
from hand_made import box, edit_gltf, write_gltf
from made_views import ring, table, views_of
from spad.cameras import Cameras, from_blender
from spad.cli import main
from spad.installation import install_command
from spad.meshes.blender import SCRIPT, BlenderRenderer, blender_command, describe_job
from spad.meshes.renderers import EmbreeRenderer
from spad.meshes.settings import RendererSettings
from spad.reconstruction.reconstruct import reconstruct

SIZE = 96


def orbit(elevation_deg, azimuth_deg, height: int = SIZE, width: int = SIZE) -> Cameras:
    return Cameras.orbit(elevation_deg, azimuth_deg, height=height, width=width)


CAMERAS = orbit([20.0, -30.0, 60.0], [-60.0, 100.0, 10.0])


def settings(**changes) -> RendererSettings:
    return RendererSettings(**{"blender_samples": 8} | changes)


@pytest.fixture
def cone(tmp_path) -> Path:
    trimesh.creation.cone(radius=1, height=4).export(tmp_path / "cone.ply")
    return tmp_path / "cone.ply"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a program of a few lines in Blender's place; `folder` and `job` are given to it."""
    if os.name == "nt":
        pytest.skip("Windows runs no script by its first line")

    def install(lines: str) -> None:
        program = tmp_path / "blender"
        given = "import json, sys\nfrom pathlib import Path\nfolder = Path(sys.argv[-1])\n"
        given += "job = json.loads((folder / 'job.json').read_text())\n"
        program.write_text(f"#!{sys.executable}\n{given}{lines}\n")
        program.chmod(0o755)
        monkeypatch.setenv("SPAD_BLENDER", str(program))

    return install


def test_blender_is_told_the_same_cameras(cone):
    shifted = CAMERAS.intrinsics.clone()
    shifted[:, 0, 2] += 10
    shifted[:, 1, 2] -= 4
    cameras = replace(CAMERAS, intrinsics=shifted)
    job = json.loads(json.dumps(describe_job(cone, cameras, settings(up="y"))))
    right, above = torch.tensor(job["shift"]).T
    again = from_blender(
        job["matrix_world"], job["angle_x"], job["height"], job["width"], right, above
    )
    assert torch.allclose(again.world_from_cam, cameras.world_from_cam, atol=1e-6)
    assert torch.allclose(again.intrinsics, cameras.intrinsics, atol=1e-4)
    assert job["up"] == "y" and Path(job["path"]) == cone.resolve()


def test_which_program_runs_the_script(tmp_path, monkeypatch):
    for name in ("python3.11", "blender-5.0"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("SPAD_BLENDER", str(tmp_path / "python3.11"))
    assert blender_command() == [str(tmp_path / "python3.11"), "-P", str(SCRIPT)]
    monkeypatch.setenv("SPAD_BLENDER", str(tmp_path / "blender-5.0"))
    assert blender_command()[1:] == [
        "--background", "--factory-startup", "--python", str(SCRIPT), "--"
    ]  # fmt: skip
    monkeypatch.setenv("SPAD_BLENDER", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="SPAD_BLENDER.*not a program"):
        blender_command()


def test_pictures_are_read_as_blender_writes_them(cone, stand_in, capfd):
    # A surface of linear 0.5 in the left half of each view, half covering its pixels.
    stand_in(
        "import numpy as np, OpenEXR\n"
        "half = np.zeros((job['height'], job['width']), np.float32)\n"
        "half[:, : job['width'] // 2] = 0.5\n"
        "def write(name, channels):\n"
        "    parts = [OpenEXR.Part({}, {f'ViewLayer.{k}': v for k, v in part.items()}, n)\n"
        "             for n, part in channels.items()]\n"
        "    OpenEXR.File(parts).write(str(folder / name))\n"
        "for view in range(len(job['matrix_world'])):\n"
        "    combined = {'Combined.R': half / 2, 'Combined.G': half * 0, 'Combined.B': half,\n"
        "                'Combined.A': half}\n"
        "    write(f'color-{view:03d}.exr', {'combined': combined})\n"
        "    normal = {'Normal.X': half * 0, 'Normal.Y': half * 0, 'Normal.Z': half}\n"
        "    depth = {'Depth.Z': np.where(half > 0, np.float32(3), np.float32(1e10))}\n"
        "    write(f'geometry-{view:03d}.exr',\n"
        "          {'combined': combined, 'depth': depth, 'normal': normal})\n"
        "(folder / 'result.json').write_text(\n"
        "    json.dumps({'object_from_asset': np.eye(4).tolist()}))\n"
        "print('Blender says a lot')\n"
    )
    rendering = BlenderRenderer().render(cone, CAMERAS, settings())
    views = rendering.views
    left = np.zeros((len(CAMERAS), SIZE, SIZE), dtype=bool)
    left[..., : SIZE // 2] = True
    assert (views.rgba[left] == [188, 0, 255, 128]).all() and (views.rgba[~left] == 0).all()
    assert np.array_equal(views.mask, left) and views.rgba.dtype == np.uint8
    assert (views.depth[left] == 3).all() and np.isposinf(views.depth[~left]).all()
    assert (views.normals[left] == [0, 0, 1]).all() and (views.normals[~left] == 0).all()
    assert views.normals.dtype == views.depth.dtype == np.float32
    assert views.back_facing is None and np.array_equal(rendering.object_from_asset, np.eye(4))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("lines", "error", "words"),
    [
        ("result = {'kind': 'missing', 'error': 'bpy'}", ModuleNotFoundError, "bpy"),
        ("result = {'kind': 'machine', 'error': 'libSM.so.6'}", OSError, "here: libSM.so.6"),
        ("result = {'kind': 'model', 'error': 'one\\n two '}", ValueError, "cone.ply: one two$"),
        ("print('noise'); print('the end'); sys.exit(3)", ValueError, "status 3.*message: the end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ValueError, "SIGSEGV$"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", MemoryError, "cone.ply"),
    ],
)
def test_failures_inside_blender_are_one_line(cone, stand_in, capfd, lines, error, words):
    stand_in(lines + "\n(folder / 'result.json').write_text(json.dumps(result))")
    with pytest.raises(error, match=words) as caught:
        BlenderRenderer().render(cone, CAMERAS, settings())
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")
    if error is ModuleNotFoundError:
        assert caught.value.name == "bpy"


def test_a_bpy_that_cannot_be_loaded_says_why(cone, tmp_path, monkeypatch):
    (tmp_path / "bpy.py").write_text("raise ImportError('libSM.so.6: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SPAD_BLENDER", sys.executable)
    with pytest.raises(OSError, match=r"libSM.so.6: cannot open$"):
        BlenderRenderer().render(cone, CAMERAS, settings())


def test_without_blender_the_command_names_the_extra(cone, monkeypatch, capsys):
    monkeypatch.delenv("SPAD_BLENDER", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        BlenderRenderer().render(cone, CAMERAS, settings())
    monkeypatch.setattr("spad.data.render.render_all", lambda _: raise_(caught.value))
    assert main(["render", str(cone.parent), "--output", "out", "--renderer", "blender"]) == 1
    assert install_command("blender") in capsys.readouterr().err


def raise_(error):
    raise error


def test_files_that_blender_cannot_read_are_named(tmp_path):
    (tmp_path / "model.xyz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a model file .*\.fbx.*got model.xyz"):
        BlenderRenderer().render(tmp_path / "model.xyz", CAMERAS, settings())
    with pytest.raises(ValueError, match="does not exist"):
        BlenderRenderer().render(tmp_path / "model.fbx", CAMERAS, settings())


# From here on with Blender itself.


@pytest.fixture(scope="module")
def blender() -> list[str]:
    try:
        return blender_command()
    except ModuleNotFoundError:
        pytest.skip("bpy is not installed, and SPAD_BLENDER names no Blender")


def write_models(blender: list[str], source: Path, folder: Path) -> None:
    """`source` as an FBX and a USD file that Blender makes of it."""
    script = folder / "export.py"
    script.write_text(
        "import sys, bpy\n"
        "bpy.ops.wm.read_factory_settings(use_empty=True)\n"
        "source, folder = sys.argv[-2:]\n"
        "bpy.ops.import_scene.gltf(filepath=source)\n"
        "bpy.ops.export_scene.fbx(filepath=folder + '/model.fbx', path_mode='COPY',\n"
        "                         embed_textures=True)\n"
        "bpy.ops.wm.usd_export(filepath=folder + '/model.usdc')\n"
    )
    command = [str(script) if part == str(SCRIPT) else part for part in blender]
    done = subprocess.run([*command, str(source), str(folder)], capture_output=True, text=True)
    assert (folder / "model.usdc").is_file(), done.stderr


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def check_agreement(first, second, case: str, color: float = 30.0) -> None:
    """Masks overlap by 98 %; depth agrees to 0.5 % at 99 of 100 pixels that both see."""
    a, b = first.views, second.views
    assert overlap(a.mask, b.mask) >= 0.98, case
    both = a.mask & b.mask
    error = np.abs(a.depth[both] - b.depth[both]) / a.depth[both]
    assert np.quantile(error, 0.99) < 0.005, case
    # Where surfaces are smooth, both make up normals, in ways of their own.
    assert np.median((a.normals * b.normals).sum(-1)[both]) > 0.9, case
    solid = both & (a.rgba[..., 3] == 255) & (b.rgba[..., 3] == 255)
    colors = (v.rgba[..., :3][solid].astype(float) for v in (a, b))
    assert np.abs(np.subtract(*colors)).mean() < color, case
    alpha = np.abs(a.rgba[..., 3].astype(int) - b.rgba[..., 3]).mean()
    assert alpha < 3, case


def unpack(shared_dir: Path, folder: Path, numbers: slice) -> list[Path]:
    """Some of the real models, read as a stream, up to the last that is asked for."""
    paths = []
    with tarfile.open(shared_dir / "assets/assets.tar.xz", "r|xz") as archive:
        models = (member for member in archive if member.name.endswith(".glb"))
        for model in itertools.islice(models, numbers.start, numbers.stop, numbers.step):
            paths.append(folder / Path(model.name).name)
            paths[-1].write_bytes(archive.extractfile(model).read())
    return paths


def test_models_that_are_made_open_alike(blender, tmp_path):
    obj = table(tmp_path)
    views = views_of(obj, ring(4))
    made = reconstruct(views, faces=1500, texture_size=128, cells=32)
    for name in ("m.glb", "m.obj"):
        made.save(path := tmp_path / name)
        ours = EmbreeRenderer().render(path, CAMERAS, settings())
        theirs = BlenderRenderer().render(path, CAMERAS, settings())
        # Unlit, so colors are those of the texture.
        check_agreement(ours, theirs, name, 6.0)


@pytest.mark.slow
def test_both_renderers_agree_on_real_models(blender, shared_dir, tmp_path):
    paths = unpack(shared_dir, tmp_path, slice(0, 1632, 136))
    assert len(paths) == 12
    for path in paths:
        ours = EmbreeRenderer().render(path, CAMERAS, settings())
        theirs = BlenderRenderer().render(path, CAMERAS, settings())
        check_agreement(ours, theirs, path.name)
        gap = np.abs(ours.object_from_asset - theirs.object_from_asset)
        assert gap.max() < 1e-5 * np.abs(ours.object_from_asset).max(), path.name


def odd_models(folder: Path) -> list[Path]:
    """Files that say in rare ways where something stands and which part of a picture is on it."""
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    picture[:8, :, 0] = picture[:, 8:, 1] = 255
    placed = Gltf()
    transform = {"rotation": 0.4, "scale": [1.5, 0.7], "offset": [0.2, 0.1]}
    placed.mesh(
        placed.textured(
            picture,
            sampler={"wrapS": 33071, "wrapT": 33648},
            extensions={"KHR_texture_transform": transform},
        )
    )
    instanced = Gltf(extensionsUsed=["EXT_mesh_gpu_instancing"])
    instanced.mesh()
    attributes = {
        "TRANSLATION": instanced.accessor([[3, 0, 0], [-2, 1, 0]]),
        "ROTATION": instanced.accessor([[0, 0, 0.6, 0.8], [0, 0.6, 0, 0.8]]),
    }
    several = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    instanced.add("nodes", mesh=0, rotation=[0.6, 0, 0, 0.8], extensions=several)
    morphing = Gltf()
    target = {"POSITION": morphing.sparse([[2, 0, 2]], [3], 4)}
    morphing.mesh(morphing.primitive(targets=[target]), weights=[0.6])
    hidden = Gltf()
    hidden.mesh()
    hidden.add("nodes", mesh=0)
    hidden.add("nodes", mesh=0, translation=[30, 0, 0], scale=[0, 0, 0])
    files = {"placed": placed, "instanced": instanced, "morphing": morphing, "hidden": hidden}
    paths = [gltf.save(folder / f"{name}.gltf") for name, gltf in files.items()]
    text = "v 0 0 0\nv 2 0 0\nv 2 0 2\nv 1 0 1\nv 0 0 2\nusemtl a\nf 1 2 3 4 5\n"
    (folder / "notch.obj").write_text(f"mtllib notch.mtl\n{text}")
    (folder / "notch.mtl").write_text("newmtl a\nKd 0.8 0.2 0.2\nKe 0.1 0.1 0.3\n")
    return [*paths, folder / "notch.obj"]


@pytest.mark.slow
def test_rare_ways_to_say_things_draw_the_same(blender, tmp_path):
    for path in odd_models(tmp_path):
        ours = EmbreeRenderer().render(path, CAMERAS, settings())
        theirs = BlenderRenderer().render(path, CAMERAS, settings())
        check_agreement(ours, theirs, path.name)
        gap = np.abs(ours.object_from_asset - theirs.object_from_asset)
        assert gap.max() < 1e-5 * np.abs(ours.object_from_asset).max(), path.name


@pytest.mark.slow
def test_fbx_and_usd_draw_the_same_as_their_glb(blender, shared_dir, tmp_path):
    (source,) = unpack(shared_dir, tmp_path, slice(0, 1))
    write_models(blender, source, tmp_path)
    expected = BlenderRenderer().render(source, CAMERAS, settings())
    for suffix in ("fbx", "usdc"):
        got = BlenderRenderer().render(tmp_path / f"model.{suffix}", CAMERAS, settings())
        check_agreement(expected, got, suffix, color=6.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "changes"),
    [
        (".ply", {"normalize": "cube"}),
        (".obj", {"up": "y"}),
        (".stl", {"blender_engine": "workbench"}),
        (".glb", {"up": "z"}),
    ],
)
def test_formats_shifted_cameras_and_flags(blender, tmp_path, suffix, changes):
    mesh = trimesh.creation.box((1, 2, 3))
    mesh.apply_translation([5, 6, 7])
    mesh.visual.vertex_colors = np.tile(np.array([200, 90, 40, 255], dtype=np.uint8), (8, 1))
    path = tmp_path / f"model{suffix}"
    mesh.export(path)
    cameras = orbit([25.0, -10.0], [30.0, 200.0], height=64, width=96)
    shifted = cameras.intrinsics.clone()
    shifted[:, 0, 2] += 10
    shifted[:, 1, 2] -= 4
    cameras = replace(cameras, intrinsics=shifted)
    ours = EmbreeRenderer().render(path, cameras, settings(**changes))
    theirs = BlenderRenderer().render(path, cameras, settings(**changes))
    is_preview = "blender_engine" in changes
    check_agreement(ours, theirs, suffix, color=255.0 if is_preview else 20.0)
    assert np.allclose(ours.object_from_asset, theirs.object_from_asset, atol=1e-5)
    # The colors and the geometry lie on each other.
    assert overlap(theirs.views.rgba[..., 3] > 127, theirs.views.mask) > 0.98


def append(data: dict, values, dtype, kind: str, count: int, **extra) -> int:
    """Append an accessor to a glTF file's JSON; returns its number."""
    raw = np.asarray(values, dtype=dtype).tobytes()
    uri = "data:application/octet-stream;base64," + base64.b64encode(raw).decode()
    view = {"buffer": len(data["buffers"]), "byteOffset": 0, "byteLength": len(raw)}
    data["buffers"].append({"uri": uri, "byteLength": len(raw)})
    component = {"float32": 5126, "uint8": 5121}[dtype]
    accessor = {"bufferView": len(data["bufferViews"]), "componentType": component}
    data["bufferViews"].append(view)
    data["accessors"].append(accessor | {"count": count, "type": kind} | extra)
    return len(data["accessors"]) - 1


def set_in_motion(data: dict) -> None:
    """Animate the first node, away from where it rests, and bend the bone of its mesh."""
    times = append(data, [0, 1], "float32", "SCALAR", 2, min=[0], max=[1])
    places = append(data, [[5, 5, 5], [6, 6, 6]], "float32", "VEC3", 2)
    channel = {"sampler": 0, "target": {"node": 0, "path": "translation"}}
    data["animations"] = [{"channels": [channel], "samplers": [{"input": times, "output": places}]}]
    (mesh,) = data["meshes"][data["nodes"][0]["mesh"]]["primitives"]
    count = data["accessors"][mesh["attributes"]["POSITION"]]["count"]
    joints, weights = np.zeros((count, 4)), np.tile([1, 0, 0, 0], (count, 1))
    mesh["attributes"]["JOINTS_0"] = append(data, joints, "uint8", "VEC4", count)
    mesh["attributes"]["WEIGHTS_0"] = append(data, weights, "float32", "VEC4", count)
    bind = append(data, np.eye(4), "float32", "MAT4", 1)
    bone = len(data["nodes"])
    data["nodes"].append({"rotation": [0, np.sin(0.05), 0, np.cos(0.05)]})
    data["scenes"][0]["nodes"].append(bone)
    data["skins"] = [{"joints": [bone], "inverseBindMatrices": bind}]
    data["nodes"][0]["skin"] = 0


@pytest.mark.slow
def test_glass_shows_what_is_behind_and_bones_stand_as_their_nodes(blender, tmp_path):
    wall = box([0.0, 0.0, 0.8, 1.0], (2, 2, 0.1))
    parts = [wall]
    for x, alpha in ((-1.0, 0.3), (0.0, 0.7)):
        corners = np.array([[x, -1, 1], [x + 1, -1, 1], [x + 1, 1, 1], [x, 1, 1]])
        parts.append({"positions": corners, "faces": [[0, 1, 2], [0, 2, 3]]})
        color = {"baseColorFactor": [1, 0, 0, alpha]}
        parts[-1]["material"] = {"alphaMode": "BLEND", "pbrMetallicRoughness": color}
    for part in parts:
        part["material"]["pbrMetallicRoughness"]["metallicFactor"] = 0
    path = write_gltf(tmp_path / "panes.gltf", parts)
    edit_gltf(path, set_in_motion)
    cameras = orbit([0.0, 30.0], [-90.0, -60.0])
    ours = EmbreeRenderer().render(path, cameras, settings())
    theirs = BlenderRenderer().render(path, cameras, settings())
    check_agreement(ours, theirs, "panes")
    middle = SIZE // 2
    through, pane = theirs.views.depth[0, middle, [middle - 8, middle + 8]]
    assert through > pane + 0.3
    assert theirs.views.rgba[0, middle, middle - 8, 2] > theirs.views.rgba[0, middle, middle + 8, 2]


@pytest.mark.slow
def test_unusable_models_say_why(blender, tmp_path):
    (tmp_path / "cut.glb").write_bytes(b"glTF\2\0\0\0\xff\0\0\0")
    (tmp_path / "line.obj").write_text("v 0 0 0\nv 1 0 0\nl 1 2\n")
    trimesh.creation.icosphere(subdivisions=3).export(tmp_path / "round.ply")
    (tmp_path / "out.mtl").write_text("newmtl m\nmap_Kd ../away.png\n")
    (tmp_path / "out.obj").write_text(
        "mtllib out.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"
    )
    for name, words in {
        "cut.glb": "cannot read cut.glb",
        "line.obj": "expected triangles",
        "round.ply": "more triangles than --max-faces 500",
        "out.obj": "away.png",
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            BlenderRenderer().render(tmp_path / name, CAMERAS, settings(max_faces=500))
        assert name in str(caught.value) and "\n" not in str(caught.value)
