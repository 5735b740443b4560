"""Laws of the files: they hold on any machine, stay small, and CI tests what a person tests."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
    assert sum(path.stat().st_size for path in files) <= 40 * MB


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.name)
def test_only_the_command_line_prints(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    prints = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not prints or path.name == "cli.py"


def test_ci_runs_the_test_command():
    commands = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert commands[-1] == "make test"
