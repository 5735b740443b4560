"""Laws of the output of all commands: a full disk, and another command in the same place."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hand_made import box, write_gltf
from made_views import ring, table, views_of, write_views
from parity import Golden
from spad.cli import main
from spad.files import exclusive, whole_folder

pytest.importorskip("pyarrow")

# Bytes in a file: nothing can be written, short texts can.
LIMITS = (100, 4000)


@dataclass(frozen=True)
class Command:
    """A command at its smallest.

    Args:
        arguments: from the folder of inputs; the output follows them.
        holds: what another process that runs the same command holds of the output.
        resumes: whether whole parts of the output stay, as the same command goes on.
    """

    arguments: Callable[[Path], list[object]]
    holds: Callable[[Path], AbstractContextManager] = whole_folder
    resumes: bool = False
    output: str = "out"


def _convert(folder: Path) -> list[object]:
    golden = folder / "golden"
    clip, config = golden / "tiny_clip", folder / "config.json"
    return ["convert", "--clip", clip, "--config", config, golden / "spad_tiny.ckpt"]


COMMANDS = {
    "generate": Command(
        lambda folder: ["generate", "a blue fish", "--model", folder / "tiny", "--views", 2]
    ),
    "generate --prompts": Command(
        lambda folder: [
            *("generate", "--prompts", folder / "prompts.txt", "--model", folder / "tiny"),
            *("--views", 2),
        ],
        exclusive,
        resumes=True,
    ),
    "epipolar": Command(lambda _: ["epipolar", "--views", 2, "--image-size", 64]),
    "reconstruct": Command(
        lambda folder: ["reconstruct", folder / "table", "--cells", 24, "--texture-size", 64],
        output="out.glb",
    ),
    "evaluate": Command(
        lambda folder: ["evaluate", folder / "renders", "--limit", 1], exclusive, resumes=True
    ),
    "convert": Command(_convert),
    "filter": Command(lambda folder: ["filter", folder / "annotations.json", "--preset", "none"]),
    "render": Command(
        lambda folder: [
            *("render", folder / "models.jsonl", "--num-views", 2, "--image-size", 32),
            *("--cameras", "orbit", "--reject", "--workers", 1),
        ],
        exclusive,
        resumes=True,
    ),
    "pack": Command(lambda folder: ["pack", folder / "renders"], exclusive, resumes=True),
    "train": Command(
        lambda folder: [
            *("train", "--preset", "mini", "--data", folder / "shards", "--vae", folder / "vae"),
            *("--steps", 1, "--views", 2, "--batch-size", 2, "--block-out-channels", 32, 32),
            *("--text-width", 64, "--device", "cpu", "--sample-every", 0, "--trackers"),
        ],
        exclusive,
        resumes=True,
    ),
    "train-autoencoder": Command(
        lambda folder: [
            *("train-autoencoder", "--data", folder / "renders", "--init", folder / "vae"),
            *("--steps", 1, "--batch-size", 1),
        ],
        exclusive,
        resumes=True,
    ),
}


@pytest.fixture(scope="module")
def inputs(tiny_pipeline_folder, renders, disc_shards, disc_vae, tmp_path_factory) -> Path:
    """A folder with all that the commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "prompts.txt").write_text("a blue fish\na grey rock\n")
    metadata = {str(number): {"name": f"chair {number}"} for number in range(99)}
    (folder / "annotations.json").write_text(json.dumps(metadata))
    write_gltf(folder / "box.gltf", [box()])
    (folder / "models.jsonl").write_text('{"uid": "box", "file": "box.gltf"}\n')
    write_views(folder / "table", views_of(table(folder), ring(4)))
    for name, made in {
        "tiny": tiny_pipeline_folder,
        "renders": renders,
        "shards": disc_shards,
        "vae": disc_vae,
    }.items():
        (folder / name).symlink_to(made)
    return folder


@pytest.fixture(params=COMMANDS)
def command(request, inputs) -> Command:
    if request.param == "convert":
        shared: Path = request.getfixturevalue("shared_dir")
        golden = Golden(shared / "golden")
        if not (inputs / "golden").exists():
            (inputs / "golden").symlink_to(golden.folder)
            config = golden.facts("spad_tiny")["config"]
            (inputs / "config.json").write_text(json.dumps(config))
    return COMMANDS[request.param]


def run(command: Command, inputs: Path, output: Path) -> int:
    arguments = command.arguments(inputs)
    flag = [] if arguments[0] == "convert" else ["--output"]
    return main([*map(str, arguments), *flag, str(output)])


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """Context: no file may become longer, as on a disk that fills."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize(
    # The workers of `spad render` keep the limit; tests/data/test_render.py has its own test.
    "command",
    [name for name in COMMANDS if name != "render"],
    indirect=True,
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    command, inputs, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # Handlers of other libraries write to the file that stands for the terminal.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    output = tmp_path / "place" / command.output
    output.parent.mkdir()
    for size in LIMITS:
        with longest_file(size):
            code = run(command, inputs, output)
        said = capsys.readouterr().err
        if code == 0:
            break
        assert code == 1 and "Traceback" not in said, said
        assert "expected room to write" in said.splitlines()[-1], said
        left = [path for path in output.parent.rglob("*") if path.is_file()]
        assert command.resumes or not left
        assert not list(output.parent.rglob(".unfinished"))
    if command.resumes:
        assert run(command, inputs, output) == 0
        assert os.listdir(output.parent) == [command.output]


@pytest.mark.parametrize(
    # A model is held only while it is written; the test of many prompts has its own.
    "command",
    [name for name in COMMANDS if name not in ("reconstruct", "generate --prompts")],
    indirect=True,
)
def test_two_at_once_are_refused(command, inputs, tmp_path, capsys):
    output = tmp_path / command.output
    with command.holds(output):
        assert run(command, inputs, output) == 2
    assert "but another command is" in capsys.readouterr().err.splitlines()[-1]
