"""Benchmarks at the smallest size: what they compare is the same work, and what fails is said."""

import importlib
import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

from spad.cameras import Cameras
from spad.cli import main
from spad.evaluation.evaluate import COLUMNS
from spad.evaluation.report import EvaluationReport, ScoredObject
from spad.model import MultiViewUNet
from train_settings import changed

ROOT = Path(__file__).parents[1]
MADE_RELEASE = Path(__file__).with_name("made_release")
CONFIG = "configs/spad_four_views.yaml"


@pytest.fixture
def bench_original(monkeypatch):
    """The benchmark, with all its processes in this one."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("bench_original")
    release = importlib.import_module("original_release")

    def in_release(kind: str, request: dict) -> dict:
        loaded = dict(sys.modules)
        for name in [name for name in loaded if name.partition(".")[0] == "spad"]:
            del sys.modules[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(sys, "argv", [])
            patch.setattr(os, "environ", dict(os.environ))
            patch.chdir(".")
            try:
                release.open_release(Path(request["clone"]))
                return getattr(release, kind)(request)
            finally:
                for name in ("spad", "ldm", "xformers"):
                    for one in [m for m in sys.modules if m.partition(".")[0] == name]:
                        del sys.modules[one]
                sys.modules.update(loaded)

    def measured(side: str, kind: str, request: dict) -> dict | str:
        try:
            return bench.OURS[kind](request) if side == "ours" else in_release(kind, request)
        except ImportError as error:
            return str(error)

    def watched(command: list[str], folder: Path) -> tuple[float, float]:
        if "whole" in command:
            in_release("whole", json.loads(Path(command[-1]).read_text()))
        else:
            assert main(command[3:]) == 0
        return 1.0, 1.0

    monkeypatch.setattr(bench, "measured", measured)
    monkeypatch.setattr(bench, "watched", watched)
    return bench


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


@pytest.mark.parametrize("is_masked", [False, True])
def test_what_stands_in_for_xformers_is_attention(monkeypatch, is_masked):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    release = importlib.import_module("original_release")
    query, key, value = torch.randn(3, 6, 5, 8, generator=torch.Generator().manual_seed(0))
    bias = torch.eye(5).expand(6, 5, 5) * -1e9 if is_masked else None
    logits = query @ key.mT / 8**0.5 + (0 if bias is None else bias)
    expected = logits.softmax(-1) @ value
    torch.testing.assert_close(release.attention(query, key, value, attn_bias=bias), expected)


@pytest.mark.parametrize(("half", "most"), [(False, 1e-5), (True, 0.05)])
def test_the_release_and_ours_do_the_same_step(bench_original, tmp_path, monkeypatch, half, most):
    monkeypatch.setattr(bench_original, "has_fast_bfloat16", lambda device: half)
    options = Namespace(
        clone=MADE_RELEASE, config=CONFIG, views=[2], rounds=1, repeats=1, model=None
    )
    report = bench_original.report(options, tmp_path)
    rows = {tuple(row[:2]): row[2:] for row in cells(report.split("\n\n")[0])[2:]}
    steps = [side for work, side in rows if work == "step, 2 views"]
    assert steps == [
        f"{side}, {dtype}"
        for dtype in ("float32", "bfloat16")[: 1 + half]
        for side in ("original", "ours")
    ]
    assert all(0 < float(rows["step, 2 views", side][3]) < most for side in steps[1:])
    # The made-up release's masks need what is not there.
    assert "a_package_that_nobody_has" in rows["masks, 2 views", "original, float32"][0]
    assert float(rows["masks, 2 views", "ours, float32"][0]) > 0
    assert "needs trained weights" in report


def test_both_ways_from_prompts_to_views_are_scored(
    bench_original, tiny_pipeline_folder, tmp_path, monkeypatch
):
    metrics = [m for m in bench_original.METRICS if m.name in ("silhouette_iou", "content_copying")]
    monkeypatch.setattr(bench_original, "METRICS", metrics)
    way = MADE_RELEASE, MADE_RELEASE / CONFIG, tiny_pipeline_folder, 1, "--steps 1", tmp_path
    rows = {row[0]: row[1:] for row in cells(bench_original.whole(*way)) if row}
    assert rows["original"][0] == rows["ours --steps 1"][0] == "1.0"
    # The release's discs look alike from everywhere.
    assert rows["content_copying ↓"][0] == "1.000"
    assert [*rows][-1] == "retrieval_rank ↓"


def test_growth_is_fitted_and_the_fastest_backend_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("bench_growth")

    def tiny(way: str, views: int, grid: int):
        unet = MultiViewUNet(
            sample_size=grid, block_out_channels=(32,), layers_per_block=1, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=768,
        )  # fmt: skip
        return unet, Cameras.ring(views, height=8 * grid, width=8 * grid), None

    monkeypatch.setattr(bench, "full_size", tiny)
    monkeypatch.setattr(bench, "measured", lambda kind, *size: bench.MEASURES[kind](*size))
    options = Namespace(
        output=tmp_path, views=[4, 8], grids=[8, 16], at_views=4, kinds=["attention", "step"],
        backends=["sdpa", "banded"], device="cpu", limit=60.0,
    )  # fmt: skip
    report = bench.grow(options)
    rows = json.loads((tmp_path / "growth.json").read_text())
    sizes = [(4, 8), (8, 8), (4, 16)]
    assert [(r["backend"], r["views"], r["grid"]) for r in rows] == [
        (backend, *size) for backend in [*options.backends, "auto"] for size in sizes
    ]
    assert "| attention | banded | tokens a view, 64 to 256 |" in report
    # Views of so few tokens are no work for bands.
    assert "| 8 | 8² | " in report and {r["chosen"] for r in rows} == {"", "sdpa"}
    assert (tmp_path / "growth.png").stat().st_size > 1000
    made = [bench.Row("step", v, 32, "banded", 3.0 * v**1.5, v**2, 0, "banded") for v in (4, 8, 64)]
    options.grids = [32]
    assert bench.exponents(made, options) == ["| step | banded | views, 4 to 64 | 1.50 | 2.00 |"]


def test_everything_that_a_gpu_is_asked_runs_small(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("bench_gpu")
    bench.main(["--tiny", "--output", str(tmp_path / "gpu.md")])
    report = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert report.count("\n## ") == len(bench.PARTS) == 4
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith("| ")]
    # Titles, and a number in every row under them: nothing failed.
    assert len(rows) == 4 + 6
    for part, cell in (("4²", 4), ("eager", 1), ("2 views", 2)):
        found = [row[cell] for row in rows if row[0].startswith(f"| {part}")]
        assert found and all(float(number) > 0 for number in found)
    with pytest.raises(SystemExit):
        monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
        bench.main([])


@pytest.mark.parametrize("sees_cameras", [True, False])
def test_a_model_without_cameras_does_as_well_with_those_of_others(
    training, monkeypatch, sees_cameras
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("bench_conditioning")
    settings = changed(training, views=(4,), view_sampling="random", word_dropout=0.0)
    if not sees_cameras:
        settings = changed(settings, rays="none", epipolar="none", camera_embedding=False)
    found = bench.measure(settings)
    for timestep in bench.TIMESTEPS:
        right, cameras = found[timestep, "right"], found[timestep, "another's cameras"]
        assert (right != cameras) == sees_cameras
        assert found[timestep, "another's caption"] != right
        assert found[timestep, "mean"] > 0
    with pytest.raises(ValueError, match="expected a model that predicts clean latents"):
        bench.measure(changed(settings, prediction_type="v_prediction"))


def test_the_report_of_a_start_reads_what_a_run_records(tiny_pipeline_folder, monkeypatch, capsys):
    """With each command in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("bench_start")

    def seconds(command: list[str]) -> float:
        assert command[-1] == "--help" or main(command[command.index("spad") + 1 :]) == 0
        return 1.0

    monkeypatch.setattr(bench, "seconds", seconds)
    monkeypatch.setattr(bench, "help_loads_torch", lambda: False)
    options = Namespace(model=str(tiny_pipeline_folder), device="cpu", runs=2, help_runs=1)
    report = bench.measure(options)
    assert cells(report.split("\n\n")[0])[3][1:] == ["1.00", "1.00, 1.00"]
    assert "drawn on cpu" in report and "steps of ddim, " in report


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("ablation")


