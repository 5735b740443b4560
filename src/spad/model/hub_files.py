"""Files with which a saved pipeline loads from the Hugging Face hub in diffusers alone.

`DiffusionPipeline.from_pretrained(NAME, trust_remote_code=True)` looks for classes that are not its
own in Python files of the repository, and the hub reads the YAML header of the model card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from spad.files import json_text, read_json, read_text, write_text, write_texts
from spad.model.folders import INDEX

CARD = "README.md"
# Modules that name the class of the pipeline, and of a component in its folder.
_PIPELINE, _COMPONENT = "pipeline", "spad_class"
_CODE = (
    '"""Lets diffusers find {0}, which is in the package spad."""\n\nfrom spad.model import {0}\n'
)
# Licenses that the hub knows, by the names that people write in lower case.
_LICENSES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause")
_FENCE = "---\n"
# In the card that diffusers makes.
_AUTOMATIC = "has been automatically generated"


def write_hub_files(folder: Path, name: str, description: str = "", license: str = "") -> None:
    """Add to a saved pipeline what it needs on the hub, and a header to its model card.

    Text and header of a model card that is there are kept; the header gets what it lacks.

    Args:
        name: name of the repository, or of the folder, for the card's example.

    Raises: ValueError: the folder is no saved pipeline.
    """
    index = read_json(folder / INDEX, dict[str, Any])
    code = {folder / f"{_PIPELINE}.py": "SPADPipeline"}
    index["_class_name"] = [_PIPELINE, "SPADPipeline"]
    for part, entry in index.items():
        if isinstance(entry, list) and entry[0] == "spad.model":
            index[part] = [_COMPONENT, entry[1]]
            code[folder / part / f"{_COMPONENT}.py"] = entry[1]
    write_texts({path: _CODE.format(name) for path, name in code.items()})
    write_text(folder / INDEX, json_text(index))
    path = folder / CARD
    written = read_text(path) if path.is_file() else ""
    data, text = ModelCardData(), written
    if written.startswith(_FENCE):
        data, text = ModelCard(written).data, written.removeprefix(_FENCE).partition(_FENCE)[2]
    for key, value in _header(license).items():
        if data.get(key) is None:
            data[key] = value
    if not text or _AUTOMATIC in text:
        text = f"# {name.rpartition('/')[2]}\n\n{description}\n"
    text += "" if "## Use\n" in text else _example(name)
    write_text(path, f"{_FENCE}{data.to_yaml()}\n{_FENCE}\n{text.strip()}\n")


def _header(license: str) -> dict[str, Any]:
    header: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-3d",
        "tags": ["spad", "multi-view", "text-to-image"],
    }
    if license.lower() in _LICENSES:
        header["license"] = license.lower()
    elif license:
        header |= {"license": "other", "license_name": license}
    return header


def _example(name: str) -> str:
    return f"""
## Use

Where spad is installed:

```python
from spad import SPADPipeline

pipeline = SPADPipeline.from_pretrained("{name}")
images = pipeline("a red mushroom").images[0]  # one image per camera
```

Or without naming the class: `DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)`.
"""
