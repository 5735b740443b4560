"""The command that installs optional packages for this installation of spad."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_EXTRA = re.compile(r"""\s*;.*extra\s*==\s*["']([\w-]+)["']""")


def install_command(extra: str) -> str:
    """Command line that installs an extra of spad into the Python that runs.

    spad may be on no package index, so it names what spad itself was installed from: a working
    copy, an archive or a repository. Where that is gone, it names the packages of the extra.
    """
    try:
        own = distribution("spad")
    except PackageNotFoundError:
        own = None
    requirements = None if own is None else _from_origin(own, extra)
    if requirements is None:
        requirements = ["spad[" + extra + "]"] if own is None else _packages(own, extra)
    return _shown([*_installer(), *requirements])


def _from_origin(own: Distribution, extra: str) -> list[str] | None:
    """Arguments of pip for what spad was installed from; None if that is not there any more.

    Source: PEP 610, the file `direct_url.json`.
    """
    text = own.read_text("direct_url.json")
    if text is None:
        return [f"spad[{extra}]=={own.version}"]
    origin = json.loads(text)
    url = origin["url"]
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return [f"spad[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}"]
    if not url.startswith("file:"):
        return [f"spad[{extra}] @ {url}"]
    path = Path(url2pathname(urlsplit(url).path))
    if not path.exists():
        return None
    if "dir_info" not in origin:
        return [f"spad[{extra}] @ {url}"]
    is_editable = origin["dir_info"].get("editable", False)
    return [*(["-e"] if is_editable else []), f"{path}[{extra}]"]


def _packages(own: Distribution, extra: str) -> list[str]:
    """The requirements of an extra, without those of this Python version alone."""
    found = []
    for requirement in own.requires or []:
        if (match := _EXTRA.search(requirement)) and match[1] == extra:
            found.append(requirement[: match.start()])
    return found


def _installer() -> list[str]:
    python = sys.executable
    if Path(python).is_relative_to(Path.cwd()):
        python = os.path.relpath(python)
    if find_spec("pip") is None and shutil.which("uv") is not None:
        return ["uv", "pip", "install", "--python", python]
    return [python, "-m", "pip", "install"]


def _shown(words: Sequence[str]) -> str:
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
