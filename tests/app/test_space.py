"""The page for hosted Spaces, if Gradio is installed: it draws and builds as its buttons do."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

SPACE = Path(__file__).resolve().parents[2] / "space"


def test_the_space_draws_and_builds(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="no Gradio; install it with: pip install gradio")
    import trimesh

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    names = runpy.run_path(str(SPACE / "app.py"), run_name="space")
    images = names["draw"]("a red mushroom", 4, 20, 0)
    assert [image.size for image in images] == [(128, 128)] * 4
    path = names["build"]([(image, None) for image in images], 4, 20)
    assert len(trimesh.load(path, force="mesh").faces) > 100
    with pytest.raises(names["gr"].Error):
        names["build"]([], 4, 20)
    assert isinstance(images[0], Image.Image)
