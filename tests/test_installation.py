"""The install command of messages is that of this installation."""

import json
import shlex
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from spad import installation
from spad.installation import install_command

METADATA = """Metadata-Version: 2.4
Name: spad
Version: 0.1.0
Requires-Dist: torch>=2.6
Requires-Dist: embreex>=4.4; extra == 'data'
Requires-Dist: pyarrow>=20; extra == 'data'
Requires-Dist: trimesh>=5; extra == 'mesh'
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes spad look as if it was installed from somewhere."""

    def install(origin: dict | None) -> None:
        folder = tmp_path / "spad-0.1.0.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(METADATA)
        if origin is not None:
            (folder / "direct_url.json").write_text(json.dumps(origin))
        own = PathDistribution(folder)
        monkeypatch.setattr(installation, "distribution", lambda _: own)

    return install


@pytest.mark.parametrize(
    "origin, words",
    [
        (None, ["spad[data]==0.1.0"]),
        ({"dir_info": {"editable": True}, "url": "COPY"}, ["-e", "PATH[data]"]),
        ({"dir_info": {}, "url": "COPY"}, ["PATH[data]"]),
        (
            {"vcs_info": {"vcs": "git", "commit_id": "abc"}, "url": "https://host/spad"},
            ["spad[data] @ git+https://host/spad@abc"],
        ),
        ({"archive_info": {}, "url": "file:///gone.whl"}, ["embreex>=4.4", "pyarrow>=20"]),
        ({"dir_info": {"editable": True}, "url": "file:///gone"}, ["embreex>=4.4", "pyarrow>=20"]),
    ],
)
def test_the_command_names_what_spad_was_installed_from(installed, tmp_path, origin, words):
    copy = tmp_path / "a copy"
    copy.mkdir()
    if origin is not None:
        origin = {**origin, "url": origin["url"].replace("COPY", copy.as_uri())}
    installed(origin)
    command = shlex.split(install_command("data"))
    words = [word.replace("PATH", str(copy)) for word in words]
    assert command[-len(words) :] == words
    assert command[-len(words) - 1] == "install"


def test_the_command_is_one_of_the_python_that_runs():
    words = shlex.split(install_command("data"))
    assert Path(words[0]).absolute() == Path(sys.executable).absolute() or words[0] == "uv"


def test_a_name_of_the_package_says_what_installs_its_extra():
    program = "import sys; sys.modules['fast_simplification'] = None; import spad; spad.reconstruct"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "reconstruct needs fast_simplification; install it with: " in last
    assert last.endswith(install_command("mesh"))


def test_the_command_is_understood_by_pip(tmp_path):
    # A dry run without an index: it fails for the lack of packages, not for its words.
    words = shlex.split(install_command("plot"))
    done = subprocess.run([*words, "--dry-run", "--no-index"], capture_output=True, text=True)
    assert "Invalid requirement" not in done.stderr and "no such option" not in done.stderr
