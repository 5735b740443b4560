"""The package as it is handed out: what it holds, and that it works where it is installed."""

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def run(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    run("-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel, built from the source distribution alone."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=sdist)
    (path,) = folder.glob("*.whl")
    return path


def test_the_source_distribution_can_be_tested_and_documented(sdist):
    for name in ("tests/conftest.py", "docs/conventions.md", "constraints.txt", "Makefile"):
        assert (sdist / name).is_file(), name
    assert not (sdist / ".git").exists()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/spad").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == here


def test_a_package_index_is_given_no_link_that_leads_nowhere(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        page = email.message_from_bytes(file.read(name)).get_payload()
    targets = re.findall(r"\]\(([^)]*)\)", page)
    assert targets, "no link was found at all: is the README there?"
    assert not [link for link in targets if not link.startswith(("https://", "#"))]


def test_the_installed_wheel_draws(wheel, tmp_path):
    site = tmp_path / "site"
    # What spad needs is here already.
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    home = run("-c", "import spad; print(spad.__file__)", cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(home.strip()).is_relative_to(site)
    arguments = ["generate", "a red mushroom", "--views", "2"]
    run("-m", "spad", *arguments, "--output", "out", cwd=tmp_path, PYTHONPATH=str(site))
    assert len(list((tmp_path / "out/images").glob("*.png"))) == 2
