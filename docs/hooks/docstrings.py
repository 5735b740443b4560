"""Docstrings of this project in the form that the documentation site reads (Google style).

Two habits differ from it: arguments that share a description share a line (`height, width: …`),
and short sections stand on the line of their title (`Raises: ValueError: …`). And names that a
package hands on from its modules are shown once, in their module.
"""

import re

import griffe

# An entry for several arguments, with the lines that go on with it.
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+)(: .*(?:\n\1 +.*)*)$", re.MULTILINE)
_TITLED = re.compile(r"^([A-Z][\w ]*?): (?=\S)", re.MULTILINE)


def google_style(text: str) -> str:
    """The docstring with an entry for each argument, and titles in bold, in paragraphs."""

    def one_each(match: re.Match) -> str:
        indent, names, description = match.groups()
        return "\n".join(f"{indent}{name}{description}" for name in names.split(", "))

    return _TITLED.sub(r"\n**\1:** ", _SHARED.sub(one_each, text))


class Reference(griffe.Extension):
    """Changes objects before their docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = google_style(obj.docstring.value)

    def on_module(self, *, mod: griffe.Module, **_: object) -> None:
        mod.exports = None
