"""Settings of training by flat names, as on the command line."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from spad.training.config import TrainConfig


def changed(settings: TrainConfig, **changes: Any) -> TrainConfig:
    """Settings with other values, whichever groups these are in."""
    own = {field.name for field in fields(settings) if not is_dataclass(field.default)}
    given = {name: value for name, value in changes.items() if name in own}
    left = changes.keys() - own
    for field in fields(settings):
        group = getattr(settings, field.name)
        if is_dataclass(group):
            names = {one.name for one in fields(group)} & left
            given[field.name] = replace(group, **{name: changes[name] for name in names})
            left -= names
    assert not left, left
    return replace(settings, **given)
