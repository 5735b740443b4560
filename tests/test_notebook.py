"""The notebook runs as it stands, offline, and shows what it is meant to show."""

import ast
import json
from pathlib import Path

from spad import SPADPipeline

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs/first-steps.ipynb"


def shown(source: str, names: dict) -> object:
    """The value of the last expression of a cell, after all of it has run."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, NOTEBOOK.name, "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)


def test_the_notebook_runs_and_shows_images_and_cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sample = SPADPipeline.__call__

    def briefly(self, *arguments, **options):
        return sample(self, *arguments, **options, num_inference_steps=1)

    monkeypatch.setattr(SPADPipeline, "__call__", briefly)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    values = [shown("".join(c["source"]), names) for c in cells if c["cell_type"] == "code"]
    pages = [value._repr_html_() if hasattr(value, "_repr_html_") else value for value in values]
    assert all(pages)
    assert "4 cameras, images of the model's size" in pages[0] and "<td>300.0</td>" in pages[0]
    assert pages[1].count('<img src="data:image/png;base64,') == 1
    assert pages[2].count("<img ") == 2
    assert (tmp_path / "transforms.json").is_file()


def test_the_notebook_is_saved_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_other_outputs_are_shown_as_text(tiny_pipeline_folder):
    pipeline = SPADPipeline.from_pretrained(tiny_pipeline_folder)
    output = pipeline("a fish", num_inference_steps=1, output_type="pt")
    assert output._repr_html_() is None
