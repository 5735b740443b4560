"""`spad evaluate` as people use it: folders, a model, resuming, comparing, and the page."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from judged_sets import white_set
from spad.cameras import Cameras, save_transforms
from spad.cli import main
from spad.data.renders import is_held_out, read_renders
from spad.evaluation import evaluate as command
from spad.evaluation import scoring
from spad.evaluation.config import EvaluateConfig
from spad.evaluation.metrics import METRICS, Metric
from spad.evaluation.protocol import load_protocol
from spad.evaluation.report import (
    Column,
    EvaluationReport,
    ScoredObject,
    read_report,
    write_report,
)
from spad.evaluation.sampling import ModelSampler, is_failed, plan_evaluation
from spad.files import exclusive
from spad.hub.registry import model_info
from spad.installation import install_command
from spad.model import SPADPipeline

SAVED = {
    "name": "object",
    "part": "views",
    "prompt": None,
    "scores": {"a": None},
    "seconds": {},
    "image": "images/a.webp",
}
FILES = ("report.json", "report.md", "report.html", "run.json", "scores.jsonl")


def darkness(view_set) -> float:
    """Stands for the metrics here: they have tests of their own, and cost seconds a set."""
    return float(1 - view_set.images.mean())


@pytest.fixture(autouse=True)
def cheap_metrics(monkeypatch):
    cheap = (
        Metric("darkness", darkness, False, 0.0, "how dark it is"),
        Metric("nothing", lambda view_set: float("nan"), True, 1.0, "never defined"),
    )
    own = tuple(Column(m.name, m.higher_is_better, m.best, m.summary) for m in cheap)
    kept = command.COLUMNS[len(METRICS) :]
    monkeypatch.setattr(scoring, "METRICS", cheap)
    monkeypatch.setattr(command, "COLUMNS", (*own, *kept))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Renders of colored bars, laid out as `spad render` does, three of them held out."""
    folder = tmp_path_factory.mktemp("data")
    names = (f"bar{i}" for i in range(10**4))
    held_out, seen = [], []
    while len(held_out) < 3 or len(seen) < 3:
        name = next(names)
        (held_out if is_held_out(name) else seen).append(name)
    rows = []
    for index, uid in enumerate((*held_out[:3], *seen[:3])):
        (folder / uid / "images").mkdir(parents=True)
        paths = [f"images/{view:03d}.png" for view in range(5)]
        for view, path in enumerate(paths):
            pixels = np.zeros((64, 64, 4), np.uint8)
            pixels[10:54, 20 + view : 30 + 2 * index] = (40 * index, 200 - 30 * index, 90, 255)
            Image.fromarray(pixels).save(folder / uid / path)
        cameras = Cameras.ring(5, height=64, width=64)
        save_transforms(folder / uid / "transforms.json", cameras, paths)
        rows.append(json.dumps({"uid": uid, "captions": [f"a bar of kind {index}"], "folder": uid}))
    (folder / "objects.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def run(*arguments) -> int:
    return main(["evaluate", *map(str, arguments)])


def texts(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text(encoding="utf-8") for name in FILES}


def test_a_folder_of_renders_gets_a_report(renders, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(renders, "--output", output) == 0
    printed = capsys.readouterr().out
    report = read_report(output)
    assert [o.name for o in report.objects] == [f"object{i}" for i in range(6)]
    assert all((output / o.image).is_file() for o in report.objects)
    data = json.loads((output / "report.json").read_text())
    assert data["means"]["darkness"]["count"] == 6
    assert data["means"]["nothing"] == {"mean": None, "low": None, "high": None, "count": 0,
                                        "undefined": 6}  # fmt: skip
    low, mean, high = (data["means"]["darkness"][k] for k in ("low", "mean", "high"))
    assert low < mean < high
    assert "darkness ↓" in printed and printed in (output / "report.md").read_text() + printed
    # Discs are none of the captions.
    assert "6 of 6 sets have no prompt" in report.notes[0]


def test_halves_are_compared_on_request(renders, tmp_path, monkeypatch, capsys):
    split = Metric("split_psnr", darkness, True, math.inf, "stands for the comparison of halves")
    monkeypatch.setattr(command, "SPLIT_METRICS", (split,))
    output = tmp_path / "out"
    assert run(renders, "--limit", 1, "--output", output) == 0
    assert "split_psnr" not in read_report(output).objects[0].scores
    assert run(renders, "--limit", 1, "--split-consistency", "--output", output) != 0
    assert "split_consistency; use --overwrite" in capsys.readouterr().err
    again = ("--limit", 1, "--split-consistency", "--overwrite", "--output", output)
    assert run(renders, *again) == 0
    assert "split_psnr ↑" in capsys.readouterr().out
    monkeypatch.setattr("spad.evaluation.split_consistency.find_spec", lambda name: None)
    assert run(renders, *again) != 0
    assert install_command("mesh") in capsys.readouterr().err
    colmap = ("--limit", 1, "--colmap", "--overwrite", "--output", output)
    monkeypatch.setattr("spad.evaluation.registration.find_spec", lambda name: None)
    assert run(renders, *colmap) != 0
    assert install_command("colmap") in capsys.readouterr().err
    assert run("--compare", output, output, "--split-consistency") != 0
    assert "with sets of views or --model" in capsys.readouterr().err


def test_the_report_is_the_same_however_often_it_is_made(renders, tmp_path):
    output = tmp_path / "out"
    for _ in range(2):
        assert run(renders, "--output", output) == 0
    first = texts(output)
    assert first["scores.jsonl"].count("\n") == 6
    assert run(renders, "--output", output) == 0
    assert texts(output) == first


def test_only_what_has_changed_is_scored_again(renders, tmp_path):
    sets, output = tmp_path / "sets", tmp_path / "out"
    shutil.copytree(renders, sets)
    assert run(sets, "--output", output) == 0
    changed = sets / "object3/images/001.png"
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(changed)
    before = read_report(output)
    assert run(sets, "--output", output) == 0
    assert len((output / "scores.jsonl").read_text().splitlines()) == 7
    after = read_report(output)
    differs = [a.name for a, b in zip(before.objects, after.objects, strict=True) if a != b]
    assert differs == ["object3"]


def test_a_journal_that_was_cut_short_is_gone_on_with(renders, tmp_path):
    output = tmp_path / "out"
    assert run(renders, "--output", output) == 0
    journal = output / "scores.jsonl"
    journal.write_text(journal.read_text()[:-40])
    assert run(renders, "--output", output) == 0
    assert len(read_report(output).objects) == 6


def test_no_object_is_the_worst_where_all_are_equal():
    columns = (Column("a", True, None, "differs"), Column("b", False, None, "does not"))
    objects = [ScoredObject(f"{n}", "views", None, {"a": n, "b": 0.0}, {}, "") for n in range(3)]
    report = EvaluationReport("it", {}, "", columns, tuple(objects))
    assert [one.name for one, _ in report.worst(columns[0], 2)] == ["0", "1"]
    assert report.worst(columns[1]) == []
    assert "| b ↓ |" not in report.markdown().split("## Worst")[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "spad evaluation 2"}, "expected format to be 'spad evaluation 1'"),
        ({"objects": [{"name": "a"}]}, "object 0, scores: expected an object, got None"),
        ({"objects": [SAVED | {"scores": {"a": "x"}}]}, "expected ['a'] to be a finite number"),
        ({"objects": [SAVED | {"image": "../b.webp"}]}, "expected a file inside"),
        ({"totals": []}, "expected totals to be an object"),
        ({"objects": [SAVED, SAVED]}, "expected every object once, got"),
    ],
)
def test_a_malformed_report_is_named(tmp_path, changes, message):
    report = EvaluationReport("a", {}, "", (), (), {"fid": math.nan})
    write_report(tmp_path, report.to_json() | {"objects": [SAVED]}, "", "")
    assert math.isnan(read_report(tmp_path).objects[0].scores["a"])
    (tmp_path / "report.json").write_text(json.dumps(report.to_json() | changes))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'report.json'}")) as error:
        read_report(tmp_path)
    assert message in str(error.value)


