"""The things that the embedded model learns: their list, and the script that gathers the models."""

import json
import runpy
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh

from spad.data.assets import find_assets
from spad.data.config import RenderConfig
from spad.data.recolor import kind_of, variants
from spad.data.renders import is_held_out
from spad.files import read_ids

MINI = Path(__file__).parents[1] / "benchmarks" / "mini"
THINGS = [json.loads(line) for line in (MINI / "things.jsonl").read_text("utf-8").splitlines()]
LEARNED = [thing for thing in THINGS if thing["split"] == "learned"]


def test_one_model_a_kind_with_six_captions_or_more_that_no_other_shares():
    for name in ("uid", "kind"):
        assert len({thing[name] for thing in THINGS}) == len(THINGS)
    assert all(len(set(thing["captions"])) >= 6 for thing in LEARNED)
    captions = [caption for thing in THINGS for caption in set(thing["captions"])]
    assert len(set(captions)) == len(captions)


def test_captions_of_variants_are_no_other_things_either():
    owner = {caption: thing["uid"] for thing in LEARNED for caption in thing["captions"]}
    for thing in LEARNED:
        for variant in variants(thing["uid"], thing["captions"], 20):
            assert kind_of(variant.captions) == kind_of(thing["captions"])
            for caption in variant.captions:
                assert owner.setdefault(caption, thing["uid"]) == thing["uid"], caption


def test_models_may_be_used_for_anything_and_what_is_learned_is_not_held_out():
    assert {thing["license"] for thing in THINGS} == {"CC0-1.0"}
    assert all(thing["author"] for thing in THINGS)
    assert not any(is_held_out(thing["uid"]) for thing in LEARNED)


@pytest.mark.parametrize(("name", "count"), [("twelve", 12), ("seventy", 70), ("eighty", 80)])
def test_runs_on_fewer_kinds_name_things_that_are_learned(name, count):
    chosen = read_ids(MINI / f"{name}.txt")
    assert len(chosen) == count and {*chosen} <= {thing["uid"] for thing in LEARNED}


@pytest.fixture
def gathered(tmp_path) -> Path:
    """What the script makes of boxes 1 wide, 2 high and 3 deep under the names of the list."""
    box = trimesh.creation.box((1, 2, 3))
    assets, catalog = tmp_path / "assets", tmp_path / "catalog.sh3f"
    with zipfile.ZipFile(catalog, "w") as furniture:
        for thing in THINGS:
            if thing["source"] == "furniture":
                furniture.writestr(thing["file"], box.export(file_type="obj"))
                lines = "newmtl m\nKd 1 0 0\r\nmap_Kd there.png\n\tmap_Kd not there.png \nNs 1\n"
                furniture.writestr(str(Path(thing["file"]).with_suffix(".mtl")), lines)
                furniture.writestr(str(Path(thing["file"]).with_name("there.png")), b"an image")
            else:
                path = assets / thing["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(box.export(file_type="glb"))
    main = runpy.run_path(str(MINI / "make_things.py"))["main"]
    main(str(assets), str(catalog), str(tmp_path / "things"))
    return tmp_path / "things"


def test_the_script_gathers_models_for_spad_render(gathered):
    for name, split in (("models.jsonl", "learned"), ("held-out.jsonl", "held-out")):
        found = find_assets(RenderConfig(gathered / name, gathered / "renders"))
        expected = [thing for thing in THINGS if thing["split"] == split]
        assert [asset.uid for asset in found] == [thing["uid"] for thing in expected]
        assert [list(a.captions) for a in found] == [t["captions"] for t in expected]
        assert all(asset.path.is_file() for asset in found)


def test_what_is_up_in_the_catalog_is_up_in_its_models(gathered):
    paths = list(gathered.rglob("*.obj"))
    mesh = trimesh.load_mesh(paths[0])
    np.testing.assert_allclose(mesh.extents, (1, 3, 2), atol=1e-6)
    assert mesh.volume == pytest.approx(6)
    assert all(path.with_suffix(".mtl").is_file() for path in paths)


def test_images_that_the_catalog_lacks_are_left_out_and_named(gathered, capsys):
    path = next(gathered.rglob("*.mtl"))
    assert path.read_bytes() == b"newmtl m\nKd 1 0 0\r\nmap_Kd there.png\nNs 1\n"
    assert path.with_name("there.png").read_bytes() == b"an image"
    with_images = runpy.run_path(str(MINI / "make_things.py"))["with_images"]
    assert with_images(b"map_Kd gone.png", set(), "pens/pen.obj") == b""
    kept = b"map_d -imfchan r there.png\n"
    assert with_images(kept + b"map_Ke gone.png\n", {"there.png"}, "pens/pen.obj") == kept
    assert capsys.readouterr().out.startswith("pens/pen.obj: the catalog has no gone.png")
