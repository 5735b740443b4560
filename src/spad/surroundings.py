"""What surrounds a command: arguments, environment, terminal, signals and warnings."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Control characters but line breaks and tabs, those that turn the direction of text, and bytes
# that are no text.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Numbers that libraries read when they are imported, without a word on where they come from.
_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "RANK", "LOCAL_RANK", "WORLD_SIZE")
_NARROWEST = 40


def visible(text: str) -> str:
    """Text for a terminal: foreign files and servers cannot move its cursor or color it."""
    return _INVISIBLE.sub(lambda found: repr(found[0])[1:-1], text)


def as_text(argv: Sequence[str]) -> list[str]:
    """Arguments of a command line as text, also where the locale knows no more than ASCII.

    Raises: ValueError: one is no UTF-8.
    """
    try:
        return [os.fsencode(argument).decode() for argument in argv]
    # Windows, where arguments may have halves of letters, and others.
    except UnicodeError:
        wrong = next(a for a in argv if _INVISIBLE.search(a))
        raise ValueError(f"expected arguments in UTF-8, got {visible(wrong)}") from None


def check_environment() -> None:
    """Raises: ValueError: the current folder is gone, or a variable is no number."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError(
            "expected a current folder, got one that was deleted; change to another directory"
        ) from None
    for name in _NUMBERS:
        value = os.environ.get(name, "0")
        if not re.fullmatch(r"\d+", value, re.ASCII):
            raise ValueError(f"expected {name} in the environment to be a number, got {value!r}")


def widen_terminal() -> None:
    """Let the parser write --help at least so wide that it ends."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Context in which SIGTERM does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Context without other libraries' deprecation warnings, in which no warning is an error."""
    with warnings.catch_warnings():
        if any(option.startswith("error") for option in sys.warnoptions):
            warnings.simplefilter("default")
            # Worker processes would read it again.
            os.environ.pop("PYTHONWARNINGS", None)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
