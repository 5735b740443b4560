"""The `spad` command, end to end on a tiny model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from spad.cameras import Cameras, load_cameras, save_transforms
from spad.cli import commands, main
from spad.installation import install_command
from spad.settings import _hint

SRC = Path(__file__).resolve().parents[1] / "src"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}


def run_python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, **options
    )


@pytest.fixture
def generate(tiny_pipeline_folder, tmp_path, monkeypatch):
    """Runs `spad generate ...` with the tiny model in an empty folder, returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        return main(["generate", "--model", str(tiny_pipeline_folder), *arguments])

    return run


def image_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("images/*.png"))]


def test_generate_leaves_everything_it_promises(generate, capsys):
    assert generate("a blue fish", "--views", "3", "--elevation", "10", "--output", "out") == 0
    out = Path("out")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(out / "grid.png") and printed[-1].endswith(" s")
    assert len(image_bytes(out)) == 3
    with Image.open(out / "turntable.webp") as animation:
        assert animation.is_animated and animation.n_frames == 3
    cameras = load_cameras(out / "transforms.json").cameras
    asked = Cameras.orbit(10.0, [-60.0, 60.0, 180.0], height=128, width=128)
    torch.testing.assert_close(cameras.world_from_cam, asked.world_from_cam, atol=1e-5, rtol=0)
    torch.testing.assert_close(cameras.intrinsics, asked.intrinsics, atol=1e-3, rtol=0)
    record = json.loads((out / "run.json").read_text())
    assert record["prompts"] == ["a blue fish"]
    assert record["num_inference_steps"] == 2 and record["scheduler"] == "ddim"
    assert record["command"][:2] == ["spad", "generate"]
    assert len(record["model_sha256"]) == 64 and "torch" in record["versions"]


def test_same_seed_same_bytes_and_underscores_work(generate):
    common = ("a fish", "--views", "2")
    assert generate(*common, "--guidance-scale", "3", "--output", "one") == 0
    assert generate(*common, "--guidance_scale", "3", "--output", "two") == 0
    assert generate(*common, "--guidance-scale", "3", "--seed", "1", "--output", "three") == 0
    assert image_bytes(Path("one")) == image_bytes(Path("two"))
    assert image_bytes(Path("one")) != image_bytes(Path("three"))


def test_flags_of_the_original_are_understood(generate):
    common = ("a fish", "--views", "2", "--output")
    assert (
        generate(*common, "ours", "--guidance-scale", "3", "--blob-sigma", "1", "--steps", "1") == 0
    )
    theirs = ("--cfg_scale", "3", "--blob_sigma", "1", "--ddim_steps", "1")
    assert generate(*common, "theirs", *theirs) == 0
    ours, theirs = (json.loads(Path(name, "run.json").read_text()) for name in ("ours", "theirs"))
    for name, value in (("guidance_scale", 3), ("blob_sigma", 1), ("num_inference_steps", 1)):
        assert ours[name] == theirs[name] == value


def test_a_run_can_be_made_again_from_its_own_cameras(generate):
    assert generate("a fish", "--elevation", "0", "45", "--radius", "3", "--output", "one") == 0
    assert generate("a fish", "--cameras", "one/transforms.json", "--output", "two") == 0
    first, second = (
        load_cameras(Path(name) / "transforms.json").cameras for name in ("one", "two")
    )
    torch.testing.assert_close(first.world_from_cam, second.world_from_cam)
    for one, two in zip(image_bytes(Path("one")), image_bytes(Path("two")), strict=True):
        assert len(one) > 0 and abs(len(one) - len(two)) < 0.05 * len(one)


def test_one_view_straight_from_above_works(generate):
    assert generate("a fish", "--views", "1", "--elevation", "90", "--output", "out") == 0
    with Image.open("out/turntable.webp") as picture:
        assert picture.size == (128, 128)


def test_forty_views_work(generate):
    arguments = ("--views", "40", "--image-size", "32", "--steps", "1", "--output", "out")
    assert generate("a fish", *arguments) == 0
    assert len(image_bytes(Path("out"))) == 40


def test_more_views_warn_about_memory(generate, capsys):
    arguments = ("--views", "41", "--image-size", "16", "--steps", "1", "--output", "out")
    assert generate("a fish", *arguments) == 0
    assert "spad: warning: 41 views attend to each other" in capsys.readouterr().err


