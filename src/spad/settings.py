"""Bounds of settings as types: checked on the command line and in Python, shown by --help.

A bound is written `Annotated[int, Ge(1)]`, in the vocabulary of `annotated_types`; common ones
have names here. Numbers in `checked` settings must be finite, whatever their bounds.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from itertools import pairwise
from numbers import Integral, Real
from textwrap import dedent
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MinLen, MultipleOf
from tyro.conf import DisallowNone, Positional, arg

from spad.files import json_text

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
# The seeds that torch takes.
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
ElevationDeg = Annotated[float, Interval(ge=-90, le=90)]
AzimuthDeg = Annotated[float, Interval(ge=-360, le=360)]
# Field of view of a pinhole camera: wider images are almost all margin, narrower ones almost
# parallel projections.
FovDeg = Annotated[float, Interval(ge=0.1, le=170)]
# Distance from the origin in world units; objects have a radius of 1.
Distance = Annotated[float, Interval(ge=0.01, le=10_000)]
GuidanceScale = Annotated[float, Interval(ge=0, le=100)]

T = TypeVar("T")

# For each bound: the attribute with its number, its form in --help and in messages, its test.
_BOUNDS: dict[type, tuple[str, str, str, Callable[[Any, Any], bool]]] = {
    Ge: ("ge", "≥ {}", "at least {}", lambda bound, value: value >= bound),
    Gt: ("gt", "> {}", "more than {}", lambda bound, value: value > bound),
    Le: ("le", "≤ {}", "at most {}", lambda bound, value: value <= bound),
    Lt: ("lt", "< {}", "less than {}", lambda bound, value: value < bound),
    MultipleOf: (
        "multiple_of",
        "in steps of {}",
        "a multiple of {}",
        lambda bound, value: value % bound == 0,
    ),
    MinLen: ("min_length", "", "{} or more values", lambda bound, value: len(value) >= bound),
}
_FLIPPED = {"≥": "≤", ">": "<"}
_TYPES: dict[type, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    bool: (bool, "True or False"),
    str: (str, "text"),
}
# Begins the last sentence of a docstring of a field whose default is chosen when it is used.
_DEFAULT = "Default: "
# Errors of the command line that is being parsed; None outside of parsing.
_errors: ContextVar[list[ValueError] | None] = ContextVar("errors", default=None)


def checked(settings: type[T]) -> type[T]:
    """Class decorator, below `@dataclass`: check values against the types of their fields.

    Whenever an instance is made, numbers, literals, tuples and unions of them are checked before
    the class's own `__post_init__` runs. `--help` shows the bounds.

    Raises: ValueError: on making an instance: the field, what was expected and what it got.
    """
    assert "__dataclass_fields__" not in vars(settings), "@checked goes below @dataclass"
    kinds = get_type_hints(settings, include_extras=True)
    for name in settings.__annotations__:
        base, *rest = _parts(kinds[name])
        if is_dataclass(base):
            continue
        # tyro asks for the text when it shows it: reading the source takes time.
        text = cast(Any, partial(_text, settings, name))
        metavar = None
        # None is no word to type: a flag is left out instead, a boolean one is --no-NAME.
        if bool not in (base, *get_args(base)):
            metavar = _metavar(kinds[name])
            if Positional in rest and NoneType in get_args(base):
                metavar = f"[{metavar}]"
        elif base is not bool:
            rest.append(DisallowNone)
        shown = arg(metavar=metavar, help=text, help_behavior_hint=partial(_hint, settings, name))
        settings.__annotations__[name] = Annotated[(base, shown, *rest)]
    own_check = getattr(settings, "__post_init__", lambda self: None)

    def __post_init__(self: Any) -> None:
        errors = _errors.get()
        if errors:
            return
        try:
            for name, kind in kinds.items():
                _check(name, getattr(self, name), kind)
            own_check(self)
        except ValueError as error:
            if errors is None:
                raise
            errors.append(error)

    made: Any = settings
    made.__post_init__ = __post_init__
    return settings


def defaults_of(settings: Any) -> dict[str, Any]:
    """What settings have that are left out, by name, those of nested ones at the same level."""
    defaults = {}
    for one in fields(settings):
        # A class has the defaults of its fields as attributes.
        value = getattr(settings, one.name, MISSING)
        if is_dataclass(value):
            defaults |= defaults_of(value)
        elif value is not MISSING:
            defaults[one.name] = value
    return defaults


def changes_since(
    record: dict[str, Any], settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from a record of earlier ones: name -> what it has, and what is asked.

    A record of an earlier version lacks newer settings. They have their default there, as the
    default of a new setting is what was done before it.

    Args:
        record: read from JSON.
        defaults: of `defaults_of`.
    """
    added = {name: defaults[name] for name in defaults.keys() & settings}
    # Through JSON, in which a tuple is a list.
    before, asked = json.loads(json_text(added)) | record, json.loads(json_text(settings))
    names = sorted(before.keys() | asked)
    pairs = {name: (before.get(name), asked.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def parsed(parse: Callable[[], T]) -> T:
    """The result of `parse`, with errors of `checked` settings in one line.

    The parser would show such an error in a box that names the class, so it is kept from it.

    Raises: ValueError: a setting is wrong; the message names its flag.
    """
    errors: list[ValueError] = []
    token = _errors.set(errors)
    try:
        command = parse()
    finally:
        _errors.reset(token)
    if errors:
        raise errors[0]
    return command


@cache
def _docs(settings: type) -> dict[str, str]:
    """The docstrings of the fields, each in one line."""
    (definition,) = ast.parse(dedent(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(str(below.value.value).split())
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def _text(settings: type, name: str) -> str:
    """A field's docstring as --help shows it, without the default at its end."""
    return _docs(settings).get(name, "").partition(_DEFAULT)[0].strip()


def _hint(settings: type, name: str, value: str) -> str:
    """The end of a line of --help: the default in the docstring's words, or else its value."""
    if not hasattr(settings, name):
        return "(required)"
    words = _docs(settings).get(name, "").partition(_DEFAULT)[2].removesuffix(".")
    if not words and value in ("None", "", "''"):
        return "(optional)"
    return f"(default: {words or value})"


def flag(name: str) -> str:
    """Name of a field in a message: its flag while a command line is parsed, else its own."""
    return name if _errors.get() is None else f"--{name.replace('_', '-')}"


def _check(name: str, value: Any, kind: Any) -> None:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        _check(name, value, inner[0])
        bounds = [] if value is None else list(_bounds(inner[1:]))
        if not all(holds(value) for _, _, holds in bounds):
            words = " and ".join(said for _, said, _ in bounds)
            raise ValueError(f"expected {flag(name)} of {words}, got {_shown(value)}")
    elif origin in (Union, UnionType):
        _check_one_of(name, value, inner)
    elif origin is Literal and value not in inner:
        raise _wrong(name, f"one of {', '.join(map(str, inner))}", value)
    elif origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise _wrong(name, "a tuple", value)
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(value) != len(kinds):
            raise _wrong(name, f"{len(kinds)} values", value)
        for one, its_kind in zip(value, kinds, strict=True):
            _check(name, one, its_kind)
    elif kind in _TYPES:
        family, words = _TYPES[kind]
        is_right = isinstance(value, family) and (kind is bool or not isinstance(value, bool))
        if not is_right or (kind is float and not _is_finite(value)):
            raise _wrong(name, words, value)


def _check_one_of(name: str, value: Any, kinds: Iterable[Any]) -> None:
    others = [kind for kind in kinds if kind is not NoneType]
    if value is None and len(others) < len(tuple(kinds)):
        return
    for kind in others[:-1]:
        with suppress(ValueError):
            return _check(name, value, kind)
    _check(name, value, others[-1])


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    # An int beyond all floats.
    except OverflowError:
        return False


def _wrong(name: str, what: str, value: Any) -> ValueError:
    return ValueError(f"expected {flag(name)} to be {what}, got {_shown(value)}")


def _shown(value: Any) -> str:
    return repr(value).removesuffix(".0")


def _bounds(metadata: Iterable[Any]) -> Iterator[tuple[str, str, Callable[[Any], bool]]]:
    """Bounds among the metadata of `Annotated`: form in --help, form in messages, test."""
    for one in metadata:
        if isinstance(one, GroupedMetadata):
            yield from _bounds(one)
        elif type(one) in _BOUNDS:
            field, shown, said, holds = _BOUNDS[type(one)]
            bound = getattr(one, field)
            number = "2^63" if bound == 2**63 else bound
            yield shown.format(number), said.format(number), partial(holds, bound)


def _metavar(kind: Any) -> str:
    """A type in the form of `--help`: `INT ≥ 1`, `0 ≤ FLOAT ≤ 1`, `INT ≥ 1 ...`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        shown = _metavar(inner[0])
        signs = [sign for sign, _, _ in _bounds(inner[1:]) if sign]
        if len(signs) == 2 and signs[0][0] in _FLIPPED and signs[1][0] in _FLIPPED.values():
            sign, low = signs[0].split()
            return f"{low} {_FLIPPED[sign]} {shown} {signs[1]}"
        return " ".join([shown, *signs])
    if origin in (Union, UnionType):
        return "|".join(_metavar(one) for one in inner if one is not NoneType)
    if origin is tuple:
        return " ".join("..." if one is Ellipsis else _metavar(one) for one in inner)
    if origin is Literal:
        return f"{{{','.join(map(str, inner))}}}"
    return getattr(kind, "__name__", str(kind)).upper()


def _parts(kind: Any) -> tuple[Any, ...]:
    """A type and its metadata from `Annotated`."""
    return get_args(kind) if get_origin(kind) is Annotated else (kind,)
