"""Laws of writing: whole or absent, whoever else is at work, and whatever kills it."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spad.files import (
    RECORD,
    append_json,
    check_file_output,
    check_output,
    check_space,
    exclusive,
    free_space,
    json_text,
    read_json_lines,
    slug,
    whole_file,
    whole_folder,
    write_text,
)
from spad.files.writing import LOCK, UNFINISHED

SRC = Path(__file__).resolve().parents[2] / "src"
# A process that says when it has come to a place, and is killed there.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from spad.files import exclusive, whole_file, whole_folder

def stay():
    print("here", flush=True)
    time.sleep(60)

here = Path(sys.argv[1])
"""


def run(code: str, folder: Path) -> subprocess.Popen:
    """A process that has come to `stay()` in `code`."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED + code, str(folder)],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.png"
    with whole_file(path) as unfinished:
        assert unfinished.name == path.name
        unfinished.write_text("1")
        assert not path.exists()
    assert path.read_text() == "1"
    write_text(path, "é\n2\n")
    assert path.read_bytes() == b"\xc3\xa9\n2\n"
    assert names(tmp_path) == ["new", "new/a.png"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error_a_file_is_as_it_was(tmp_path, error):
    write_text(tmp_path / "a", "old")
    for path in (tmp_path / "a", tmp_path / "new" / "b"):
        with pytest.raises(error), whole_file(path) as unfinished:
            unfinished.write_text("new")
            raise error
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_a_folder_is_as_it_was(tmp_path, error):
    (tmp_path / "old").mkdir()
    write_text(tmp_path / "old" / RECORD, "{}")
    for folder in (tmp_path / "old", tmp_path / "deep" / "new"):
        with pytest.raises(error), whole_folder(folder, overwrite=True) as unfinished:
            (unfinished / "part").mkdir()
            raise error
    assert names(tmp_path) == ["old", f"old/{RECORD}"]


def test_a_folder_appears_when_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("deep/o")
    for text in ("1", "2"):
        with whole_folder(folder, overwrite=text == "2") as unfinished:
            assert unfinished.name == folder.name
            write_text(unfinished / RECORD, "{}")
            write_text(unfinished / f"part{text}" / "a", text)
    assert names(tmp_path) == [
        "deep",
        "deep/o",
        "deep/o/part2",
        "deep/o/part2/a",
        "deep/o/run.json",
    ]


def test_only_the_folder_of_a_run_is_replaced(tmp_path):
    foreign, empty = tmp_path / "foreign", tmp_path / "empty"
    for folder in (foreign, empty):
        folder.mkdir()
    write_text(foreign / "photo.png", "")
    write_text(tmp_path / "file", "")
    with pytest.raises(ValueError, match=r"holds no run\.json; choose another --output"):
        check_output(foreign, overwrite=True)
    with pytest.raises(ValueError, match="holds no spad.json"):
        check_output(foreign, overwrite=True, mark="spad.json")
    with pytest.raises(ValueError, match="which exists; use another --output"):
        check_output(foreign, overwrite=False)
    with pytest.raises(ValueError, match="which exists; use --overwrite"):
        check_output(empty, overwrite=False)
    with pytest.raises(ValueError, match="which is no folder"):
        check_output(tmp_path / "file", overwrite=True)
    with pytest.raises(ValueError, match="cannot write in"):
        check_output(tmp_path / "file" / "below", overwrite=False)
    check_output(foreign, overwrite=True, mark="photo.png")
    check_output(empty, overwrite=True)
    check_output(tmp_path / "deep" / "new", overwrite=False)


@pytest.mark.parametrize(
    "code",
    [
        "with whole_file(here / 'a') as path: path.write_text('half'); stay()",
        "with whole_file(here / 'b.png') as path: path.write_text('half'); stay()",
        "with whole_folder(here / 'c') as path: (path / 'x').write_text('half'); stay()",
        "with exclusive(here / 'd'), whole_file(here / 'd' / 'x') as path: stay()",
    ],
)
def test_what_a_killed_command_left_is_removed_by_the_next(tmp_path, code):
    kill(run(code, tmp_path))
    assert any(UNFINISHED in name for name in names(tmp_path))
    write_text(tmp_path / "a", "whole")
    with exclusive(tmp_path / "d"):
        write_text(tmp_path / "d" / "y", "whole")
    assert names(tmp_path) == ["a", "d", "d/y"]


def test_what_a_living_command_writes_stays(tmp_path):
    process = run("with whole_file(here / 'b') as path: path.write_text('half'); stay()", tmp_path)
    write_text(tmp_path / "a", "whole")
    with exclusive(tmp_path):
        pass
    assert (tmp_path / UNFINISHED / "b" / "b").read_text() == "half"
    kill(process)


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    with whole_folder(tmp_path / "o") as folder:
        write_text(folder / RECORD, "old")
    kill(
        run(
            "from spad.files import writing\n"
            "rename = os.rename\n"
            "writing.os.rename = lambda *of: stay() if of[1] == here / 'o' else rename(*of)\n"
            "with whole_folder(here / 'o', overwrite=True) as path: path.joinpath('x').touch()",
            tmp_path,
        )
    )
    assert not (tmp_path / "o").exists()
    write_text(tmp_path / "a", "")
    assert names(tmp_path) == ["a", "o", f"o/{RECORD}"]
    assert (tmp_path / "o" / RECORD).read_text() == "old"


def test_writers_of_one_file_do_not_meet(tmp_path):
    texts = [str(number) * 10_000 for number in range(8)]

    def write(text: str) -> None:
        for _ in range(20):
            write_text(tmp_path / "a", text)
            assert (tmp_path / "a").read_text() in texts

    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(write, texts))
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() in texts


def test_two_commands_may_not_make_one_folder(tmp_path):
    process = run("with whole_folder(here / 'o') as path: stay()", tmp_path)
    with (
        pytest.raises(ValueError, match="expected nobody else at work in .*o, but"),
        whole_folder(tmp_path / "o"),
    ):
        pytest.fail("two at once")
    kill(process)
    with whole_folder(tmp_path / "o") as folder:
        write_text(folder / RECORD, "{}")
    process = run("with exclusive(here / 'o'): stay()", tmp_path)
    with (
        pytest.raises(ValueError, match="expected nobody else at work in"),
        whole_folder(tmp_path / "o", overwrite=True),
    ):
        pytest.fail("two at once")
    kill(process)
    with whole_folder(tmp_path / "o", overwrite=True) as folder:
        write_text(folder / RECORD, "{}")
    assert names(tmp_path) == ["o", f"o/{RECORD}"]


def test_one_command_works_in_a_folder(tmp_path):
    process = run("with exclusive(here / 'o'): stay()", tmp_path)
    with (
        pytest.raises(ValueError, match="expected nobody else at work in"),
        exclusive(tmp_path / "o"),
    ):
        pytest.fail("two at once")
    killer = threading.Timer(0.5, process.send_signal, [signal.SIGKILL])
    killer.start()
    with exclusive(tmp_path / "o", wait=True):
        assert (tmp_path / "o" / LOCK).exists()
        write_text(tmp_path / "o" / "a", "")
    assert names(tmp_path) == ["o", "o/a"]
    kill(process)


def test_no_command_works_in_a_file(tmp_path):
    write_text(tmp_path / "a", "")
    (tmp_path / "b").symlink_to("nowhere")
    for place in (tmp_path / "a", tmp_path / "b", tmp_path / "a" / "c"):
        with pytest.raises(OSError), exclusive(place):
            pytest.fail("no folder")
    assert names(tmp_path) == ["a", "b"]


def test_a_folder_that_stays_empty_goes_again_if_it_was_made(tmp_path):
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "deep" / "new", tmp_path / "old"):
        with pytest.raises(KeyboardInterrupt), exclusive(folder):
            raise KeyboardInterrupt
    assert names(tmp_path) == ["old"]


def test_a_line_is_added_whole_in_the_place_of_one_that_was_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    append_json(path, {"uid": "é", "path": tmp_path})
    append_json(path, {"uid": "b"})
    path.write_bytes(path.read_bytes()[:-4])
    append_json(path, {"uid": "c"})
    assert [row["uid"] for _, row in read_json_lines(path, dict)] == ["é", "c"]
    path.write_bytes(b'{"uid"')
    append_json(path, {"uid": "d"})
    assert path.read_bytes() == b'{"uid": "d"}\n'


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize(
    "code",
    [
        "write_text(here / 'a', 'x' * 10**6)",
        "append_json(here / 'a', {'x': 'x' * 10**6})",
        "with whole_folder(here / 'a', True, 'old') as path: (path / 'x').write_text('x' * 10**6)",
        # Errors that libraries have for it.
        "with whole_file(here / 'a'): raise ValueError('I/O error: File too large')",
        "with whole_file(here / 'a'): raise TypeError from OSError(27, 'File too large')",
        "with whole_file(here / 'a') as path, open(path, 'wb') as file: file.write(b'x' * 10**6)",
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, code, is_there):
    path = tmp_path / "a"
    if is_there and "whole_folder" in code:
        write_text(path / "old", "{}\n")
    elif is_there:
        write_text(path, "{}\n")
    before = names(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource, sys\nfrom pathlib import Path\nfrom spad.files import *\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\nhere = Path(sys.argv[1])\n"
            f"try:\n    {code}\nexcept OSError as error:\n    print(error)",
            tmp_path,
        ],
        env=os.environ | {"PYTHONPATH": str(SRC), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == (
        f"expected room to write {path}, got: File too large; make room and run the same "
        "command again\n"
    ), done.stderr
    assert [name for name in names(tmp_path) if (tmp_path / name).stat().st_size] == before
    assert not is_there or (path / "old" if path.is_dir() else path).read_text() == "{}\n"


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="^no$"), whole_file(tmp_path / "a"):
        raise RuntimeError("no")


def test_space_is_asked_of_the_disk_of_a_folder_to_be(tmp_path):
    assert free_space(tmp_path / "deep" / "new") > 0
    check_space([(tmp_path / "new", 1), (tmp_path, 1)])
    size = free_space(tmp_path) // 3 * 2
    with pytest.raises(OSError, match=r"expected .* GB free on the disk of .*; try float16"):
        check_space([(tmp_path / "new", size), (tmp_path, size)], "try float16")


def test_numbers_in_json_are_finite(tmp_path):
    assert json_text({"path": tmp_path, "x": 1.5}, indent=None).startswith('{"path": "')
    with pytest.raises(ValueError):
        json_text({"x": float("nan")})


def test_slugs_are_names():
    assert slug("A blue fish!") == "a-blue-fish"
    assert slug("../../etc") == "etc"
    assert slug("日本") == "object"
    assert slug("a " * 99, longest=5) == "a-a-a"


def test_files_are_replaced_if_they_begin_with_their_mark(tmp_path):
    path = tmp_path / "page.html"
    check_file_output(path, "<title>Mine</title>")
    path.write_text("<html><title>Mine</title>")
    check_file_output(path, "<title>Mine</title>")
    path.write_text("notes of the user")
    with pytest.raises(ValueError, match=r"an earlier one of the same kind, got .*page\.html"):
        check_file_output(path, "<title>Mine</title>")
    with pytest.raises(ValueError, match="expected a file to write, got the folder"):
        check_file_output(tmp_path, "<title>Mine</title>")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="which is something else"):
        check_file_output(tmp_path / "link", "<title>Mine</title>")
