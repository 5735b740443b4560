"""Laws of the files: they hold on any machine, stay small, and CI tests what a person tests."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import spad

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
MB = 10**6


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout: what belongs to the project is unknown")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_paths_of_one_machine(tracked):
    pattern = re.compile(rb"(?<![\w.:/-])(?:/(?:home|Users|root|work|farm)/|/tmp/\w|[A-Z]:\\Users)")
    found = []
    for path in tracked:
        content = path.read_bytes()
        if b"\0" not in content and (match := pattern.search(content)):
            line = content.count(b"\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}, line {line}")
    assert not found


def test_no_large_files(tracked):
    assert not [path for path in tracked if path.stat().st_size > 20 * MB]


def test_embedded_weights_are_small():
    files = [path for path in (ROOT / "src/spad/weights").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 42 * MB


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.name)
def test_only_the_command_line_prints(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    prints = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not prints or path.name == "commands.py"


def test_ci_runs_the_test_command():
    commands = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert commands[-1] == "make test"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == spad.__version__


def test_workflows_test_every_python_that_is_declared():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [line.rsplit(" ", 1)[1] for line in project["classifiers"] if " :: 3." in line]
    assert declared and jobs["test"]["strategy"]["matrix"]["python"] == declared


def test_workflows_name_files_that_exist():
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    named = re.findall(r"tests/[\w./]+", text)
    assert named and not [name for name in named if not (ROOT / name).exists()]


def test_workflows_and_hooks_call_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    files = [".github/workflows/ci.yml", ".pre-commit-config.yaml", ".ci/run"]
    called = {
        target
        for name in files
        for target in re.findall(r"\bmake (\w+)", (ROOT / name).read_text(encoding="utf-8"))
    }
    assert called and called <= targets
