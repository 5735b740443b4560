"""Laws of code that runs on Linux, macOS and Windows alike, as far as one of them can tell.

`make types` adds to them: pyright knows which functions Windows lacks.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"

# Modules of the standard library that one system or another lacks.
OF_ONE_SYSTEM = set("resource fcntl pwd grp termios pty syslog msvcrt winreg".split())
PATHS = sorted(SRC.rglob("*.py"))


def imported_at_once(node: ast.AST) -> Iterator[str]:
    """Modules that are imported together with this one: not inside a function."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module)):
            yield module
    for child in ast.iter_child_nodes(node):
        yield from imported_at_once(child)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_no_module_needs_what_only_one_system_has(path):
    names = imported_at_once(ast.parse(path.read_text(encoding="utf-8")))
    assert not OF_ONE_SYSTEM & {name.partition(".")[0] for name in names}


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


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_text_files_are_utf_8_on_every_system(path):
    lines = []
    for call in text_calls(ast.parse(path.read_text(encoding="utf-8"))):
        words = [keyword.arg for keyword in call.keywords]
        words += [ast.unparse(argument) for argument in call.args]
        if "encoding" not in words and "'utf-8'" not in words:
            lines.append(call.lineno)
    assert not lines