def write_scores(folder: Path, scores: dict[str, list[float]], seed: int, color: int) -> None:
    """A report of things with scores, and two views of each."""
    objects = [
        ScoredObject(
            f"thing {i}, seed {seed}", "novel", None, dict(zip(scores, own, strict=True)),
            {}, f"{i}.png", group=f"thing {i}",
        )
        for i, own in enumerate(zip(*scores.values(), strict=True))
    ]  # fmt: skip
    columns = tuple(column for column in COLUMNS if column.name in scores)
    report = EvaluationReport(folder.name, {}, "made", columns, tuple(objects))
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report.to_json()))
    for one in objects:
        Image.new("RGB", (16, 8), (color, 0, 0)).save(folder / one.image)


def test_an_ablation_pairs_things_and_steps_over_seeds(ablation, tmp_path, monkeypatch):
    """Of runs that are there: exact masks are worth 1 dB, and nothing else anything."""
    copying = {"content_copying": [0.5, 0.6, 0.5], "camera_error_deg": [9.0, 9.0, 20.0]}
    write_scores(
        tmp_path / "renders",
        {"novel_psnr_masked": [60.0] * 3} | {name: [0.1] * 3 for name in copying},
        seed=0,
        color=200,
    )
    for number, (masks, rays) in enumerate(ablation.VARIANTS):
        for seed in (0, 1):
            gain = seed + (masks == "exact")
            run = tmp_path / ablation.name_of(masks, rays, seed)
            scores = {"novel_psnr_masked": [10.0 + gain, 14.0 + gain, 18.0 + gain]} | copying
            write_scores(tmp_path / f"{run.name}-report", scores, seed, 10 * number)
            losses = [f"{step},{0.5 - 0.01 * step - 0.1 * (masks == 'exact')}" for step in range(8)]
            run.mkdir()
            (run / "loss.csv").write_text("\n".join(["step,loss", *losses]) + "\n")
            (run / "model" / "unet").mkdir(parents=True)
            (run / "model" / "unet" / "config.json").write_text('{"sample_size": 16}')
    monkeypatch.setattr(ablation, "run", lambda *command: pytest.fail(f"{command} was made again"))
    monkeypatch.setattr(sys, "argv", ["ablation.py", "shards", str(tmp_path), "--seeds", "0", "1"])
    ablation.main()
    text = (tmp_path / "ablation.md").read_text()
    assert text.startswith("# Masks and rays at 16 x 16 tokens") and "3 things, 2 seed(s)" in text
    parts = {part.partition("\n")[0]: cells(part.partition("\n\n")[2].strip())
             for part in text.split("## ")[1:]}  # fmt: skip
    rays = parts["Rays against none, masks exact: paired differences"][2:]
    assert (
        rays[0][1:] == ["0.000 (0.000 to 0.000)"] * 3
        and rays[-1][1:] == ["+0.0000 (+0.0000 to +0.0000)"] * 3
    )
    masks = {row[0]: row[1:] for row in parts["Exact masks against none: paired differences"][2:]}
    assert masks["novel_psnr_masked ↑"] == ["**1.000 (1.000 to 1.000)**"] * 4
    assert masks["camera_error_deg ↓"] == ["0.000 (0.000 to 0.000)"] * 4
    assert masks["loss, last quarter ↓"] == ["-0.1000 (-0.1000 to -0.1000)"] * 4
    seeds = {tuple(row[0].split(", ")): row[1:] for row in parts["novel_psnr_masked by seed"][2:]}
    assert seeds["none", "qk"] == ["14.00", "15.00"] and seeds["exact", "qk"] == ["15.00", "16.00"]
    # The thing that copies most, and the one that turns away most, by renders and all models.
    with Image.open(tmp_path / "failures.png") as shown:
        assert shown.height > shown.width > 16
    worst = ablation.Results(tmp_path, [0, 1]).worst()
    assert [row.split(":")[0] for row in worst][::9] == [
        "content_copying, thing 1", "camera_error_deg, thing 2",
    ]  # fmt: skip
    assert (tmp_path / "losses.png").is_file()
