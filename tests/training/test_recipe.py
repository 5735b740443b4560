"""The written recipe for Stable Diffusion XL: each of its lines runs, on tiny parts."""

import re
import shlex
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from spad.cli import main
from spad.hub.registry import model_info
from tiny_bases import TINY, plain_pipeline, tokenizer_folder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
# What makes a full-size training one step on a processor.
SMALL = """--steps 1 --views 2 --view-sampling random --batch-size 2 --micro-batch-size 2
    --optimizer adamw --device cpu --mixed-precision no --num-workers 0 --sample-every 0
    --trackers""".split()


def recipe() -> list[list[str]]:
    """Arguments of the `spad` commands of the section, in order."""
    section = PAGE.read_text(encoding="utf-8").partition("## Stable Diffusion XL\n")[2]
    block = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL).group(1)
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[each.index("spad") + 1 :] for each in words if "spad" in each]


@pytest.mark.slow
def test_every_line_of_the_recipe_runs(renders, tmp_path, monkeypatch, capsys):
    plain = plain_pipeline(TINY["sdxl"], tokenizer_folder(tmp_path / "tokenizer"))
    plain.save_pretrained(tmp_path / "SDXL")
    (tmp_path / "renders").symlink_to(renders)
    monkeypatch.chdir(tmp_path)
    for command, *arguments in recipe():
        if command == "render":
            # Models are rendered in tests/data.
            continue
        if command == "init-from-base":
            arguments += ["--image-size", "64"]
        elif command == "train":
            arguments += SMALL
        elif command == "generate":
            arguments += ["--views", "2", "--steps", "1", "--device", "cpu", "--output", "out"]
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main([command, *arguments]) == 0, (command, arguments, capsys.readouterr().err)
    models = {path.parent.name for path in Path("runs").glob("*/model")}
    assert models == {"xl", "xl-8", "xl-all"}
    assert model_info("runs/xl/model").image_size == 64
    assert len(list(Path("out/images").glob("*.png"))) == 2


@pytest.fixture(autouse=True)
def forgotten():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
