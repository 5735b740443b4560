"""Laws of the import statements: one direction, declared packages, nothing heavy too early."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from spad.cli import _EXTRAS, _extra
from spad.data.config import RenderConfig
from spad.reconstruction.config import ReconstructConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"

# A package, or a module beside the packages, imports only from itself and from those before it.
PACKAGES = """
    files settings installation threads cameras geometry images meshes attention model hub cluster
    generation data curation reconstruction training evaluation visualize app command_line
    surroundings commands cli __main__
""".split()
# Nothing heavier than torch.
TENSOR_PACKAGES = ("spad.files", "spad.cameras", "spad.geometry", "spad.attention")

# Their names are imported when first used.
LAZY_PACKAGES = ("spad", "spad.model")

# The names on the package index of packages that are imported by another.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface-hub",
    "annotated_types": "annotated-types",
    "torch_fidelity": "torch-fidelity",
    "mathutils": "bpy",
    "bpy_extras": "bpy",
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
    "fast_simplification": "fast-simplification",
}


# Modules that import an optional package where they use it, or are imported where they are used,
# and the extra it belongs to.
EXTRAS = {
    "spad.images.sheet": "plot",
    "spad.images.depth_maps": "exr",
    "spad.cluster": "ray",
    "spad.data.ray_executor": "ray",
    "spad.meshes.blender": "blender",
    "spad.evaluation.shape": "mesh",
    "spad.evaluation.mesh_scores": "mesh",
    "spad.evaluation.tsed": "eval",
    "spad.evaluation.registration": "colmap",
    "spad.evaluation.learned_metrics": "fidelity",
    "spad.meshes.blender_cameras": "blender",
    "spad.meshes.blender_script": "blender",
    "spad.training.build": "lora",
    "spad.training.train": "adam8bit",
    "spad.reconstruction.splat_rendering": "splat",
    "spad.app.server": "app",
    "spad.app.guard": "app",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


def package_of(module: str) -> str:
    return module.split(".")[1]


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


def own_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == "spad"}


@pytest.mark.parametrize("module", sorted(PATHS.keys() - {"spad"}))
def test_packages_import_one_way(module):
    assert package_of(module) in PACKAGES, "give every package one place in PACKAGES"
    allowed = PACKAGES[: PACKAGES.index(package_of(module)) + 1]
    later = {name for name in own_imports(module) - {"spad"} if package_of(name) not in allowed}
    assert not later, f"{module} may import only from {', '.join(allowed)}"


def test_modules_import_in_no_circle():
    # What the lazy packages import for type checkers is never run.
    eager = [module for module in PATHS if module not in LAZY_PACKAGES]
    TopologicalSorter({module: own_imports(module) for module in eager}).prepare()


# One imports a clone of the release, whose package is called spad too.
BENCHMARKS = sorted(p for p in (ROOT / "benchmarks").rglob("*.py") if p.stem != "original_release")


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmarks_import_what_there_is(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "spad":
            module = importlib.import_module(node.module)
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                assert whole in PATHS or hasattr(module, alias.name), whole


@pytest.mark.parametrize(
    "module",
    [name for name in PATHS if name.startswith("spad.attention")]
    + [f"spad.model.{name}" for name in ("autoencoder", "processors", "unet", "word_tokenizer")],
)
def test_networks_take_tensors_not_cameras(module):
    assert not [name for name in imports(module) if name.startswith("spad.cameras")]


@pytest.mark.parametrize("module", PATHS)
def test_packages_are_declared(module):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = requirements(project["dependencies"])
    if module.startswith(("spad.data.", "spad.curation.", "spad.meshes.")):
        declared |= requirements(project["optional-dependencies"]["data"])
    if module.startswith("spad.reconstruction."):
        declared |= requirements(project["optional-dependencies"]["mesh"])
    if module in EXTRAS:
        declared |= requirements(project["optional-dependencies"][EXTRAS[module]])
    packages = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names
    needed = {DISTRIBUTIONS.get(name, name).lower() for name in packages - {"spad"}}
    assert needed <= declared


def at_once(module: str) -> Iterator[str]:
    """What importing a module imports: statements in its functions and for type checkers aside."""
    tree = ast.parse(PATHS[module].read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & PATHS.keys()
            yield from submodules or {node.module}


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("meshes", "data"),
        ("data", "data"),
        ("curation", "data"),
        ("reconstruction", "mesh"),
        ("training", "train"),
        ("evaluation", "eval"),
        ("app", "app"),
        ("visualize", "plot"),
    ],
)
def test_an_extra_installs_all_that_its_modules_import(package, extra):
    """Also what the modules that they import import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = requirements(project["dependencies"])
    declared |= requirements(project["optional-dependencies"][extra])
    left = [n for n in PATHS if n.startswith(f"spad.{package}") and n not in EXTRAS]
    seen: set[str] = set()
    while left:
        module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        named = set(at_once(module))
        left += named & PATHS.keys()
        others = {name.split(".")[0] for name in named} - sys.stdlib_module_names - {"spad"}
        missing = {DISTRIBUTIONS.get(name, name).lower() for name in others} - declared
        assert not missing, module


