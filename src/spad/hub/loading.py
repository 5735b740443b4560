"""Parts of models from folders: all their weights and no others, finite, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spad.files import first_line
from spad.model.finite import check_finite


def load_exactly(part_class: Any, folder: Path, **options: Any) -> Any:
    """A module of diffusers or transformers from a folder; nothing is fetched.

    Args:
        options: of its `from_pretrained`.

    Raises: ValueError: files that make no sense to the library, weights that are missing, left over
        or of other shapes, or not finite. The message goes on after the name of the part.
    """
    try:
        module, report = part_class.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **options
        )
    # Libraries answer damaged files with any error.
    except Exception as error:
        raise ValueError(f"cannot be loaded: {first_line(error)}") from error
    for kind in ("missing", "unexpected", "mismatched"):
        if wrong := sorted(map(str, report[f"{kind}_keys"])):
            raise ValueError(f"has other weights than its config.json, such as {wrong[0]}")
    try:
        check_finite(module, folder.name)
    except ValueError as error:
        raise ValueError(f"cannot be used: {error}") from error
    return module
