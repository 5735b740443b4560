"""Laws of code that runs on Linux, macOS and Windows alike, as far as one of them can tell.

`make types` adds to them: pyright knows which functions Windows lacks.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"

# Runs in a process of its own: modules of one system are missing for spad, and for no one else.
IMPORT_ALL = """
import builtins, importlib, pkgutil, sys

absent = {"resource", "fcntl", "pwd", "grp", "termios", "pty", "syslog", "msvcrt", "winreg"}
actual = builtins.__import__

def portable_import(name, globals=None, *rest, **more):
    importer = (globals or {}).get("__name__", "")
    if name in absent and importer.split(".")[0] == "spad":
        raise ImportError(f"{importer} imports {name}, which not every system has")
    return actual(name, globals, *rest, **more)

builtins.__import__ = portable_import
import spad

names = [module.name for module in pkgutil.walk_packages(spad.__path__, "spad.")]
for name in names:
    # The add-on is imported by Blender alone.
    if name not in ("spad.__main__", "spad.meshes.blender_cameras"):
        importlib.import_module(name)
print(len(names))
"""


def test_no_module_needs_what_only_one_system_has():
    environment = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


# What has an `open` that opens no text file.
NOT_TEXT = ("os", "Image", "tarfile", "archive", "webbrowser")


def text_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls of `open`, `Path.open`, `Path.read_text` and `Path.write_text`, in text mode."""
    for node in ast.walk(tree):
        match node:
            # importlib.metadata reads a file of an installed distribution as UTF-8.
            case ast.Call(args=[ast.Constant(value="direct_url.json")]):
                pass
            case ast.Call(func=ast.Attribute(attr="read_text" | "write_text")):
                yield node
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name))) if name in NOT_TEXT:
                pass
            case ast.Call(func=ast.Name(id="open") | ast.Attribute(attr="open")):
                words = [ast.unparse(argument) for argument in node.args]
                if not any(re.fullmatch(r"'[rwax]b[+]?'", word) for word in words):
                    yield node


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: p.stem)
def test_text_files_are_utf_8_on_every_system(path):
    lines = []
    for call in text_calls(ast.parse(path.read_text(encoding="utf-8"))):
        words = [keyword.arg for keyword in call.keywords]
        words += [ast.unparse(argument) for argument in call.args]
        if "encoding" not in words and "'utf-8'" not in words:
            lines.append(call.lineno)
    assert not lines
