"""Parsing of command lines: errors in one line, with what was meant, and the list of commands."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, make_dataclass, replace
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

# Private to tyro, so pyproject.toml says for which versions. Its boxes of several lines would be a
# second style of errors.
from tyro import _errors as tyro_errors
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes

from spad.settings import parsed

CONFIG = (OmitArgPrefixes, OmitSubcommandPrefixes)

T = TypeVar("T")


def parse_command(
    settings: type[T], arguments: Sequence[str], program: str, default: T | None = None
) -> T:
    """Settings of one command from its arguments.

    Args:
        program: the command as it is typed, such as "spad generate".
        default: settings where no flag says otherwise. None: those of the class.

    Raises: ValueError: arguments that cannot be understood, in one line. SystemExit: after --help.
    """

    def parse() -> T:
        options: dict[str, Any] = {} if default is None else {"default": default}
        return tyro.cli(settings, args=arguments, prog=program, config=CONFIG, **options)

    with tyro_errors.on_parse_error(_raiser(settings, arguments, program)):
        return parsed(parse)


def in_groups(
    settings: type, groups: Mapping[str, Sequence[str]], defaults: Mapping[str, str]
) -> type:
    """Settings whose --help shows them in groups, for that alone; others come first.

    Args:
        groups: names of fields by title.
        defaults: texts of defaults that are chosen when they are used, by field.
    """
    hints = get_type_hints(settings, include_extras=True)
    made: dict[str, Any] = {}
    for field in fields(settings):
        kind, *metadata = _parts(hints[field.name])
        if (words := defaults.get(field.name)) is not None:
            shown = f"(default: {words})"
            metadata = [
                replace(one, help_behavior_hint=shown)
                if hasattr(one, "help_behavior_hint")
                else one
                for one in metadata
            ]
        made[field.name] = (field.name, Annotated[(kind, *metadata)], field.default)
    grouped = {
        title: make_dataclass(title.title(), [made.pop(name) for name in names], frozen=True)
        for title, names in groups.items()
    }
    for group in grouped.values():
        group.__doc__ = ""
    nested = [(title, group, group()) for title, group in grouped.items()]
    result = make_dataclass(settings.__name__, [*made.values(), *nested], frozen=True)
    result.__doc__ = settings.__doc__
    return result


def summary(settings: type) -> str:
    """The first sentence of the docstring of a command's settings."""
    paragraph = " ".join((settings.__doc__ or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.?]) ", paragraph)[0]


def overview(groups: Mapping[str, Mapping[str, type]]) -> str:
    """The text of `spad --help`: commands by group, each with a summary in one line."""
    width = max(len(name) for group in groups.values() for name in group)
    lines = [
        "usage: spad [-h] [--version] COMMAND ...",
        "",
        "Text and cameras in, consistent images of one object out, then a 3D model of it.",
    ]
    for title, group in groups.items():
        lines += ["", title]
        lines += [f"  {name:{width}}  {summary(settings)}" for name, settings in group.items()]
    return "\n".join([*lines, "", "All flags of a command: spad COMMAND --help"])


def closest(word: str, known: Sequence[str]) -> str:
    """The end of a message: "; did you mean X?", or nothing."""
    found = difflib.get_close_matches(word.replace("_", "-"), known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def flags_of(settings: type) -> Iterator[str]:
    """All flags of a command, those of nested settings included."""
    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):  # pyright: ignore[reportArgumentType]
        kind, *metadata = _parts(hints[field.name])
        if is_dataclass(kind):
            yield from flags_of(kind)  # pyright: ignore[reportArgumentType]
            continue
        if tyro.conf.Positional in metadata:
            continue
        names = [getattr(one, "name", None) for one in metadata]
        name = next(filter(None, names), field.name).replace("_", "-")
        aliases = [alias for one in metadata for alias in getattr(one, "aliases", None) or ()]
        yield from (f"--{name}", *aliases)
        if kind is bool or bool in get_args(kind):
            yield f"--no-{name}"


def _raiser(settings: type, arguments: Sequence[str], program: str) -> tyro_errors.ParseErrorHook:
    """A hook that raises what tyro would print, as a `ValueError` in one line."""

    def describe(event: tyro_errors.ParseErrorEvent, /) -> None:
        tokens = getattr(event, "unrecognized_tokens", getattr(event, "tokens", ()))
        argument: Any = getattr(event, "argument", None)
        if tokens:
            raise ValueError(_unknown(tokens[0], settings, program))
        if isinstance(event, tyro_errors.MissingArgs):
            missing = [one.arg for one in event.missing_arguments]
            names = ", ".join(f"{one.display_name()} {one.lowered.metavar}" for one in missing)
            raise ValueError(f"expected {names}, got none; see: {program} --help")
        if isinstance(event, tyro_errors.InvalidChoice):
            choices = sorted(choice for choice in event.choices if choice != "None")
            raise ValueError(
                f"expected {argument.display_name()} to be one of {', '.join(choices)}, got "
                f"{event.value!r}{closest(event.value, choices)}"
            )
        if argument is not None:
            names = argument.lowered.name_or_flags
            expected = f"{argument.display_name()} {argument.lowered.metavar}"
            raise ValueError(f"expected {expected}, got {_given(names, arguments)}")

    return describe


def _unknown(token: str, settings: type, program: str) -> str:
    if not token.startswith("-"):
        return f"expected a text of several words in quotes, got {token!r} outside of them"
    name = token.partition("=")[0]
    advice = closest(name, list(flags_of(settings))) or f"; see: {program} --help"
    return f"expected a flag of {program}, got {name}{advice}"


def _given(names: Sequence[str], arguments: Sequence[str]) -> str:
    """What follows a flag in a command line."""
    for index, argument in enumerate(arguments):
        name, sign, value = argument.partition("=")
        if name.replace("_", "-") in names:
            rest = arguments[index + 1 :]
            end = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
            return repr(value if sign else " ".join(rest[:end])) if sign or end else "nothing"
    return "something else"


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Annotated else (kind,)
