"""Command lines: what is said of those that cannot be understood, and what --help shows."""

import subprocess
import sys
from dataclasses import fields

import pytest

import spad
from spad.cli import commands, main
from spad.command_line import flags_of, summary
from spad.generation.config import HELP_GROUPS, GenerateConfig

SETTINGS = {name: one[0] for group in commands().values() for name, one in group.items()}

WRONG = {
    "": "expected a command, got none; see: spad --help",
    "genrate x": "expected a command, got 'genrate'; did you mean generate?",
    "generate x --elevatoin 3": "expected a flag of spad generate, got --elevatoin; did you mean "
    "--elevation?",
    # Of this command, not of others that have such a flag.
    "generate x --pixel 1 2": "expected a flag of spad generate, got --pixel; see: spad generate "
    "--help",
    "generate a fish": "in quotes, got 'fish'",
    "generate x --views a": "expected --views INT ≥ 1, got 'a'",
    "generate x --views": "expected --views INT ≥ 1, got nothing",
    "generate x --seed=": "expected --seed 0 ≤ INT < 2^63, got ''",
    "generate x --preset lgn": "got 'lgn'; did you mean lgm?",
    "generate x --radius 1 far": "got '1 far'",
    "generate x --views 0": "expected --views of at least 1, got 0",
    "render models": "expected --output PATH, got none; see: spad render --help",
    "render models --view 3": "expected a flag of spad render, got --view; did you mean --views?",
    "train --stpes 3": "expected a flag of spad train, got --stpes; did you mean --steps?",
    "train --preset mni": "got 'mni'; did you mean mini?",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_command_lines_get_one_line_that_says_what_was_meant(line, capsys):
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("spad: error: ") and WRONG[line] in said.err


def test_help_lists_all_commands_in_a_line_each(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, settings in SETTINGS.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith(summary(settings)) and line[-1] in ".?" and len(line) <= 120


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"spad {spad.__version__}\n"


@pytest.mark.parametrize("name", SETTINGS)
def test_flags_of_a_command_are_those_of_its_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    words = {word.strip(",") for word in capsys.readouterr().out.split()}
    assert set(flags_of(SETTINGS[name])) <= words


def test_help_of_generate_is_in_groups_with_the_defaults_of_a_model(tiny_pipeline_folder, capsys):
    named = [name for names in HELP_GROUPS.values() for name in names]
    assert len(set(named)) == len(named)
    assert set(named) <= {field.name for field in fields(GenerateConfig)}
    for arguments, words in (
        ([], "(mini: 12)"),
        (["--model", str(tiny_pipeline_folder)], "(tiny: 2)"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(["generate", "--help", *arguments])
        said = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"Number of denoising steps. (default: the model's own {words})" in said
        assert all(f"{title} options" in said for title in HELP_GROUPS)


def test_shells_can_complete():
    done = subprocess.run(
        [sys.executable, "-m", "spad", "--tyro-print-completion", "bash"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--save-for" in done.stdout and "train-autoencoder" in done.stdout
