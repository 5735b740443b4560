"""Whatever surrounds a command, it works or says in one line what is wrong."""

import os
import signal
import subprocess
import sys
import warnings

import pytest

from spad.surroundings import (
    as_text,
    check_environment,
    quiet_warnings,
    termination_as_interrupt,
    visible,
)

ON_UNIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ↑ é 猫\n\tlines", "plain ↑ é 猫\n\tlines"),
        ("\x1b[2Jgone\r", r"\x1b[2Jgone\r"),
        ("\x9b31m\x07", r"\x9b31m\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
    ],
)
def test_no_text_moves_the_cursor(text, shown):
    assert visible(text) == shown


@ON_UNIX
def test_arguments_are_text():
    assert as_text(["a fish", "ein Bär"]) == ["a fish", "ein Bär"]
    # So they come where the locale is ASCII.
    with pytest.raises(ValueError, match=r"expected arguments in UTF-8, got b\\udcff"):
        as_text(["a", "b\udcff"])
    assert as_text([os.fsdecode("ein Bär".encode())]) == ["ein Bär"]


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "HF_HUB_DOWNLOAD_TIMEOUT"])
@pytest.mark.parametrize("value", ["soon", "", "-1", "1.5"])
def test_numbers_of_the_environment_are_numbers(monkeypatch, name, value):
    check_environment()
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"expected {name} in the environment to be a number"):
        check_environment()


@ON_UNIX
def test_a_folder_that_was_deleted_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ValueError, match="expected a current folder, got one that was deleted"):
        check_environment()


@ON_UNIX
def test_termination_is_an_interrupt_and_no_longer_than_asked():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), termination_as_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_warnings_are_no_errors(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with quiet_warnings(), warnings.catch_warnings(record=True) as seen:
        warnings.warn("something", UserWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert [str(one.message) for one in seen] == ["something"]
    assert "PYTHONWARNINGS" not in os.environ


@ON_UNIX
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("PYTHONWARNINGS=error spad models", 0, ""),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 spad --help", 0, ""),
        ("COLUMNS=1 spad models --help", 0, ""),
        ("spad models > /dev/full", 1, "No space left on device"),
        ("spad download spad_two_views <&-", 2, "expected --yes, as there is no terminal"),
        ("SPAD_HOME='~nobody-here' spad models", 0, ""),
        ("SPAD_HOME='~nobody-here' spad download spad_two_views", 2, "expected a user with a home"),
    ],
)
def test_commands_in_odd_surroundings(command, code, said):
    script = f'spad() {{ "{sys.executable}" -m spad "$@"; }}\n{command}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=100)
    errors = done.stderr.decode()
    assert done.returncode == code, errors
    assert said in errors and errors.count("\n") == (1 if said else 0), errors