def test_the_command_line_names_the_extra_of_every_optional_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {DISTRIBUTIONS.get(name, name).lower(): extra for name, extra in _EXTRAS.items()}
    for package, extra in named.items():
        assert package in requirements(project["optional-dependencies"][extra])
    # Of model files, which both extras read.
    readers = {"embreex", "mapbox_earcut", "DracoPy"}
    for name in readers:
        assert _extra(name, ReconstructConfig(Path("views"))) == "mesh"
        assert _extra(name, RenderConfig(Path("models"), Path("renders"))) == "data"
    assert {name.lower() for name in readers} <= requirements(
        project["optional-dependencies"]["mesh"]
    )
    imported = {name.split(".")[0] for module in PATHS for name in imports(module)}
    packages = {DISTRIBUTIONS.get(name, name).lower() for name in imported}
    optional = packages - sys.stdlib_module_names - requirements(project["dependencies"])
    assert optional - {"spad"} <= named.keys()


@pytest.mark.parametrize("package", LAZY_PACKAGES)
def test_public_names_are_all_that_a_package_shows_people_and_editors(package):
    public = importlib.import_module(package)
    for name, home in public._HOMES.items():
        assert home.startswith("diffusers.") or name in names_bound_in(home), f"{package}.{name}"
        assert getattr(public, name) is getattr(importlib.import_module(home), name)
    assert dir(public) == sorted(public.__all__)
    assert public._HOMES.keys() <= set(public.__all__)
    (block,) = (
        node
        for node in ast.parse(PATHS[package].read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == public._HOMES


def test_the_package_says_that_it_is_typed():
    assert (SRC / "spad" / "py.typed").is_file()


def test_the_command_line_starts_light():
    packages = {name for name, path in PATHS.items() if path.name == "__init__.py"}
    settings = {name for name in PATHS if name.endswith(".config")}
    light = (packages - set(TENSOR_PACKAGES)) | settings
    loaded = load_alone([*light, "spad.cli", "spad.hub.registry", "spad.model.vocabulary"])
    assert not loaded & {"torch", "numpy", "PIL", "diffusers", "transformers", "trimesh"}


def test_cameras_geometry_and_attention_need_only_torch():
    loaded = load_alone([name for name in PATHS if name.startswith(TENSOR_PACKAGES)])
    assert not loaded & {"diffusers", "transformers", "PIL", "trimesh", "tyro", "matplotlib"}


def test_figures_and_pages_need_no_optional_package():
    loaded = load_alone(
        ["spad.visualize.epipolar", "spad.visualize.animation", "spad.visualize.explorer"]
    )
    assert not loaded & {"diffusers", "transformers", "matplotlib", "OpenEXR", "trimesh"}
