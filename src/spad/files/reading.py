"""Read text, JSON and JSON Lines files, with the type of every field checked.

Files may be damaged, hostile or endless. No more than a limit is ever in memory, and what is wrong
is a `ValueError` that begins with the file and the place in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import NoneType, UnionType
from typing import Any, BinaryIO, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

# Bytes of a file that is read at once, and of a line of one that is read line by line.
MOST_BYTES, LONGEST_LINE = 64 << 20, 16 << 20
# Levels of lists and objects of JSON.
DEEPEST = 64
_LONGEST_NAME = 255
_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}
_WORDS |= {list: "a list", tuple: "a list", NoneType: "null"}
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60

T = TypeVar("T")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file of at most `most` bytes. Raises: ValueError: it is larger, or cannot be read."""
    with _opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path}: expected at most {size_text(most)}, got more")
    return data


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """UTF-8 text, with or without a byte-order mark. Raises: ValueError: it is something else."""
    return _decoded(read_bytes(path, most), path)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, line) of a UTF-8 text file; the place begins messages, lines have no ends.

    Raises: ValueError: the file cannot be read, or a line is too long or no UTF-8.
    """
    for where, line in _raw_lines(path):
        yield where, _decoded(line, where).rstrip("\r\n")


def read_ids(path: Path) -> frozenset[str]:
    """Ids, one a line or between spaces. Raises: ValueError: no such file, or none in it."""
    ids = frozenset(word for _, line in read_lines(path) for word in line.split())
    if not ids:
        raise ValueError(f"{path}: expected ids, got none")
    return ids


def read_json(path: Path, kind: type[T], most: int = MOST_BYTES) -> T:
    """A JSON file as a value of type `kind`. Raises: as `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, most), kind, path)


def read_json_lines(path: Path, kind: type[T], is_journal: bool = False) -> Iterator[tuple[str, T]]:
    """Yield (place, value of type `kind`) of a JSON Lines file; empty lines are skipped.

    In a journal a last line without an end counts for nothing: a kill cut it short.

    Raises: ValueError: what `read_lines` and `parse_json` raise.
    """
    for where, line in _raw_lines(path):
        if line.strip() and not (is_journal and not line.endswith(b"\n")):
            yield where, parse_json(line, kind, where)


def parse_json(data: bytes, kind: type[T], where: object) -> T:
    """Parse JSON to a value of type `kind`.

    Args:
        kind: `str`, `bool`, `int`, `float` (finite; a whole number will do), `None`, `Any`,
            `Literal`, a union, list, tuple or dict of them, or a dataclass: a JSON object of its
            fields, of which those with a default may be missing. A field that it does not name
            is an error, unless it has a field `rest: dict[str, Any]`, which takes these.
        where: the file and the place in it, which the message begins with.

    Raises: ValueError: this is no JSON in UTF-8, or of other types; an object has a name twice; a
        number is not finite; lists and objects lie too deep in each other.
    """
    text = _decoded(data, where)
    try:
        found = _DECODER.decode(text)
        if _is_deep([found]):
            raise RecursionError
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        got = f"other text in line {error.lineno}, column {error.colno} ({error.msg})"
        raise ValueError(f"{where}: expected JSON, got {got if text.strip() else 'none'}") from None
    except UnicodeEncodeError:
        raise ValueError(
            f"{where}: expected JSON of whole characters, got half of a surrogate pair"
        ) from None
    except _NotFinite as error:
        name = "every number"
        with suppress(ValueError, RecursionError):
            name = _not_finite(json.loads(text), "") or name
        raise ValueError(f"{where}: expected {name} to be finite, got {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from None
    except RecursionError:
        raise ValueError(f"{where}: expected JSON of {DEEPEST} levels or less, got more") from None
    return as_kind(found, kind, where)


def as_kind(found: Any, kind: type[T], where: object) -> T:
    """A parsed JSON or YAML value as a value of type `kind`, which `parse_json` describes.

    Raises: ValueError: it has other types.
    """
    try:
        return _checked(found, kind, "")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def file_hash(path: Path, digest: Any = None) -> str:
    """Hexadecimal hash of a file of any size: SHA-256, or that of `digest`, continued."""
    digest = digest or hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def inside(folder: Path, name: str, where: object) -> Path:
    """The path `folder / name`, which must lie in `folder`; `where` begins the message.

    Raises: ValueError: `name` is empty or absolute, has "..", a backslash or too long a part, or
        a link on its way leads out of `folder`.
    """
    parts, path = PurePosixPath(name).parts, folder / name
    is_plain = (
        len(parts) > 0
        and ".." not in parts
        and not {"\\", "\0"} & set(name)
        and not PureWindowsPath(name).anchor
        and all(len(part.encode(errors="replace")) <= _LONGEST_NAME for part in parts)
    )
    if not is_plain or not _real(path).is_relative_to(_real(folder)):
        raise ValueError(f"{where}: expected a file inside {folder}, got {short(name)}")
    return path


def short(value: Any) -> str:
    """`value` in at most 60 characters, for messages."""
    text = _BRIEF.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def size_text(size: int) -> str:
    """Bytes for people: "1.5 GB", "20.0 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, got {error.strerror}") from error


def _raw_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with _opened(path) as file:
        for number in count(1):
            line, where = file.readline(LONGEST_LINE + 1), f"{path}, line {number}"
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{where}: expected at most {size_text(LONGEST_LINE)}, got more")
            yield where, line


def _decoded(data: bytes, where: object) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: expected text in UTF-8, got other bytes, the first at {error.start}"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{short(twice)} twice in one object")
    return found


class _NotFinite(ValueError):
    """A number of JSON is NaN or infinite."""


def _no_constant(name: str) -> Any:
    raise _NotFinite(name)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise _NotFinite(text[:20])
    return number


def _not_finite(value: Any, name: str) -> str | None:
    """The name of the first number in `value` that is not finite."""
    if isinstance(value, dict):
        names = ((f"{name}.{key}".lstrip("."), item) for key, item in value.items())
    elif isinstance(value, list):
        names = ((f"{name}[{i}]", item) for i, item in enumerate(value))
    else:
        return name if isinstance(value, float) and not math.isfinite(value) else None
    found = (_not_finite(item, inner) for inner, item in names)
    return next((place for place in found if place is not None), None)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite
)


def _is_deep(found: Any) -> bool:
    """Whether lists and objects are nested deeper than `DEEPEST` levels."""
    level, depth = [found], 0
    while level and depth <= DEEPEST:
        groups = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for group in groups for one in group if isinstance(one, (dict, list))]
        depth += 1
    return bool(level)


def _checked(value: Any, kind: Any, name: str) -> Any:
    """The value of the field `name` as a value of type `kind`."""
    if type(value) is kind or kind is Any or (kind is None and value is None):
        return value
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        others = [one for one in inner if one is not NoneType]
        if value is None and NoneType in inner:
            return None
        if len(others) == 1:
            return _checked(value, others[0], name)
        for one in others:
            with suppress(ValueError):
                return _checked(value, one, name)
    elif origin is Literal:
        if any(value == one and type(value) is type(one) for one in inner):
            return value
    elif is_dataclass(origin) and isinstance(value, dict):
        return _filled(value, origin, name)
    elif origin in (list, tuple) and isinstance(value, list):
        return origin(_items(value, origin, inner, name))
    elif origin is dict and isinstance(value, dict):
        of = inner[1] if inner else Any
        return {key: _checked(item, of, f"{name}[{short(key)}]") for key, item in value.items()}
    elif origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    what = f"{name} to be {_words(kind)}" if name else _words(kind)
    raise ValueError(f"expected {what}, got {short(value)}")


def _items(values: list, origin: type, kinds: tuple, name: str) -> list[Any]:
    if origin is list or not kinds or kinds[-1] is Ellipsis:
        one: Any = kinds[0] if kinds else Any
        # Long lists are of text or numbers, and are looked at in one go.
        if set(map(type, values)) <= {one, int if one is float else one}:
            with suppress(OverflowError):
                return list(map(one, values))
        kinds = (one,) * len(values)
    if len(values) != len(kinds):
        raise ValueError(f"expected {name} to be a list of {len(kinds)}, got {len(values)}")
    pairs = enumerate(zip(values, kinds, strict=True))
    return [_checked(value, kind, f"{name}[{i}]") for i, (value, kind) in pairs]


def _filled(value: dict, kind: Any, name: str) -> Any:
    hints, needed, takes_rest = _fields(kind)
    of = f"{name}." if name else ""
    given = {key: _checked(value[key], hints[key], of + key) for key in value if key in hints}
    if missing := sorted(needed - given.keys()):
        raise ValueError(f"expected {of}{missing[0]}, got none")
    rest = {key: item for key, item in value.items() if key not in given}
    if takes_rest:
        given["rest"] = rest
    elif rest:
        known, got = ", ".join(hints), short(next(iter(rest)))
        raise ValueError(f"expected {name or 'an object'} to have {known} and no more, got {got}")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from error


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str], bool]:
    """Types of a dataclass's fields, the names of those without default, whether one is `rest`."""
    hints = get_type_hints(kind)
    named = {field.name: field for field in fields(kind) if field.init and field.name != "rest"}
    needed = [n for n, f in named.items() if f.default is f.default_factory is MISSING]
    return {name: hints[name] for name in named}, frozenset(needed), "rest" in hints


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    return _WORDS.get(origin, "an object")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
