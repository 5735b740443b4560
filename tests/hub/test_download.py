"""`spad download` against a real server on loopback, as a user runs it."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub_server import COMMIT, Hub
from spad.hub.registry import list_models, model_info
from spad.model.folders import installed_folder
from spad.model.released import CLIP_REPOSITORY, RELEASED, ReleasedModel

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY, FILE = "yashkant/spad", "data/checkpoints/spad_tiny.ckpt"
TOKENIZER_FILES = (*ReleasedModel.tokenizer_files, "config.json")
CHECKPOINT = random.Random(0).randbytes(6_000_000)
SHA256 = hashlib.sha256(CHECKPOINT).hexdigest()


class Machine:
    """A home without anything in it, and commands that are run there."""

    def __init__(self, folder: Path, hub: Hub):
        self.folder, self.hub = folder, hub
        self.models, self.cache = folder / "spad/models", folder / "hf/hub"
        self.model = self.models / "spad_tiny"
        self.config = folder / "config.json"
        self.config.write_text("{}")
        ours = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "SPAD_HOME", "XDG_", "TINY_")
        others = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(ours + others)}
        self.environment = kept | {
            "PYTHONPATH": str(TESTS.parent / "src"),
            "HOME": str(folder),
            "HF_HOME": str(folder / "hf"),
            "SPAD_HOME": str(folder / "spad"),
            "HF_ENDPOINT": hub.address,
            "TINY_CONFIG": str(self.config),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments: str, converter: str = "quick", **options) -> subprocess.Popen:
        pipes = {name: subprocess.PIPE for name in ("stdout", "stderr")}
        return subprocess.Popen(
            [sys.executable, str(TESTS / "run_download.py"), converter, *arguments],
            env=self.environment | options.pop("env", {}),
            text=True,
            **{"stdin": subprocess.DEVNULL} | pipes | options,
        )

    def run(self, *arguments: str, code: int = 0, **options) -> str:
        """What the command says on stdout, or on stderr where `code` is of a failure."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=900)
        assert process.returncode == code, out + err
        assert "Traceback" not in err
        return err if code else out

    def download(self, *flags: str, **options) -> str:
        return self.run("download", "spad_tiny", "--yes", *flags, **options)

    def fails(self, *flags: str, code: int = 1, **options) -> str:
        """The last line on stderr of a download that fails and installs nothing."""
        lines = self.download(*flags, code=code, **options).splitlines()
        assert lines[-1].startswith("spad: error: ")
        assert sum("error" in line for line in lines) == 1, lines
        assert not self.model.exists()
        return lines[-1]

    def asked(self) -> dict:
        """What the quick converter was asked for."""
        return json.loads((self.model / "asked.json").read_text())

    def large_files(self) -> list[Path]:
        return [p for p in self.cache.rglob("*") if p.is_file() and p.stat().st_size > 2_000_000]


@pytest.fixture
def hub():
    files = {(CLIP_REPOSITORY, name): f"{name} of CLIP".encode() for name in TOKENIZER_FILES}
    with Hub(files | {(REPOSITORY, FILE): CHECKPOINT}) as hub:
        yield hub


@pytest.fixture
def machine(hub, tmp_path) -> Machine:
    return Machine(tmp_path, hub)


