"""Which models a job is about, and what they are called."""

from pathlib import Path

import pytest

from spad.data.assets import find_assets
from spad.data.config import RenderConfig


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "animals").mkdir()
    for name in ("animals/brown_Bear-2.glb", "chair.obj", "notes.txt", "scene.fbx"):
        (tmp_path / name).touch()
    return tmp_path


def captions(folder: Path, **options) -> dict[str, tuple[str, ...]]:
    assets = find_assets(RenderConfig(folder, folder / "out", **options))
    return {asset.uid: asset.captions for asset in assets}


def test_file_names_are_ids_and_captions(folder):
    found = captions(folder)
    assert found == {"animals__brown_Bear-2": ("brown bear 2",), "chair": ("chair",)}


def test_each_renderer_has_its_own_kinds_of_files(folder):
    assert "scene" in captions(folder, renderer="blender")


def test_captions_of_a_table_go_before_those_of_the_index(folder):
    (folder / "index.jsonl").write_text(
        '{"file": "chair.obj", "uid": "c", "caption": "a chair", "short": "chair"}\n'
        '{"file": "animals/brown_Bear-2.glb", "uid": "b"}\n'
    )
    table = folder / "cap3d.csv"
    table.write_text('c,"a red, wooden chair"\nz,nobody\nc,a second line\n')
    found = captions(folder / "index.jsonl", captions=table)
    assert found == {"c": ("a red, wooden chair", "a chair", "chair"), "b": ("brown bear 2",)}
    table.write_text("c\n")
    with pytest.raises(ValueError, match="line 1: expected uid,caption"):
        captions(folder / "index.jsonl", captions=table)


def test_an_index_may_list_many_captions(folder):
    index = folder / "index.jsonl"
    index.write_text(
        '{"file": "chair.obj", "uid": "c", "short": "chair", "captions": ["a chair", "a seat"]}\n'
    )
    assert captions(index) == {"c": ("chair", "a chair", "a seat")}
    for wrong, message in (
        ('"a chair"', "captions to be a list, got 'a chair'"),
        ('["a chair", ""]', "captions of some words, got an empty one"),
        ("[1]", r"captions\[0\] to be text, got 1"),
    ):
        index.write_text(f'{{"file": "chair.obj", "captions": {wrong}}}\n')
        with pytest.raises(ValueError, match=f"index.jsonl, line 1: expected {message}"):
            captions(index)


def test_a_list_of_ids_chooses(folder):
    ids = folder / "ids.txt"
    ids.write_text("chair\n")
    assert list(captions(folder, ids=ids)) == ["chair"]
    ids.write_text("chair\n" + "".join(f"no{number}\n" for number in range(7)))
    with pytest.raises(ValueError, match="got none for 7: no0, no1, no2, no3, no4, …$"):
        captions(folder, ids=ids)
    ids.write_text("")
    with pytest.raises(ValueError, match="got none"):
        captions(folder, ids=ids)
    with pytest.raises(ValueError, match="No such file"):
        captions(folder, ids=folder / "none.txt")


@pytest.mark.parametrize("uid", ["../a", ".a", "a b", "rejected", "Objects.jsonl"])
def test_ids_can_name_folders(folder, uid):
    (folder / "index.jsonl").write_text(f'{{"file": "chair.obj", "uid": "{uid}"}}\n')
    with pytest.raises(ValueError, match="expected .*uid"):
        captions(folder / "index.jsonl")
