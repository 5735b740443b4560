"""Rendering on a real Ray cluster of this machine."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from hand_made import StuckModel, box, write_gltf
from spad.data.config import RenderConfig
from spad.data.render import render_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
COUNT = 8


def config(models: Path, output: str, **changes) -> RenderConfig:
    small = {"image_size": 16, "num_random": 1, "num_orthogonal_sets": 0}
    return RenderConfig(models, models.parent / output, **(small | changes))


def quiet(done: int, total: int) -> None:
    """A progress callback for tests that do not look at progress."""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.slow
def test_a_killed_ray_worker_costs_no_object(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for number in range(COUNT):
        write_gltf(models / f"m{number}.gltf", [box([number / COUNT, 0, 1, 1])])
    (models / "broken.glb").write_bytes(b"not a model")
    stuck = StuckModel(models / "m4.gltf", box([0.5, 0, 1, 1]))
    summaries = []
    job = config(models, "ray", executor="ray", workers=2, reject=())
    thread = threading.Thread(target=lambda: summaries.append(render_all(job, quiet)), daemon=True)
    thread.start()

    worker = stuck.wait_for_reader()
    while not name_of(worker).startswith("ray::"):
        worker = parent_of(worker)
    os.kill(worker, signal.SIGKILL)
    stuck.forget_reader()
    stuck.release()
    thread.join(timeout=300)

    (summary,) = summaries
    assert (summary.rendered, summary.skipped) == (COUNT, 0)
    assert [failure.uid for failure in summary.failures] == ["broken"]
    uids = [json.loads(line)["uid"] for line in summary.index.read_text().splitlines()]
    assert uids == [f"m{number}" for number in range(COUNT)]
    folders = {path.name for path in summary.index.parent.iterdir() if path.is_dir()}
    assert folders == set(uids)

    # What a cluster drew is what this machine draws, and is not drawn again.
    stuck.repair()
    alone = render_all(config(models, "alone", workers=1, reject=()), quiet)
    assert alone.index.read_bytes() == summary.index.read_bytes()
    assert render_all(config(models, "ray", workers=1, reject=()), quiet).rendered == 0