def sends_until(machine: Machine, count: int) -> None:
    """Wait until that many bytes of the large file lie in the cache."""
    deadline = time.monotonic() + 300
    while sum(p.stat().st_size for p in machine.large_files()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_released_model_is_fetched_converted_and_loads_without_network(machine, hub, shared_dir):
    golden = shared_dir / "golden"
    machine.config.write_text(
        json.dumps(json.loads((golden / "spad_tiny.json").read_text())["config"])
    )
    hub.files = {
        (CLIP_REPOSITORY, name): (golden / "tiny_clip" / name).read_bytes()
        for name in TOKENIZER_FILES
    }
    hub.files[REPOSITORY, FILE] = (golden / "spad_tiny.ckpt").read_bytes()
    printed = machine.download(converter="real")
    assert printed.splitlines()[-1] == str(machine.model)
    assert machine.large_files() == []
    paths = {request.path for request in hub.requests}
    assert len(paths) == len(TOKENIZER_FILES) + 2, "something else was fetched"
    before = len(hub.requests)
    code = (
        "from spad import load_model\n"
        "from spad.hub.registry import model_info\n"
        "assert model_info('spad_tiny').name == 'spad_tiny'\n"
        "pipeline = load_model('spad_tiny', 'cpu')\n"
        "print(pipeline.tokenizer('a chair').input_ids)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=machine.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[49406, ")
    assert len(hub.requests) == before


def test_it_says_first_what_it_will_fetch(machine, hub):
    printed = machine.download()
    for text in (hub.address, REPOSITORY, FILE, CLIP_REPOSITORY, "18.5 MB", "license"):
        assert text in printed
    assert str(machine.cache) in printed and str(machine.models) in printed


def test_flags_reach_the_converter_and_the_original_goes(machine):
    machine.download("--weights", "raw", "--dtype", "float16")
    assert machine.asked() == {
        "sha256": SHA256,
        "clip": sorted(TOKENIZER_FILES),
        "config": str(machine.config),
        "weights": "raw",
        "dtype": "float16",
    }
    assert machine.large_files() == []


def test_a_kept_original_is_in_the_cache_as_the_hubs_client_puts_it(machine, hub):
    machine.download("--keep-original")
    snapshot = machine.cache / "models--yashkant--spad/snapshots" / COMMIT / FILE
    assert snapshot.read_bytes() == CHECKPOINT
    shutil.rmtree(machine.model)
    before = len(hub.requests)
    # It serves the next conversion, also offline, and what was there before stays.
    machine.download(env={"HF_HUB_OFFLINE": "1"})
    assert machine.asked()["sha256"] == SHA256 and len(hub.requests) == before
    assert snapshot.is_file()


def test_clip_may_be_given(machine, hub, tmp_path):
    (tmp_path / "clip").mkdir()
    assert "vocab.json" in machine.fails("--clip", str(tmp_path / "clip"), code=2)
    assert hub.requests == []
    for name in TOKENIZER_FILES:
        (tmp_path / "clip" / name).write_text("{}")
    machine.download("--clip", str(tmp_path / "clip"))
    assert not [r for r in hub.requests if CLIP_REPOSITORY in r.path]


def test_broken_connections_are_resumed(machine, hub):
    hub.breaks_at = [1_000_000, 1_000_001, 4_500_000]
    machine.download()
    assert machine.asked()["sha256"] == SHA256
    assert [r.start for r in hub.bodies()] == [None, 1_000_000, 1_000_001, 4_500_000]
    assert sum(r.sent for r in hub.bodies()) == len(CHECKPOINT)


def test_a_stopped_download_goes_on_in_the_next_process(machine, hub):
    hub.stalls_at = 3_000_000
    process = machine.start("download", "spad_tiny", "--yes")
    sends_until(machine, 2_900_000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("spad: stopped by Ctrl-C; resume with the same command")
    assert not machine.model.exists()
    hub.stalls_at = None
    machine.download()
    assert machine.asked()["sha256"] == SHA256
    first, second = hub.bodies()
    assert first.start is None and 2_900_000 <= second.start <= 3_000_000
    assert second.sent == len(CHECKPOINT) - second.start


def test_a_server_that_ignores_ranges_sends_all_again(machine, hub):
    hub.breaks_at, hub.ignores_ranges = [2_000_000], True
    machine.download()
    assert machine.asked()["sha256"] == SHA256


@pytest.mark.parametrize("size", [len(CHECKPOINT), len(CHECKPOINT) + 9])
def test_a_corrupted_file_is_removed_and_fetched_again(machine, hub, size):
    hub.sends_instead = random.Random(1).randbytes(size)
    line = machine.fails()
    assert "is damaged" in line and "same command" in line
    assert machine.large_files() == []
    hub.sends_instead = None
    machine.download()
    assert machine.asked()["sha256"] == SHA256


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({"ETag": '"../../../../evil"'}, "does not answer as a model hub does"),
        ({"X-Repo-Commit": "../../../../evil"}, "does not answer as a model hub does"),
        ({"Content-Encoding": "gzip"}, "sends other data than the"),
    ],
)
def test_no_answer_leaves_the_cache(machine, hub, lies, said):
    (machine.folder / "hf").mkdir()
    hub.lies = lies
    assert said in machine.fails()
    assert not list(machine.folder.rglob("*evil*"))
    files = [p for p in machine.cache.rglob("*") if p.is_file()]
    assert sum(file.stat().st_size for file in files) < 1000