def test_many_prompts_from_a_file(generate, tmp_path):
    (tmp_path / "prompts.txt").write_text("a blue fish\n\na grey rock\r\na blue fish\n")
    assert generate("--prompts", "prompts.txt", "--views", "2") == 0
    out = Path("spad-out/prompts-0")
    assert (out / "grid.png").is_file()
    assert [p.name for p in sorted(out.glob("0*"))] == ["000-a-blue-fish", "001-a-grey-rock"]
    assert generate("a grey rock", "--views", "2", "--output", "alone") == 0
    assert image_bytes(out / "001-a-grey-rock") == image_bytes(Path("alone"))


def test_wide_cameras_keep_their_shape(generate, tmp_path):
    wide = Cameras.ring(2, height=60, width=120)
    save_transforms(tmp_path / "wide.json", wide, ["0.png", "1.png"])
    assert generate("a fish", "--cameras", "wide.json", "--output", "out") == 0
    with Image.open("out/images/000.png") as picture:
        assert picture.size == (128, 64)


def test_a_picture_conditions_the_first_view(generate, tmp_path):
    Image.new("LA", (50, 40), (200, 128)).save(tmp_path / "photo.png")
    common = ("a fish", "--views", "2", "--image", "photo.png", "--output")
    assert generate(*common, "one", "--seed", "1") == 0
    assert generate(*common, "two", "--seed", "2") == 0
    one, two = image_bytes(Path("one")), image_bytes(Path("two"))
    # View 0 is the picture as the autoencoder gives it back; no noise reaches it.
    assert one[0] == two[0] and one[1] != two[1]


def test_large_images_can_be_decoded_in_tiles(tiny_pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_pipeline_folder, "model")
    file = next(Path("model/vae").glob("*.safetensors"))
    weights = load_file(file)
    # Untrained, the decoder sees no neighbors, so that tiles would not matter.
    weights["refiner.conv_out.weight"] += 0.02
    save_file(weights, file)
    Path("model/sha256.txt").unlink()
    common = ("generate", "a fish", "--model", "model", "--views", "1", "--image-size", "192")
    for name, more in (("whole", ()), ("tiles", ("--vae-tiling",))):
        assert main([*common, "--steps", "1", *more, "--output", name]) == 0
    whole, tiles = (np.asarray(Image.open(f"{name}/images/000.png")) for name in ("whole", "tiles"))
    apart = np.abs(whole.astype(int) - tiles)
    assert apart.max() > 0 and apart.mean() < 4
    assert json.loads(Path("tiles/run.json").read_text())["vae_tiling"] is True


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "euler"])
def test_every_scheduler_runs(generate, scheduler):
    assert generate("a fish", "--views", "1", "--scheduler", scheduler, "--output", "out") == 0
    assert json.loads(Path("out/run.json").read_text())["scheduler"] == scheduler


def test_unknown_words_are_named_and_drawing_goes_on(generate, capsys):
    assert generate("a green dragonfly", "--views", "1", "--output", "one") == 0
    assert '"dragonfly" is not in tiny\'s vocabulary' in capsys.readouterr().err
    assert generate("xyzzy", "--views", "1", "--output", "two") == 0
    assert "knows no word of this prompt" in capsys.readouterr().err
    assert generate("trees", "--views", "1", "--output", "three") == 0
    assert 'reading it as "tree"' in capsys.readouterr().err
    assert json.loads(Path("three/run.json").read_text())["read_as"] == {"trees": "tree"}