def test_a_damaged_journal_is_named_and_a_folder_in_use_is_left_alone(renders, tmp_path, capsys):
    output = tmp_path / "out"
    with exclusive(output):
        (output / "run.json").write_text("{}")
        assert run(renders, "--output", output, "--overwrite") == 2
    assert "another command is" in capsys.readouterr().err
    assert run(renders, "--output", output, "--overwrite", "--limit", 1) == 0
    with open(output / "scores.jsonl", "a") as journal:
        journal.write("{}\n")
    assert run(renders, "--output", output, "--limit", 1) == 2
    assert "scores.jsonl, line 2, scores: expected an object" in capsys.readouterr().err


def test_a_model_is_evaluated_and_resumed(tiny_pipeline_folder, data, tmp_path, monkeypatch):
    arguments = ("--model", tiny_pipeline_folder, "--data", data, "--limit", "2")
    output = tmp_path / "out"

    def refuse(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score_novel_views", refuse)
        assert run(*arguments, "--output", output) == 130
    assert not (output / "report.json").exists()
    drawn = {p: p.stat().st_mtime_ns for p in output.glob("*/*/images/*.png")}
    assert len(drawn) == 2 * 12 + 4
    assert run(*arguments, "--output", output) == 0
    assert {p: p.stat().st_mtime_ns for p in drawn} == drawn
    report = read_report(output)
    assert [o.part for o in report.objects] == ["text", "text", "novel", "novel"]
    assert all(is_held_out(o.name) for o in report.objects if o.part == "novel")
    assert report.objects[0].scores["retrieval_rank"] in range(1, 7)
    generated = {c.name for c in command.GENERATED_COLUMNS}
    assert set(report.objects[2].scores) == {c.name for c in command.NOVEL_COLUMNS} | generated
    assert "its own held-out objects" in report.notes[0]
    assert report.about["model_sha256"] and report.about["data_sha256"]


def test_own_prompts_with_several_seeds(tiny_pipeline_folder, tmp_path, capsys, monkeypatch):
    two_views = replace(load_protocol(), azimuth_deg=(0.0, 90.0))
    monkeypatch.setattr("spad.evaluation.sampling.load_protocol", lambda: two_views)
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a blue fish\n\na grey rock\n")
    words = ("--model", tiny_pipeline_folder, "--parts", "text", "--steps", 1, "--seeds", 2)
    assert run(*words, "--prompts", prompts, "--output", output) == 0
    report = read_report(output)
    names = ["000-a-blue-fish", "000-a-blue-fish-seed1", "001-a-grey-rock", "001-a-grey-rock-seed1"]
    assert [one.name for one in report.objects] == names
    assert [one.group for one in report.objects] == [names[0]] * 2 + [names[2]] * 2
    images = [(output / f"sets/{name}/images/000.png").read_bytes() for name in names]
    assert len(set(images)) == 4
    assert re.fullmatch(r"spad 1, prompts \w{12}, 2 seeds", report.protocol)
    for one in report.objects:
        assert one.scores["failed"] in (0, 1) and one.scores["sampling_memory_gb"] > 0.01
        assert one.scores["sampling_seconds"] > 0
    assert list(report.by_seed()["darkness"]) == pytest.approx(
        [np.mean([report.objects[i].scores["darkness"] for i in own]) for own in ((0, 2), (1, 3))]
    )
    text = (output / "report.md").read_text()
    assert "| mean of | seed 0 | seed 1 |" in text
    assert "| SPAD (SD 1.5) | 11.18 | 29.87 |" in text and "| tiny, other" in text
    assert "CLIP ↑ needs --clip FOLDER" in text
    page = (output / "report.html").read_text()
    assert "28.55" in page and "tiny, other prompts or objects" in page
    prompts.write_text("a blue fish\na blue fish\n")
    assert run(*words, "--prompts", prompts, "--output", tmp_path / "again") == 2
    assert "expected every prompt once" in capsys.readouterr().err


def test_sets_that_show_nothing_have_failed():
    cameras = Cameras.ring(2, height=32, width=32)
    good = white_set(cameras)
    good.alpha[:, 8:24, 8:24] = 1
    assert not is_failed(good)
    for value in (0.0, 1.0):
        bad = replace(good, alpha=good.alpha.clone())
        bad.alpha[1] = value
        assert is_failed(bad)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ray is for other systems")
def test_a_cluster_generates_what_this_process_does(tiny_pipeline_folder, data, tmp_path):
    settings = EvaluateConfig(model=str(tiny_pipeline_folder), steps=1, executor="ray")
    protocol, views = replace(load_protocol(), azimuth_deg=(0.0, 90.0)), read_renders(data)[0]
    model = model_info(tiny_pipeline_folder)
    here, ray = (ModelSampler(model, settings, tmp_path / name) for name in ("here", "ray"))
    here.sample_text(0, "a blue fish", protocol)
    here.sample_novel(0, views, protocol)
    requests = [
        ray.text_request(0, "a blue fish", protocol),
        ray.novel_request(0, views, protocol),
    ]
    ray.generate_on_cluster(requests)
    images = [sorted((tmp_path / n).glob("*/*/images/*.png")) for n in ("here", "ray")]
    assert [p.read_bytes() for p in images[0]] == [p.read_bytes() for p in images[1]] != []


def test_novel_views_have_the_guidance_of_input_images(
    tiny_pipeline_folder, data, tmp_path, monkeypatch
):
    model = model_info(tiny_pipeline_folder)
    model = replace(
        model, defaults=replace(model.defaults, guidance_scale=3.0, guidance_scale_with_image=1.5)
    )
    protocol, views, seen = load_protocol(), read_renders(data)[0], []
    guide = SPADPipeline.guide

    def watched(predicted, guidance_scale, rescale=0.0):
        seen.append(guidance_scale)
        return guide(predicted, guidance_scale, rescale)

    monkeypatch.setattr(SPADPipeline, "guide", staticmethod(watched))
    for number, asked in enumerate(({}, {"guidance_scale": 2.0})):
        settings = EvaluateConfig(model=str(tiny_pipeline_folder), steps=1, device="cpu", **asked)
        sampler = ModelSampler(model, settings, tmp_path / str(number))
        sampler.sample_text(0, "a blue fish", protocol)
        sampler.sample_novel(0, views, protocol)
    assert seen == [3.0, 1.5, 2.0, 2.0]


def test_the_fixed_protocol_is_asked_where_the_data_has_it(data):
    protocol = load_protocol()
    known = read_renders(data)
    there = [replace(known[0], uid=protocol.novel[i]) for i in (0, 3, 60)]
    questions = plan_evaluation(EvaluateConfig(model="mini", quick=True), [*known, *there])
    assert questions.label == f"spad {protocol.version}"
    assert len(questions.protocol.captions) == protocol.quick
    assert set(questions.truth) == {protocol.novel[0], protocol.novel[3]}
    assert any(f"{protocol.quick - 2} of {protocol.quick} objects" in n for n in questions.notes)
    text_only = plan_evaluation(EvaluateConfig(model="mini", parts=("text",)), None)
    assert text_only.protocol.captions == protocol.captions and not text_only.protocol.novel
    assert not text_only.notes


def test_data_without_held_out_objects_is_refused(data):
    seen = [views for views in read_renders(data) if not is_held_out(views.uid)]
    with pytest.raises(ValueError, match="expected data with held-out objects"):
        plan_evaluation(EvaluateConfig(model="mini"), seen)


def test_a_seed_means_the_same_in_every_run(tiny_pipeline_folder, tmp_path):
    for name in ("a", "b"):
        arguments = ("--model", tiny_pipeline_folder, "--limit", "1", "--quick")
        assert run(*arguments, "--output", tmp_path / name) == 0
    one, other = (sorted((tmp_path / n).glob("sets/*/images/*.png")) for n in "ab")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]
    report = read_report(tmp_path / "a")
    assert report.protocol == "spad 1" and len(one) == 12
    assert any("Novel views from one image are skipped" in note for note in report.notes)