def test_a_file_that_stays_short_is_given_up(machine, hub):
    hub.sends_instead = CHECKPOINT[:3_000_000]
    assert "ends before its 6000000 bytes" in machine.fails()


@pytest.mark.parametrize("large", [True, False])
def test_a_damaged_file_in_the_cache_is_removed(machine, large):
    machine.download("--keep-original")
    shutil.rmtree(machine.model)
    name = f"models--yashkant--spad/snapshots/{COMMIT}/{FILE}"
    if not large:
        name = f"models--openai--clip-vit-large-patch14/snapshots/{COMMIT}/merges.txt"
    damaged = machine.cache / name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert "is damaged" in machine.fails()
    assert not damaged.exists() and not damaged.is_symlink()
    machine.download()
    assert machine.asked()["sha256"] == SHA256


def test_what_the_hub_refuses_is_said_in_one_line(machine, hub):
    for status, code, said in (
        (401, "RepoNotFound", f"{REPOSITORY} has no {FILE} for you (HTTP 401)"),
        (404, "", "HTTP 404"),
        (403, "GatedRepo", "is gated; accept its terms"),
        (503, "", "answered HTTP 503"),
    ):
        hub.refuses = {REPOSITORY: (status, code)}
        assert said in machine.fails()
    hub.refuses = {}
    del hub.files[REPOSITORY, FILE]
    hub.files[REPOSITORY, "README.md"] = b"moved"
    assert "HTTP 404" in machine.fails()
    assert hub.bodies() == []


def test_a_busy_storage_keeps_what_came(machine, hub):
    hub.refuses = {"storage": (503, "")}
    assert "answered HTTP 503; run the same command later" in machine.fails()
    hub.refuses = {}
    machine.download()


def test_no_network_is_said_at_once(machine):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        line = machine.fails(env={"HF_ENDPOINT": address})
    assert f"no connection to {address}" in line


