"""Output folder that is filled in parts: each is kept as it is generated; a stopped run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spad.files import RECORD, check_output, exclusive, json_text, read_json, write_text
from spad.files.writing import LOCK
from spad.settings import changes_since

# What was asked for, in a folder that is not finished yet.
REQUEST = "request.json"
# Finished views of sets that are generated in passes and not finished yet.
PASSES = "passes"


def is_begun(folder: Path) -> bool:
    """Whether an earlier command stopped in this folder before all was generated."""
    return (folder / REQUEST).is_file()


@contextmanager
def begun_folder(
    folder: Path,
    request: Mapping[str, Any],
    overwrite: bool,
    finishes: bool = True,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[None]:
    """Context in which parts are generated in `folder`, and after which it is finished.

    A folder in which a command with the same request stopped keeps what is there.

    Args:
        request: all that the images depend on.
        overwrite: replace a folder of an earlier run.
        finishes: if not, the folder is still a begun one after the context, to be replaced.
        defaults: what a request means that an earlier version began, without a newer setting.

    Raises: ValueError: the folder exists and may not be replaced, was begun with another request,
        or another command is at work in it.
    """
    with exclusive(folder):
        is_new, changes = not is_begun(folder), {}
        if not is_new:
            record = read_json(folder / REQUEST, dict[str, Any])
            changes = changes_since(record, request, defaults)
        if changes and not overwrite:
            raise ValueError(
                f"expected the settings with which {folder} was begun, got another "
                f"{', '.join(changes)}; use the same, --overwrite or another --output"
            )
        if is_new and any(each.name != LOCK for each in folder.iterdir()):
            check_output(folder, overwrite)
        if is_new or changes:
            # What says that the folder is ours goes last, so that a kill here does no harm.
            _empty(folder, keep={LOCK, REQUEST, RECORD})
            write_text(folder / REQUEST, json_text(request))
            (folder / RECORD).unlink(missing_ok=True)
        yield
        if finishes:
            shutil.rmtree(folder / PASSES, ignore_errors=True)
            (folder / REQUEST).unlink()


def _empty(folder: Path, keep: set[str]) -> None:
    for each in folder.iterdir():
        if each.name in keep:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