def test_ctrl_c_says_how_to_go_on(renders, tmp_path):
    output = tmp_path / "out"
    code = (
        "import sys, time, spad.evaluation.scoring as s\n"
        "from spad.evaluation.metrics import Metric\n"
        "s.METRICS = (Metric('slow', lambda _: time.sleep(60) or 0.0, True, 1.0, ''),)\n"
        "from spad.cli import main\n"
        f"sys.exit(main(['evaluate', {str(renders)!r}, '--output', {str(output)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not (output / "run.json").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "resume with the same command: spad evaluate" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a folder of sets, --model NAME or --compare"),
        (("nowhere", "--model", "mini"), "got 2 of them"),
        (("nowhere",), "no such folder"),
        (("--compare", "a"), "expected two or more reports"),
        (("--compare", "a", "b"), "expected a report of spad evaluate, got a"),
        (("nowhere", "--quick"), "expected --model with --quick"),
        (("nowhere", "--seeds", "3"), "expected --model with --seeds"),
        (("--model", "mini", "--data", "a", "--gso", "b"), "expected --data or --gso"),
        (("--model", "nothing"), "expected a model among"),
        (("--model", "mini", "--steps", "-3"), "expected --steps of at least 1, got -3"),
        (("--model", "mini", "--limit", "0"), "expected --limit of at least 1, got 0"),
        (("--model", "mini", "--data", "nowhere"), "expected nowhere/objects.jsonl"),
    ],
)
def test_what_is_asked_wrongly_is_said(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = run(*arguments)
    # So the parser answers settings that contradict each other.
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_damaged_set_stops_with_its_name_and_keeps_the_rest(renders, tmp_path, capsys):
    sets, output = tmp_path / "sets", tmp_path / "out"
    shutil.copytree(renders, sets)
    (sets / "object4/images/002.png").write_bytes(b"no picture")
    assert run(sets, "--output", output) == 2
    assert "object4/images/002.png" in capsys.readouterr().err
    assert len((output / "scores.jsonl").read_text().splitlines()) == 4
    assert not (output / "report.json").exists()


def test_a_missing_matcher_is_named_before_anything_is_generated(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert run("--model", "mini", "--output", tmp_path / "out") == 1
    assert install_command("eval") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_output_may_not_lie_among_the_sets_nor_in_other_results(renders, tmp_path, capsys):
    assert run(renders, "--output", renders / "report") == 2
    assert "outside of" in capsys.readouterr().err and not (renders / "report").exists()
    (tmp_path / "run.json").write_text('{"prompts": ["a blue fish"]}')
    assert run(renders, "--output", tmp_path) == 2
    assert "of another command" in capsys.readouterr().err


def test_cameras_that_no_metric_can_use_are_named(renders, tmp_path, monkeypatch, capsys):
    def refuse(view_set):
        raise ValueError("expected cameras that look at one object")

    monkeypatch.setattr(scoring, "METRICS", (Metric("picky", refuse, True, 1.0, ""),))
    assert run(renders, "--output", tmp_path / "out") == 2
    assert "object0: expected cameras that look at one object" in capsys.readouterr().err


def test_another_request_does_not_mix_with_an_earlier_one(renders, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(renders, "--output", output, "--limit", 2) == 0
    assert run(renders, "--output", output) == 2
    assert "with another limit" in capsys.readouterr().err
    assert run(renders, "--output", output, "--overwrite") == 0
    assert len(read_report(output).objects) == 6
    (output / "mine.txt").write_text("keep me")
    assert run(renders, "--output", output, "--overwrite", "--limit", 1) == 2
    assert "also has mine.txt" in capsys.readouterr().err and (output / "mine.txt").exists()


def reports(renders: Path, folder: Path) -> tuple[Path, Path]:
    """Of sets, and of the same sets darker, without the last object."""
    darker = folder / "darker"
    shutil.copytree(renders, darker)
    for path in darker.glob("*/images/*.png"):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[..., :3] //= 2
        Image.fromarray(pixels).save(path)
    listing = darker / "objects.jsonl"
    listing.write_text("".join(listing.read_text().splitlines(keepends=True)[:-1]))
    for name, sets in (("a", renders), ("b", darker)):
        assert run(sets, "--output", folder / name) == 0
    return folder / "a", folder / "b"


def test_two_reports_are_compared_object_by_object(renders, tmp_path, capsys):
    a, b = reports(renders, tmp_path)
    capsys.readouterr()
    assert run("--compare", a, b, "--output", tmp_path / "c") == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "c/report.json").read_text())
    difference = result["compared"][0]["differences"]["darkness"]
    one, other = ([o.scores["darkness"] for o in read_report(x).objects[:5]] for x in (a, b))
    assert difference["mean"] == pytest.approx(np.mean(other) - np.mean(one))
    assert (difference["count"], difference["verdict"], difference["better"]) == (5, "worse", 0)
    assert 0 < difference["low"] < difference["mean"] < difference["high"]
    assert "nothing" not in result["compared"][0]["differences"]
    assert any("1 objects are in" in note for note in result["notes"])
    assert "| darkness ↓ |" in printed and "worse" in printed
    assert run("--compare", a, b, "--output", tmp_path / "c") == 2
    assert run("--compare", a, b, a, "--output", tmp_path / "c", "--overwrite") == 0
    assert len(json.loads((tmp_path / "c/report.json").read_text())["compared"]) == 2
    (line,) = re.findall(r"\| darkness ↓ \| 5 \|.*", (tmp_path / "c/report.md").read_text())
    assert line.count("▼") == 1 and line.count("▲") == 0 and line.count(" to ") == 3


def test_a_report_does_not_differ_from_itself(renders, tmp_path):
    assert run(renders, "--output", tmp_path / "a") == 0
    assert run("--compare", tmp_path / "a", tmp_path / "a", "--output", tmp_path / "c") == 0
    result = json.loads((tmp_path / "c/report.json").read_text())
    assert result["compared"][0]["differences"]["darkness"]["verdict"] == "not told apart"


def test_different_protocols_are_not_compared(renders, tmp_path, capsys):
    assert run(renders, "--output", tmp_path / "a") == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    report = json.loads((tmp_path / "b/report.json").read_text())
    (tmp_path / "b/report.json").write_text(json.dumps(report | {"protocol": "another"}))
    capsys.readouterr()
    assert run("--compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c") == 2
    assert "expected reports of one protocol" in capsys.readouterr().err


def test_names_cannot_break_out_of_the_reports(renders, tmp_path):
    sets = tmp_path / "sets"
    shutil.copytree(renders, sets)
    evil = '</td><script>alert(1)</script> | "x'
    listing = [json.loads(line) for line in (sets / "objects.jsonl").read_text().splitlines()]
    for row in listing:
        row["captions"] = [evil]
    (sets / "objects.jsonl").write_text("\n".join(map(json.dumps, listing)))
    assert run(sets, "--output", tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    rows = [r for r in (tmp_path / "out/report.md").read_text().splitlines() if "alert" in r]
    assert rows and all(r.replace("\\|", "").count("|") == 3 for r in rows)


def check_page(browser, path: Path, width: int) -> None:
    problems = []
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: problems.append(request.url)
            if not request.url.startswith(("data:", path.as_uri())) else None)  # fmt: skip
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    loaded = "[...document.images].map(i => { i.loading = 'eager'; return i.decode(); })"
    page.evaluate(f"Promise.all({loaded})")
    assert page.evaluate("document.images.length >= 2")
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    assert page.locator("svg rect").count() > 0
    assert "darkness" in page.locator("table").first.inner_text()
    page.close()
    assert not problems


@pytest.mark.parametrize("width", [1280, 390])
def test_the_pages_open_alone_in_a_browser(browser, renders, tmp_path, width):
    a, b = reports(renders, tmp_path)
    assert run("--compare", a, b, "--output", tmp_path / "c") == 0
    for folder in (a, tmp_path / "c"):
        # Away from its pictures: all it shows is inside.
        path = tmp_path / f"alone-{folder.name}.html"
        shutil.copy(folder / "report.html", path)
        check_page(browser, path, width)


def test_the_page_names_the_worst_objects(renders, tmp_path):
    assert run(renders, "--output", tmp_path / "out") == 0
    report = read_report(tmp_path / "out")
    values = {o.prompt: o.scores["darkness"] for o in report.objects}
    expected = sorted(values, key=values.get, reverse=True)[:3]
    section = (tmp_path / "out/report.html").read_text().split("<h3>darkness")[1]
    assert re.findall(r"<figcaption>(disc \d)", section)[:3] == expected


def test_settings_are_checked_without_torch():
    code = (
        "import sys\nfrom spad.evaluation.config import EvaluateConfig\n"
        "EvaluateConfig(model='mini')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(ValueError, match="expected parts of 1 or more values"):
        EvaluateConfig(model="mini", parts=())
