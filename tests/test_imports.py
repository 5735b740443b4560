"""Laws of the import statements: one direction, declared packages, nothing heavy too early."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"

# A module imports only modules above it. Modules of one line serve one purpose; within a line,
# too, imports go to the left.
ORDER = """
    spad
    spad.config spad.training spad.training.config spad.released spad.vocabulary
    spad.camera_checks spad.cameras spad.camera_parsing spad.camera_colmap spad.camera_formats
    spad.data spad.data.config spad.data.lists spad.data.color spad.data.gltf spad.data.objects
    spad.data.render
    spad.data.viewpoints spad.data.shards spad.data.views
    spad.epipolar spad.original_epipolar spad.bands spad.correspondence
    spad.masks spad.banded spad.flex
    spad.data.checks spad.data.blender_script spad.data.blender spad.data.renderers
    spad.data.captions spad.data.assets spad.data.folders
    spad.data.workers spad.data.ray_executor spad.data.render_job
    spad.data.dataset
    spad.posed_pictures spad.stand_in spad.sheet spad.figures spad.sweep spad.explorer
    spad.attention
    spad.autoencoder spad.text
    spad.model
    spad.conditioning
    spad.original_scheduler spad.feature_cache spad.pipeline
    spad.models spad.checkpoint spad.convert spad.download
    spad.results spad.generate spad.epipolar_command
    spad.evaluation spad.evaluation.sets spad.evaluation.volume spad.evaluation.silhouettes
    spad.evaluation.reconstruction spad.evaluation.photo_consistency spad.evaluation.copying
    spad.evaluation.camera_error spad.evaluation.matching spad.evaluation.metrics
    spad.evaluation.controls
    spad.data.sorting spad.data.measure spad.data.annotations spad.data.histograms spad.data.filter
    spad.data.recolor spad.data.pack spad.data.inspect
    spad.evaluation.config spad.evaluation.similarity spad.evaluation.statistics
    spad.evaluation.report spad.evaluation.retrieval spad.evaluation.novel_views
    spad.evaluation.networks spad.evaluation.protocol spad.evaluation.drawing
    spad.evaluation.page spad.evaluation.compare spad.evaluation.evaluate
    spad.training.run spad.training.autoencoder spad.training.card spad.training.export
    spad.training.muon spad.training.objective spad.training.batches spad.training.build
    spad.training.states spad.training.cost spad.training.show spad.training.train
    spad.training.dry_run
    spad.cli
    spad.__main__
""".split()

# The names on the package index of packages that are imported by another.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface-hub",
    "torch_fidelity": "torch-fidelity",
    "mathutils": "bpy",
    "cv2": "opencv-python-headless",
}


# Modules that import an optional package where they use it, and the extra it belongs to.
EXTRAS = {
    "spad.sheet": "plot",
    "spad.posed_pictures": "exr",
    "spad.data.ray_executor": "ray",
    "spad.data.blender": "blender",
    "spad.evaluation.matching": "eval",
    "spad.evaluation.networks": "fidelity",
    "spad.data.blender_script": "blender",
    "spad.training.build": "lora",
    "spad.training.train": "adam8bit",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


PATHS = {module_name(path): path for path in sorted(SRC.rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """Every module that an import statement of `module` names, also inside its functions."""
    for node in ast.walk(ast.parse(PATHS[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: name the module in full"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & PATHS.keys()
            yield from submodules or {node.module}


def names_bound_in(module: str) -> set[str]:
    """What the statements at the top level of `module` define."""
    names = set()
    for node in ast.parse(PATHS[module].read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def requirements(lines: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines}


def load_alone(modules: list[str]) -> set[str]:
    """The top-level packages in memory after a new process has imported `modules`."""
    code = (
        f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    environment = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(PATHS), "give every module of src one place in ORDER"


@pytest.mark.parametrize("module", PATHS)
def test_imports_point_one_way(module):
    own = {name for name in imports(module) if name.split(".")[0] == "spad"}
    later = {name for name in own if ORDER.index(name) >= ORDER.index(module)}
    assert not later, f"{module} may import only what stands before it in ORDER"


@pytest.mark.parametrize(
    "module", ["spad.attention", "spad.autoencoder", "spad.text", "spad.model"]
)
def test_networks_take_tensors_not_cameras(module):
    assert not [name for name in imports(module) if name.startswith("spad.camera")]


@pytest.mark.parametrize("module", PATHS)
def test_packages_are_declared(module):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = requirements(project["dependencies"])
    if module.startswith("spad.data."):
        declared |= requirements(project["optional-dependencies"]["data"])
    if module in EXTRAS:
        declared |= requirements(project["optional-dependencies"][EXTRAS[module]])
    packages = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names
    needed = {DISTRIBUTIONS.get(name, name).lower() for name in packages - {"spad"}}
    assert needed <= declared


def test_public_names_live_where_the_package_says():
    import spad

    for name, home in spad._HOMES.items():
        assert name in names_bound_in(home), f"spad.{name}"
    assert set(spad.__all__) <= set(dir(spad))


def test_the_command_line_starts_light():
    loaded = load_alone(
        ["spad", "spad.config", "spad.data.config", "spad.cli", "spad.models", "spad.vocabulary"]
    )
    assert not loaded & {"torch", "numpy", "PIL", "diffusers", "transformers", "trimesh"}


def test_cameras_and_geometry_need_only_torch():
    geometry = ["spad.camera_formats", "spad.epipolar", "spad.bands", "spad.correspondence"]
    loaded = load_alone([*geometry, "spad.original_epipolar", "spad.attention"])
    assert not loaded & {"diffusers", "transformers", "PIL", "trimesh", "tyro", "matplotlib"}


def test_figures_and_pages_need_no_optional_package():
    loaded = load_alone(["spad.epipolar_command", "spad.sweep", "spad.explorer"])
    assert not loaded & {"diffusers", "transformers", "matplotlib", "OpenEXR", "trimesh"}
