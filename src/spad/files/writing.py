"""Write files and folders whole or not at all, with locks against other processes.

What is written lies in `.unfinished`, beside its place, until it is complete, and a lock there
says that somebody is at it. What a killed command left has no holder: the next one that writes in
the same folder removes it.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spad.files.reading import LONGEST_LINE, size_text

log = logging.getLogger(__name__)

# What a command did, in the folder that it made.
RECORD = "run.json"
LOCK, UNFINISHED = ".lock", ".unfinished"
_REPLACED = ".replaced"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_BELOW = 1 << 16
# Whoever looks for what was left behind holds a lock no longer than this.
_PATIENCE_S = 1.0
_ATTEMPTS = 100
# Bytes in which a file that may be replaced says so.
_HEAD = 1 << 14


class TooLittleSpace(OSError):
    """A disk has less room than is needed; the message says how much."""


def json_text(data: Any, indent: int | None = 2) -> str:
    """JSON as it lies in files, paths as text. Raises: ValueError: a number is not finite."""
    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False, default=os.fspath)
    return text + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all. Raises: as `whole_file`."""
    write_texts({path: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write text files as `write_text`: all of them, or none if one cannot be written."""
    with ExitStack() as files:
        for path, text in texts.items():
            unfinished = files.enter_context(whole_file(path))
            unfinished.write_text(text, encoding="utf-8", newline="\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file as `write_text` a text; rows are taken one by one."""
    with whole_file(path) as unfinished, open(unfinished, "wb") as file:
        file.writelines(json_text(row, indent=None).encode() for row in rows)


def append_json(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line to a JSON Lines file, whole or not at all; it replaces a line without an end.

    Raises: OSError: what `whole_file` raises.
    """
    line = json_text(row, indent=None).encode()
    with room_for(path), open(path, "ab+", buffering=0) as file:
        file.seek(start := max(0, file.tell() - LONGEST_LINE))
        end = start + file.read().rfind(b"\n") + 1
        file.truncate(end)
        try:
            while line:
                line = line[file.write(line) :]
        except BaseException:
            file.truncate(end)
            raise
        os.fsync(file.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Context: a temporary path to write, which replaces `path` when the block ends well.

    On any error, Ctrl-C included, `path` stays as it was. Folders that it lacks are made.

    Raises: OSError: it cannot be written; where the disk is full, the message names `path`.
    """
    path = Path(os.path.abspath(path))
    with room_for(path), _beside(path, math.inf) as unfinished:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
        _sync(path.parent)


@contextmanager
def whole_folder(folder: Path, overwrite: bool = False, mark: str = RECORD) -> Iterator[Path]:
    """Context: a temporary folder to fill, which replaces `folder` when the block ends well.

    On any error, Ctrl-C included, nothing of it is left and an older `folder` stays.

    Raises:
        ValueError: what `check_output` raises, or another command is at the same folder.
        OSError: what `whole_file` raises.
    """
    check_output(folder, overwrite, mark)
    folder = Path(os.path.abspath(folder))
    with room_for(folder), _beside(folder, _PATIENCE_S) as unfinished:
        _check_idle(folder)
        unfinished.mkdir()
        yield unfinished
        for part in (*unfinished.rglob("*"), unfinished):
            _sync(part)
        _check_idle(folder)
        if folder.exists():
            os.rename(folder, unfinished.with_name(_REPLACED))
        os.rename(unfinished, folder)
        _sync(folder.parent)


def check_output(folder: Path, overwrite: bool, mark: str = RECORD) -> None:
    """Raises: ValueError: `folder` may not be made, or not be replaced as it holds no `mark`."""
    folder = Path(folder)
    if folder.is_symlink() or folder.exists():
        if not folder.is_dir() or folder.is_symlink():
            raise ValueError(f"expected a new output folder, got {folder}, which is no folder")
        is_ours = (folder / mark).is_file() or not any(folder.iterdir())
        if overwrite and not is_ours:
            raise ValueError(
                f"expected --overwrite to replace the folder of an earlier run, got {folder}, "
                f"which holds no {mark}; choose another --output"
            )
        if not overwrite:
            advice = "use --overwrite or another --output" if is_ours else "use another --output"
            raise ValueError(f"expected a new output folder, got {folder}, which exists; {advice}")
    parent = _existing(folder.absolute().parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"expected an output folder that can be made, got {folder}: cannot write in {parent}"
        )


def check_new_files(paths: Iterable[Path], overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raises: ValueError: a file is there and not to be replaced, or it is one of `inputs`."""
    read = {Path(path).resolve() for path in inputs}
    for path in paths:
        if path.resolve() in read:
            raise ValueError(f"expected another output than the input {path}; choose another file")
        if path.is_dir():
            raise ValueError(f"expected a file to write, got the folder {path}")
        if path.exists() and not overwrite:
            raise ValueError(f"expected a new file, got {path}, which exists; use --overwrite")


def check_file_output(path: Path, mark: str) -> None:
    """Raises: ValueError: `path` may not be replaced, as it does not begin with text that has
    `mark`, or may not be made.
    """
    if path.is_dir():
        raise ValueError(f"expected a file to write, got the folder {path}")
    if path.is_symlink() or path.exists():
        with suppress(OSError), open(path, "rb") as file:
            if mark.encode() in file.read(_HEAD):
                return
        raise ValueError(
            f"expected a new file or an earlier one of the same kind, got {path}, which is "
            "something else; choose another"
        )


@contextmanager
def exclusive(folder: Path, wait: bool = False) -> Iterator[None]:
    """Context: lock `folder` for this command; make it, and remove it if it stays empty.

    Raises: ValueError: another command is at work there, and not to be waited for.
    """
    folder = Path(os.path.abspath(folder))
    with _held(folder, math.inf if wait else _PATIENCE_S, folder):
        _sweep(folder)
        try:
            yield
        finally:
            _sweep(folder)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Context: any library's error of a full disk becomes an `OSError` of one line.

    Raises: OSError: in the place of such an error; it names `path`.
    """
    try:
        yield
    except TooLittleSpace:
        raise
    # torch, safetensors and Arrow have errors of their own for it.
    except Exception as error:
        if (reason := _lack_of_room(error, path)) is None:
            raise
        raise OSError(
            f"expected room to write {path}, got: {reason}; make room and run the same command "
            "again"
        ) from error


def free_space(folder: Path) -> int:
    """Bytes that are free on the disk of `folder`, which need not exist."""
    return shutil.disk_usage(_existing(folder)).free


def check_space(needs: Iterable[tuple[Path, int]], advice: str = "make room") -> None:
    """Raises: TooLittleSpace: a disk lacks the bytes that these folders need on it together."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in needs:
        there = _existing(folder)
        device = there.stat().st_dev
        disks[device] = (there, disks.get(device, (there, 0))[1] + size)
    for there, size in disks.values():
        if (free := free_space(there)) < size:
            raise TooLittleSpace(
                f"expected {size_text(size)} free on the disk of {there}, got {size_text(free)}; "
                f"{advice}"
            )


def slug(text: str, longest: int = 40) -> str:
    """A text as part of a file name: lower-case words and hyphens, never empty."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return "-".join(words)[:longest].strip("-") or "object"


def _lack_of_room(error: BaseException | None, path: Path) -> str | None:
    if isinstance(error, (OSError, RuntimeError)) and free_space(path) < _FULL_BELOW:
        return os.strerror(errno.ENOSPC)
    while error is not None:
        for reason in map(os.strerror, _FULL):
            if reason in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _beside(target: Path, patience: float) -> Iterator[Path]:
    """Context: a path for unfinished output, named as `target`, in a locked folder beside it."""
    unfinished = target.parent / UNFINISHED
    place = unfinished / target.name
    _sweep(target.parent)
    with _held(place, patience, target):
        _clear(place)
        try:
            yield place / target.name
        finally:
            _clear(place)
    _remove_empty([place, unfinished])


@contextmanager
def _held(folder: Path, patience: float, shown: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be and removed again if it stays empty.

    Raises: ValueError: another command holds it for longer than `patience`, in seconds.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    lock = FileLock(folder / LOCK)
    for attempt in count():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _acquire(lock, patience, shown)
            break
        # Its last holder may remove the folder at any moment.
        except (FileNotFoundError, FileExistsError):
            if attempt == _ATTEMPTS:
                raise
    try:
        yield
    finally:
        # While it is held: whoever waits for it sees that its name is gone, and begins anew.
        with suppress(OSError):
            (folder / LOCK).unlink()
        _remove_empty(made)
        lock.release()
        # Once more for Windows, which keeps what is open.
        _remove_empty(made)


def _acquire(lock: FileLock, patience: float, shown: Path) -> None:
    try:
        lock.acquire(timeout=min(patience, _PATIENCE_S))
    except Timeout:
        if patience < math.inf:
            raise ValueError(
                f"expected nobody else at work in {shown}, but another command is; let it finish, "
                "or choose another output"
            ) from None
        log.info("another command is at work in %s; waiting for it", shown)
        lock.acquire()


def _check_idle(folder: Path) -> None:
    """Raises: ValueError: a command is at work in `folder`."""
    if folder.exists():
        with _held(folder, _PATIENCE_S, folder):
            pass


def _sweep(folder: Path) -> None:
    """Remove unfinished output of killed commands from `folder`."""
    unfinished = folder / UNFINISHED
    places = []
    # Others remove it when they are done, at any moment.
    with suppress(FileNotFoundError, NotADirectoryError):
        places = [each for each in unfinished.iterdir() if each.is_dir()]
    for place in places:
        with suppress(ValueError), _held(place, 0, place):
            _clear(place)
        _remove_empty([place])
    _remove_empty([unfinished])


def _clear(place: Path) -> None:
    """Empty a folder of `_beside`; output that was about to be replaced is moved back."""
    target, replaced = place.parent.parent / place.name, place / _REPLACED
    if replaced.exists() and not target.exists():
        os.rename(replaced, target)
    for left in place.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        elif left.name != LOCK:
            left.unlink(missing_ok=True)


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists."""
    folder = Path(folder).absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())