BAD_INPUT = {
    "empty prompt": ([""], "empty"),
    "blank prompt": (["  "], "empty"),
    "no prompt": ([], "got neither"),
    "prompt twice": (["a fish", "--prompts", "prompts.txt"], "got both"),
    "long prompt": (["fish " * 23], "at most 22 words"),
    "long negative prompt": (["a", "--negative-prompt", "fish " * 23], "at most 22 words"),
    "no prompts": (["--prompts", "empty.txt"], "empty.txt"),
    "missing prompts": (["--prompts", "missing.txt"], "missing.txt"),
    "binary prompts": (["--prompts", "binary"], "text in UTF-8"),
    "zero views": (["a", "--views", "0"], "got 0"),
    "negative views": (["a", "--views", "-2"], "got -2"),
    "unequal lists": (["a", "--elevation", "1", "2", "--azimuth", "1", "2", "3"], "3 values"),
    "list and views": (["a", "--views", "4", "--elevation", "1", "2"], "expected 4 values"),
    "empty list": (["a", "--azimuth"], "--azimuth of 1 or more values"),
    "elevation": (["a", "--elevation", "91"], "--elevation of at least -90 and at most 90"),
    "endless turn": (["a", "--azimuth", "1e300"], "--azimuth of at least -360"),
    "not a number": (["a", "--azimuth", "nan"], "--azimuth"),
    "radius": (["a", "--radius", "0"], "--radius"),
    "field of view": (["a", "--fov-deg", "179.9999999"], "--fov-deg"),
    "far away": (["a", "--radius", "1e30"], "--radius"),
    "missing cameras": (["a", "--cameras", "missing.json"], "missing.json"),
    "malformed cameras": (["a", "--cameras", "malformed.json"], "malformed.json"),
    "no cameras": (["a", "--cameras", "no-frames.json"], "no-frames.json"),
    "binary cameras": (["a", "--cameras", "binary"], "binary"),
    "empty camera folder": (["a", "--cameras", "theirs"], "theirs"),
    "cameras and orbit": (["a", "--cameras", "no-frames.json", "--views", "3"], "--views"),
    "not an image": (["a", "--image", "prompts.txt"], "prompts.txt"),
    "missing image": (["a", "--image", "missing.png"], "missing.png"),
    "cut image": (["a", "--image", "cut.png"], "cut.png"),
    "folder as image": (["a", "--image", "theirs"], "theirs"),
    "output exists": (["a", "--output", "theirs"], "exists"),
    "output not ours": (["a", "--output", "theirs", "--overwrite"], "holds no run.json"),
    "output in a file": (["a", "--output", "prompts.txt/out"], "cannot write in"),
    "output is a file": (["a", "--output", "prompts.txt"], "no folder"),
    "unknown model": (["a", "--model", "maxi"], "'maxi'"),
    "not a model": (["a", "--model", "theirs"], "model_index.json"),
    "unknown scheduler": (["a", "--scheduler", "ddpm"], "'ddpm'"),
    "zero steps": (["a", "--steps", "0"], "got 0"),
    "too many steps": (["a", "--steps", "1001"], "got 1001"),
    "guidance": (["a", "--guidance-scale", "-1"], "got -1"),
    "blob": (["a", "--blob-sigma", "1e-320"], "--blob-sigma"),
    "ball": (["a", "--ball-radius", "1e-30"], "--ball-radius"),
    "cache": (["a", "--deep-cache-interval", "0"], "--deep-cache-interval"),
    "odd size": (["a", "--image-size", "100"], "try 96"),
    "seed": (["a", "--seed", "-1"], "--seed"),
    "device": (["a", "--device", "toaster"], "toaster"),
    "half precision": (["a", "--device", "cpu", "--dtype", "float16"], "bfloat16 on a CPU"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gives_one_line_and_leaves_nothing(generate, tmp_path, capsys, name):
    (tmp_path / "prompts.txt").write_text("a fish\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    (tmp_path / "malformed.json").write_text('{"frames": [')
    (tmp_path / "no-frames.json").write_text("{}")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("keep")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    before = sorted(tmp_path.rglob("*"))

    arguments, expected = BAD_INPUT[name]
    assert generate(*arguments) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("spad: warning")]
    assert len(lines) == 1 and lines[0].startswith("spad: error: "), lines
    assert "expected" in lines[0]
    assert expected in lines[0].removeprefix("spad: error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_overwrite_replaces_an_earlier_run(generate):
    assert generate("a fish", "--views", "2", "--output", "out") == 0
    assert generate("a fish", "--views", "1", "--output", "out") == 2
    assert len(image_bytes(Path("out"))) == 2
    assert generate("a fish", "--views", "1", "--output", "out", "--overwrite") == 0
    assert len(image_bytes(Path("out"))) == 1


@pytest.mark.parametrize(
    "error, code, words",
    [
        (OSError(28, "No space left on device"), 1, "No space left"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "out of"),
        (ModuleNotFoundError("No module", name="embreex"), 1, install_command("data")),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_failures_of_the_machine_give_one_line(generate, capsys, monkeypatch, error, code, words):
    def fail(*_):
        raise error

    monkeypatch.setattr("spad.generation.generate.write_views", fail)
    assert generate("a fish", "--views", "1", "--steps", "1", "--output", "out") == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("spad: ") and words in line
    assert list(Path().iterdir()) == []


def test_bugs_keep_their_traceback(generate, monkeypatch):
    def bug(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("spad.generation.generate.write_views", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        generate("a fish", "--views", "1", "--steps", "1", "--output", "out")
    assert list(Path().iterdir()) == []


COMMANDS = [settings for group in commands().values() for settings, _ in group.values()]


@pytest.mark.parametrize("config", COMMANDS, ids=lambda config: config.__name__)
def test_help_names_a_default_once_and_never_none(config, capsys):
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", config.__name__.removesuffix("Config")).lower()
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "None" not in shown and "Default:" not in shown
    groups = [type(field.default) for field in fields(config) if is_dataclass(field.default)]
    for group in (config, *groups):
        for field in fields(group):
            # A default that the text describes is chosen when it is used, so the field is empty.
            if _hint(group, field.name, "?") not in ("(default: ?)", "(required)"):
                assert field.default in (None, "", ())


def test_help_and_bad_input_load_nothing_heavy(tmp_path):
    code = (
        "import sys, spad.cli\n"
        "try: spad.cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in (["--help"], ["generate", "--help"], ["train", "--help"], ["models"]):
        assert run_python("-c", code, *arguments).returncode == 0
    # A bad request is refused before torch is loaded.
    code = code.replace("'numpy', ", "").replace(", 'PIL'", "")
    done = run_python("-c", code, "generate", "", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_python_dash_m_and_parse_errors():
    done = run_python("-m", "spad", "--help")
    assert done.returncode == 0
    for command in ("generate", "render", "train", "models"):
        assert command in done.stdout
    assert run_python("-m", "spad", "generate", "a", "--no-such-flag").returncode == 2


def test_a_preset_gives_the_defaults_that_flags_change(monkeypatch):
    said = run_python("-m", "spad", "train", "--preset", "four-views", "--help").stdout
    assert "(default: 2e-05)" in " ".join(said.split())
    assert run_python("-m", "spad", "train", "--preset", "nothing").returncode == 2
    asked = []
    monkeypatch.setattr("spad.training.train.train", asked.append)
    arguments = ["--preset", "two-views", "--steps", "7", "--rays", "qk"]
    for order in (arguments, [*arguments[2:], "--preset=two-views"]):
        assert main(["train", *order]) == 0
    assert asked[0] == asked[1]
    settings = asked[0]
    assert (settings.preset, settings.optimizer.learning_rate) == ("two-views", 1e-4)
    assert (settings.optimizer.steps, settings.model.rays) == (7, "qk")


def test_ctrl_c_leaves_nothing(tiny_pipeline_folder, tmp_path):
    arguments = ["generate", "a fish", "--model", str(tiny_pipeline_folder), "--output", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spad", *arguments, "--steps", "999", "--views", "8"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = ""
    deadline = time.monotonic() + 60
    # The progress bar has moved: it is drawing.
    while "/999" not in seen and time.monotonic() < deadline and process.poll() is None:
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, seen + rest
    assert "Traceback" not in rest
    assert rest.splitlines()[-1].startswith("spad: stopped by Ctrl-C")
    assert list(tmp_path.iterdir()) == []


def test_stopped_training_says_how_to_resume(tmp_path, capsys, monkeypatch):
    from spad.training.run import Interrupted

    def stop(_settings):
        raise Interrupted("stopped at step 3 of 9, saved")

    monkeypatch.setattr("spad.training.autoencoder.train_autoencoder", stop)
    arguments = ["train-autoencoder", "--data", "my renders", "--output", "run"]
    assert main(arguments) == 130
    # On a busy machine, one about threads goes before.
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("spad: stopped at step 3 of 9, saved; resume with the same command: ")
    assert line.endswith("spad train-autoencoder --data 'my renders' --output run")


def test_models_are_described(tiny_pipeline_folder, capsys):
    assert main(["models"]) == 0
    assert capsys.readouterr().out.startswith("name")
    assert main(["models", str(tiny_pipeline_folder)]) == 0
    described = capsys.readouterr().out
    assert "tiny: nothing: it is untrained" in described and "128x128" in described
    assert main(["models", str(tiny_pipeline_folder), "--captions"]) == 0
    assert "a blue fish" in capsys.readouterr().out.splitlines()
    assert main(["models", "maxi"]) == 2


def test_a_program_that_calls_main_has_its_environment_back(capsys, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("HF_HUB_VERBOSITY", "info")
    during = []
    watched = "spad.hub.registry.list_models"
    monkeypatch.setattr(watched, lambda: during.append(dict(os.environ)) or [])
    before = dict(os.environ)
    assert main(["models"]) == 0
    added = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "HF_HUB_VERBOSITY": "info"}
    assert added.items() <= during[0].items() and os.environ == before


@pytest.mark.parametrize(
    ("arguments", "is_measured"), [("models", False), ("reconstruct none", True)]
)
def test_only_commands_that_compute_look_for_other_work(arguments, is_measured):
    code = (
        "import sys, spad.cli\n"
        "spad.cli.set_wait_policy = lambda environment: print('measured')\n"
        f"spad.cli.main({arguments.split()!r})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert ("measured" in ran.stdout.splitlines()) == is_measured


def test_render_without_models_is_one_line(tmp_path, capsys):
    assert main(["render", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("spad: error: expected")
    assert list(tmp_path.iterdir()) == []


def test_former_flags_of_render_are_understood(tmp_path, capsys):
    flags = ["--num-views", "4", "--elevation-deg", "0"]
    assert main(["render", str(tmp_path / "none"), "--output", str(tmp_path / "out"), *flags]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_in_an_encoding_that_lacks_characters_is_no_error(encoding):
    environment = ENVIRONMENT | {"PYTHONIOENCODING": encoding}
    for arguments in (["generate", "--help"], ["evaluate", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "spad", *arguments], env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode(encoding)
        assert arguments[0] in done.stdout.decode(encoding)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell and head")
@pytest.mark.parametrize("arguments", ["train --help", "models"])
def test_a_reader_that_exits_early_is_no_error(arguments):
    done = subprocess.run(
        ["sh", "-c", f"{{ '{sys.executable}' -m spad {arguments}; echo $? >&2; }} | :"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip() in ("0", "1")


def test_an_earlier_run_is_generated_again_to_the_pixel(generate, tmp_path, capsys):
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "photo.png")
    arguments = ["--views", "2", "--elevation", "33", "--seed", "5", "--image", "photo.png"]
    assert generate("a fish", *arguments, "--steps", "1", "--output", "one") == 0
    # All that the command needs is in the record.
    assert main(["generate", "--from", "one/run.json", "--output", "two"]) == 0
    assert image_bytes(Path("one")) == image_bytes(Path("two"))
    assert "warning" not in capsys.readouterr().err
    assert main(["generate", "--from", "one", "--seed", "6", "--output", "three"]) == 0
    records = [json.loads((Path(name) / "run.json").read_text()) for name in ("two", "three")]
    assert [r["seed"] for r in records] == [5, 6]
    assert records[0]["cameras"] == records[1]["cameras"]
    assert main(["generate", "--from", "one", "--views", "1", "--output", "four"]) == 0
    assert len(image_bytes(Path("four"))) == 1
    Image.new("RGB", (40, 40), "red").save(tmp_path / "photo.png")
    assert main(["generate", "--from", "one", "--output", "five"]) == 2
    assert "got another image" in capsys.readouterr().err


def test_strict_refuses_unknown_words(generate, capsys):
    assert generate("a green dragonfly", "--strict", "--output", "out") == 2
    line = capsys.readouterr().err
    assert '"dragonfly" is not in' in line and "nearest things it knows" in line
    # A synonym is a known word.
    assert generate("trees", "--strict", "--views", "1", "--steps", "1", "--output", "out") == 0


def test_output_is_opened_before_anything_is_generated(generate, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("a model was loaded for an output that cannot be written")

    monkeypatch.setattr("spad.generation.sampling.load_model", never)
    # Longer than any file system takes.
    assert generate("a fish", "--output", "x" * 300) == 1
    assert "x" * 300 in capsys.readouterr().err
    monkeypatch.setattr("spad.files.writing.free_space", lambda _: 10)
    assert generate("a fish", "--output", "out") == 1
    assert "free on the disk" in capsys.readouterr().err
