"""Several prompts: what is generated is kept, and the same command goes on."""

import json
import sys

import pytest

from spad.evaluation.best_of import choose_best
from spad.files import RECORD, exclusive, read_json
from spad.generation import sampling
from spad.generation.config import GenerateConfig
from spad.generation.generate import draw
from spad.generation.many_prompts import REQUEST, begun_folder
from spad.generation.plan import plan_generation

PROMPTS = ("a blue fish", "a grey rock", "a red ball")


def run(model, tmp_path, **changes):
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, PROMPTS[0]]))
    settings = {"prompts": tmp_path / "prompts.txt", "output": tmp_path / "out"}
    settings |= {"model": str(model), "views": 2, "steps": 1, "image_size": 16}
    return draw(plan_generation(GenerateConfig(**settings | changes)), choose=choose_best)


def contents(folder, *names):
    files = sorted(file for file in folder.rglob("*.png") if file.parent.name != "out")
    return {file.relative_to(folder): file.read_bytes() for file in files}


@pytest.fixture
def stop_after(monkeypatch):
    """Stops at the prompt after so many, and counts how many are generated."""
    asked = []
    load = sampling.load_model

    def stop_after(count):
        def loaded(*args):
            pipeline = load(*args)

            class Stopping(type(pipeline)):
                def __call__(self, *args, **options):
                    if len(asked) == count:
                        raise KeyboardInterrupt
                    asked.append(options)
                    return super().__call__(*args, **options)

            pipeline.__class__ = Stopping
            return pipeline

        monkeypatch.setattr(sampling, "load_model", loaded)
        return asked

    return stop_after


def test_a_stop_keeps_what_is_generated_and_the_same_command_goes_on(
    tiny_pipeline_folder, tmp_path, stop_after, caplog
):
    caplog.set_level("INFO")
    asked = stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_pipeline_folder, tmp_path)
    assert "1 prompts occur again and are generated once" in caplog.text
    kept = contents(tmp_path / "out")
    assert len(kept) == 2 * 3 and not (tmp_path / "out" / RECORD).exists()
    with pytest.raises(ValueError, match="was begun, got another seed; use the same, --overwrite"):
        run(tiny_pipeline_folder, tmp_path, seed=1)
    asked.clear()
    stop_after(9)
    run(tiny_pipeline_folder, tmp_path)
    assert len(asked) == 1 and "going on: 1 of 3 prompts are left" in caplog.text
    whole = contents(tmp_path / "out")
    assert kept.items() <= whole.items()
    asked.clear()
    other = run(tiny_pipeline_folder, tmp_path, output=tmp_path / "whole" / "out")
    assert len(asked) == 3 and contents(other) == whole
    assert (other / "grid.png").read_bytes() == (tmp_path / "out" / "grid.png").read_bytes()
    # Finished, it is a folder as any other.
    with pytest.raises(ValueError, match="exists; use --overwrite"):
        run(tiny_pipeline_folder, tmp_path)
    run(tiny_pipeline_folder, tmp_path, seed=1, overwrite=True)
    assert contents(tmp_path / "out").keys() == whole.keys()
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["000-a-blue-fish", "001-a-grey-rock", "002-a-red-ball", "grid.png", RECORD]


def test_a_folder_begun_by_an_earlier_version_goes_on(tiny_pipeline_folder, tmp_path, stop_after):
    asked = stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_pipeline_folder, tmp_path)
    file = tmp_path / "out" / REQUEST
    request = read_json(file, dict)
    # What no version had before it was added.
    for name in ("vae_tiling", "best_of", "attention"):
        del request[name]
    file.write_text(json.dumps(request))
    with pytest.raises(ValueError, match="was begun, got another vae_tiling"):
        run(tiny_pipeline_folder, tmp_path, vae_tiling=True)
    asked.clear()
    stop_after(9)
    run(tiny_pipeline_folder, tmp_path)
    assert len(asked) == 1


def test_folders_are_begun_and_replaced_with_care(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), begun_folder(folder, {"seed": 0}, False):
        (folder / "000").mkdir()
        raise KeyboardInterrupt
    with begun_folder(folder, {"seed": 0}, False):
        assert (folder / "000").is_dir()
        with (
            pytest.raises(ValueError, match="another command is"),
            begun_folder(folder, {"seed": 0}, False),
        ):
            pass
        (folder / RECORD).write_text("{}")
    assert not (folder / REQUEST).exists()
    with begun_folder(folder, {"seed": 0}, True):
        assert not (folder / "000").exists() and not (folder / RECORD).exists()
    (folder / "notes.txt").touch()
    with (
        pytest.raises(ValueError, match=r"holds no run\.json"),
        begun_folder(folder, {"seed": 0}, True),
    ):
        pass
    assert (folder / "notes.txt").exists()
    with exclusive(folder):
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ray is for other systems")
def test_a_cluster_generates_what_this_process_does_and_goes_on(tiny_pipeline_folder, tmp_path):
    changes = {"best_of": 2}
    here = run(tiny_pipeline_folder, tmp_path, output=tmp_path / "here", **changes)
    ray = run(tiny_pipeline_folder, tmp_path, output=tmp_path / "ray", executor="ray", **changes)
    assert contents(here) == contents(ray) != {}
    records = [read_json(folder / RECORD, dict) for folder in (here, ray)]
    for name in ("prompts", "seed", "best_of", "dtype"):
        assert records[0][name] == records[1][name]
    for folder in sorted(here.glob("0*")):
        record = read_json(folder / RECORD, dict)
        seeds = [candidate["seed"] for candidate in record["candidates"]]
        assert seeds == [0, 1] and record["seed"] in seeds and record["best_of"] == 1


def test_the_best_of_several_seeds_is_kept_and_can_be_generated_alone(
    tiny_pipeline_folder, tmp_path, caplog
):
    caplog.set_level("INFO")
    prompt = {"prompts": None, "prompt": PROMPTS[0]}
    best = run(tiny_pipeline_folder, tmp_path, best_of=3, seed=4, **prompt)
    record = read_json(best / RECORD, dict)
    said = [line for line in caplog.messages if "likeness" in line]
    assert len(said) == 3 and sum("(kept)" in line for line in said) == 1
    assert f"seed {record['seed']} (kept)" in "".join(said)
    alone = run(
        tiny_pipeline_folder, tmp_path, output=tmp_path / "alone", seed=record["seed"], **prompt
    )
    assert contents(best / "images") == contents(alone / "images") != {}
