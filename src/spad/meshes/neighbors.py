"""Files beside a model, found by the names that tools of all systems write."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path


class Neighbors:
    """The folder of a model; nothing outside it is ever opened.

    `notes` gets a sentence where a file is not at the place that its name says.
    """

    def __init__(self, folder: Path, notes: set[str]):
        self.notes = notes
        self._root = Path(os.path.realpath(folder))

    def find(self, name: str, beside: Path | None = None) -> Path | None:
        r"""The file that a name means, from the folder of `beside`, else from the model's; or None.

        Quotes around it, backslashes and other upper or lower case are seen through. Of a path
        that leads nowhere the last part counts: exporters write C:\where\it\was.png.

        Raises: ValueError: such a file is there, but outside of the model's folder.
        """
        plain = re.sub(r"[\\/]+", "/", name.strip().strip("\"'").strip())
        if not plain or "\0" in plain:
            return None
        plain = posixpath.normpath(plain)
        folders = [self._root]
        if beside is not None:
            folders.insert(0, Path(os.path.realpath(beside)).parent)
        outside = False
        for folder in folders:
            found = self._walk(folder, plain)
            if found is not None and self._is_inside(found):
                return found
            outside |= found is not None
        last = plain.rpartition("/")[2]
        for folder in folders if last != plain else ():
            found = self._walk(folder, last)
            if found is not None and self._is_inside(found):
                self.notes.add(f"{name!r} is taken from {last}")
                return found
        if outside:
            raise ValueError(f"it refers to {name!r}, which lies outside its folder")
        return None

    def _is_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._root)

    def _walk(self, folder: Path, name: str) -> Path | None:
        """The path of a relative name; parts that do not exist may differ in case."""
        if name.startswith("/") or re.match(r"[A-Za-z]:", name):
            return None
        path = folder
        try:
            for part in name.split("/"):
                step = path / part
                if part not in (".", "..") and not step.exists():
                    others = sorted(o for o in os.listdir(path) if o.lower() == part.lower())
                    if not others:
                        return None
                    step = path / others[0]
                path = step
            return path if path.is_file() else None
        except OSError:  # a file in place of a folder, or a name that no system takes
            return None
