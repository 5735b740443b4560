"""Laws of settings: a value outside of its bounds makes no settings, wherever it comes from."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import hypothesis
import numpy as np
import pytest
import tyro
from annotated_types import Ge, Interval, Lt, MinLen, MultipleOf
from hypothesis import strategies as st
from tyro.conf import Positional, arg, subcommand

from spad.settings import Count, PositiveFloat, Seed, Share, checked, defaults_of, flag, parsed


@dataclass(frozen=True)
@checked
class Optimizer:
    """How weights change."""

    steps: Count = 100
    """Optimizer steps."""
    learning_rate: PositiveFloat = 1e-3
    """Highest learning rate."""
    decay: Annotated[float, Interval(ge=0, lt=1)] = 0.9


@dataclass(frozen=True)
@checked
class Views:
    """Which views are learned from."""

    num_views: Annotated[tuple[Count, ...], MinLen(1)] = (1, 4)
    """Numbers of views, one of which is drawn for a step."""
    clean_share: Share = 0.25
    crop: Annotated[int, Ge(16), MultipleOf(16)] | None = None


@dataclass(frozen=True)
@checked
class Train:
    """Train a model."""

    data: Positional[str] = "shards"
    """Folder of shards."""
    preset: Literal["mini", "full"] = "mini"
    band_width: Annotated[PositiveFloat | None, arg(aliases=("--width-of-bands",))] = None
    """Widths of epipolar bands, in tokens. Default: that
    of the model."""
    seed: Seed = 0
    pixel: tuple[Annotated[int, Ge(0)], Annotated[int, Lt(99)]] | None = None
    output: Path | None = None
    """Output folder."""
    near: float = 0.0
    far: float = 1.0
    verify: bool = False
    optimizer: Optimizer = Optimizer()
    views: Views = Views()

    def __post_init__(self) -> None:
        if not self.near < self.far:
            raise ValueError(
                f"expected {flag('near')} below {flag('far')}, got {self.near:g} and {self.far:g}"
            )


@dataclass(frozen=True)
class Show:
    """Show what there is."""

    size: int = 3


FULL = Train(preset="full", optimizer=Optimizer(steps=999), views=Views(num_views=(2,)))


def command(*argv: str) -> Train | Show:
    """As `spad` parses: a preset is the default of its command, and flags have no prefixes."""
    train = subcommand("train", default=FULL if "full" in argv else Train())
    return parsed(
        lambda: tyro.cli(
            Annotated[Train, train] | Annotated[Show, subcommand("show")],
            args=argv,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    )


WRONG = [
    ("steps", ["0"], "of at least 1, got 0"),
    ("learning_rate", ["-1"], "of more than 0, got -1"),
    ("learning_rate", ["nan"], "to be a finite number, got nan"),
    ("learning_rate", ["inf"], "to be a finite number, got inf"),
    ("decay", ["1"], "of at least 0 and less than 1, got 1"),
    ("num_views", [], "of 1 or more values, got ()"),
    ("num_views", ["4", "0"], "of at least 1, got 0"),
    ("clean_share", ["1.5"], "of at least 0 and at most 1, got 1.5"),
    ("crop", ["24"], "of at least 16 and a multiple of 16, got 24"),
    ("band_width", ["0"], "of more than 0, got 0"),
    ("seed", ["-1"], "of at least 0 and less than 2^63, got -1"),
    ("pixel", ["-1", "5"], "of at least 0, got -1"),
    ("pixel", ["1", "99"], "of less than 99, got 99"),
    ("near", ["nan"], "to be a finite number, got nan"),
]


@pytest.mark.parametrize("name, words, message", WRONG)
def test_the_command_line_names_the_flag(name, words, message):
    shown = f"--{name.replace('_', '-')}"
    with pytest.raises(ValueError) as error:
        command("train", shown, *words)
    assert str(error.value) == f"expected {shown} {message}"


@pytest.mark.parametrize("name, words, message", WRONG)
def test_python_names_the_field(name, words, message):
    values = [float(word) if not word.lstrip("-").isdigit() else int(word) for word in words]
    value = tuple(values) if name in ("num_views", "pixel") else values[0]
    group = next(one for one in (Optimizer, Views, Train) if name in one.__dataclass_fields__)
    with pytest.raises(ValueError) as error:
        group(**{name: value})
    assert str(error.value) == f"expected {name} {message}"


@pytest.mark.parametrize(
    "name, value, what",
    [
        ("steps", "3", "a whole number"),
        ("steps", 3.0, "a whole number"),
        ("steps", True, "a whole number"),
        ("steps", None, "a whole number"),
        ("learning_rate", "0.1", "a finite number"),
        ("learning_rate", 10**400, "a finite number"),
        ("num_views", 4, "a tuple"),
        ("pixel", (1,), "2 values"),
        ("preset", "large", "one of mini, full"),
        ("verify", "no", "True or False"),
        ("data", 3, "text"),
    ],
)
def test_other_types_are_refused(name, value, what):
    group = next(one for one in (Optimizer, Views, Train) if name in one.__dataclass_fields__)
    with pytest.raises(ValueError) as error:
        group(**{name: value})
    shown = repr(value).removesuffix(".0")
    assert str(error.value) == f"expected {name} to be {what}, got {shown}"


def test_numbers_of_other_kinds_will_do():
    assert Optimizer(np.int64(3), np.float32(0.5), Fraction(1, 2)).steps == 3
    assert Views(num_views=[1, 2]).num_views == [1, 2]
    assert Train(band_width=3).band_width == 3


def test_a_rule_over_several_fields_names_them_too():
    with pytest.raises(ValueError, match="^expected near below far, got 2 and 1$"):
        Train(near=2)
    with pytest.raises(ValueError, match="^expected --near below --far, got 2 and 1$"):
        command("train", "--near", "2")
    # It is not asked where its own fields are wrong already.
    with pytest.raises(ValueError, match="^expected --near to be a finite number"):
        command("train", "--near", "nan")
    assert flag("near") == "near"


def test_a_preset_is_a_value_and_flags_change_single_settings_of_its_groups():
    found = command("train", "--preset", "full", "--decay", "0.5", "--num-views", "3")
    assert isinstance(found, Train)
    assert found.optimizer == replace(FULL.optimizer, decay=0.5)
    assert found.views == Views(num_views=(3,))
    assert command("train") == Train()
    assert command("show", "--size", "-1") == Show(-1)


def test_an_alias_is_written_with_either_line():
    # tyro makes hyphens of the underscores of all flags, so an alias must have hyphens itself.
    for name in ("--width-of-bands", "--width_of_bands", "--band-width", "--band_width"):
        found = command("train", name, "5")
        assert isinstance(found, Train) and found.band_width == 5


def test_help_shows_bounds_in_groups(capsys):
    with pytest.raises(SystemExit, match="0"):
        command("train", "--help")
    shown = " ".join(word for word in capsys.readouterr().out.split() if word not in "│─╭╮╰╯")
    for words in (
        "--steps INT ≥ 1 Optimizer steps. (default: 100)",
        "--learning-rate FLOAT > 0",
        "--decay 0 ≤ FLOAT < 1",
        "--clean-share 0 ≤ FLOAT ≤ 1",
        "--num-views INT ≥ 1 ...",
        "--crop INT ≥ 16 in steps of 16",
        "--width-of-bands FLOAT > 0, --band-width FLOAT > 0",
        "--pixel INT ≥ 0 INT < 99",
        "optimizer options",
        "How weights change.",
        "--near FLOAT",
        "--output PATH Output folder. (optional)",
        "Widths of epipolar bands, in tokens. (default: that of the model)",
    ):
        assert words in shown


@hypothesis.given(
    st.builds(
        Optimizer,
        st.integers(1),
        st.floats(0, exclude_min=True, allow_infinity=False),
        st.floats(0, 1, exclude_max=True),
    )
)
def test_what_is_inside_the_bounds_is_taken_as_it_is(settings):
    words = ["--steps", str(settings.steps), "--learning-rate", repr(settings.learning_rate)]
    found = command("train", *words, "--decay", repr(settings.decay))
    assert isinstance(found, Train)
    assert found.optimizer == settings


def test_the_decorator_stands_below_dataclass():
    with pytest.raises(AssertionError, match="below @dataclass"):
        checked(Show)
    assert math.isinf(Show(math.inf).size)  # type: ignore[arg-type]  # unchecked


def test_defaults_are_those_of_settings_in_which_nothing_is_given():
    @dataclass(frozen=True)
    class Outer:
        folder: Path
        train: Train = Train(seed=7, optimizer=Optimizer(steps=3))

    defaults = defaults_of(Outer)
    assert defaults["seed"] == 7 and defaults["steps"] == 3 and defaults["num_views"] == (1, 4)
    assert not {"folder", "train", "optimizer"} & defaults.keys()