def test_a_network_that_fails_midway_keeps_what_came(machine, hub):
    hub.breaks_at = [2_000_000] * 6
    assert "run the same command to resume" in machine.fails()
    hub.breaks_at = []
    machine.download()
    assert hub.bodies()[-1].start == 2_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_is_named_and_the_rest_is_fetched_later(machine, hub):
    import resource

    limit = (3_000_000, 3_000_000)
    said = machine.fails(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert "expected room to write" in said and "run the same command again" in said
    (part,) = machine.large_files()
    assert SHA256 in part.name
    of_an_older_version = part.with_name(part.name.replace(SHA256, "0" * 64))
    of_another_file = part.with_name("other.spad-part")
    of_an_older_version.touch(), of_another_file.touch()
    machine.download()
    assert hub.bodies()[-1].start == 3_000_000
    assert not of_an_older_version.exists() and of_another_file.exists()


def test_another_server_is_not_a_hub(machine, hub):
    machine.download(converter="refusing", code=2)
    hub.is_hub = False
    shutil.rmtree(machine.cache / "models--yashkant--spad")
    assert "does not answer as a model hub does" in machine.fails()


def test_offline_mode_of_the_user_holds(machine, hub):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        assert "offline mode is on" in machine.fails(env={name: "1"})
    assert hub.requests == []


def test_no_terminal_and_no_yes_fetches_nothing(machine, hub):
    said = machine.run("download", "spad_tiny", code=2)
    assert len(said.splitlines()) == 1 and "expected --yes" in said and "18.5 MB" in said
    assert hub.requests == [] and not machine.cache.exists() and not machine.models.exists()


@pytest.mark.parametrize("answer", ["n", "", "y"])
def test_a_terminal_is_asked(machine, hub, answer):
    pty = pytest.importorskip("pty", reason="no pseudo terminals here")
    ours, theirs = pty.openpty()
    process = machine.start("download", "spad_tiny", stdin=theirs)
    os.write(ours, f"{answer}\n".encode())
    out, err = process.communicate(timeout=300)
    os.close(ours), os.close(theirs)
    assert "[y/N]" in out
    assert process.returncode == (0 if answer == "y" else 1), err
    assert machine.model.exists() == bool(hub.requests) == (answer == "y")


def test_a_second_call_has_nothing_to_do(machine, hub):
    machine.download()
    before = len(hub.requests)
    assert "is installed already" in machine.run("download", "spad_tiny")
    assert len(hub.requests) == before
    (machine.model / "asked.json").write_text("{}")
    said = machine.run("download", "spad_tiny", code=2)
    assert "asked.json is not what" in said and f"remove {machine.model}" in said


def test_two_at_once_fetch_once(machine, hub):
    hub.stalls_at = 3_000_000
    first = machine.start("download", "spad_tiny", "--yes")
    sends_until(machine, 2_900_000)
    second = machine.start("download", "spad_tiny", "--yes")
    assert "another command is at work" in second.stderr.readline()
    hub.go_on.set()
    for process in (first, second):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == str(machine.model)
    assert len(hub.bodies()) == 1 and machine.asked()["sha256"] == SHA256


def test_too_little_space_is_said_before_anything_large_is_fetched(machine, hub):
    hub.files[REPOSITORY, FILE] = CHECKPOINT + CHECKPOINT
    line = machine.fails(converter="full-disk")
    assert "expected 18.7 MB free" in line and "got 10.0 MB" in line and "HF_HOME" in line
    assert hub.bodies() == []


def test_a_file_the_converter_refuses_is_kept(machine, hub):
    line = machine.fails(converter="refusing", code=2)
    assert "expected another file; the original is kept in" in line
    (kept,) = machine.large_files()
    assert str(kept) in line
    machine.download()
    assert len(hub.bodies()) == 1 and machine.large_files() == []


def test_the_users_token_goes_to_the_hub_and_nowhere_else(machine, hub):
    hub.breaks_at = [1_000_000]
    machine.download(env={"HF_TOKEN": "hf_secret"})
    for request in hub.requests:
        to_storage = request.path.startswith("/storage/")
        assert request.token == (None if to_storage else "Bearer hf_secret")
    assert len(hub.bodies()) == 2


def test_unknown_models_are_refused(machine, hub):
    said = machine.run("download", "mini", "--yes", code=2)
    assert "expected a released model among spad_two_views, spad_four_views" in said
    assert hub.requests == []


def test_models_lists_what_is_here_and_what_could_be(machine):
    rows = {line.split()[0]: line for line in machine.run("models").splitlines()}
    assert list(rows)[-3:] == ["spad_two_views", "spad_four_views", "spad_tiny"]
    for name in RELEASED:
        assert "to download" in rows[name] and "7700" in rows[name]
        assert "see huggingface.co/yashkant/spad" in rows[name]
    assert "in the package" in rows["mini"]
    machine.download()
    rows = {line.split()[0]: line for line in machine.run("models").splitlines()}
    assert "installed" in rows["spad_tiny"] and "it is untrained" in rows["spad_tiny"]


def test_installed_models_are_found_by_name(tiny_pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SPAD_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="got spad_two_views; .*: spad download spad_two_views"):
        model_info("spad_two_views")
    shutil.copytree(tiny_pipeline_folder, tmp_path / "models/spad_two_views")
    shutil.copytree(tiny_pipeline_folder, tmp_path / "models/.half-written")
    assert model_info("spad_two_views").path == tmp_path / "models/spad_two_views"
    assert list_models()[-1].path.name == "spad_two_views"
    assert not [m for m in list_models() if m.path.name.startswith(".")]


def test_models_are_installed_where_the_user_wants(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("SPAD_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert installed_folder() == tmp_path / ".cache/spad/models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert installed_folder() == tmp_path / "cache/spad/models"
    monkeypatch.setenv("SPAD_HOME", "~/here")
    assert installed_folder() == tmp_path / "here/models"
