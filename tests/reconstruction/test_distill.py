"""Laws of score distillation, on parts too small to make anything of."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh
from diffusers import DDIMScheduler

from spad.cameras import Cameras
from spad.cli import BAD_INPUT, main
from spad.model import SPADPipeline
from spad.reconstruction import distill
from spad.reconstruction.config import DistillConfig
from spad.reconstruction.distill import Distillation, Scene
from spad.reconstruction.mesh_extraction import extract_mesh

TINY = {"steps": 4, "cells": 20, "render_size": 16, "seed": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder) -> SPADPipeline:
    return SPADPipeline.from_pretrained(tiny_pipeline_folder)


def test_a_scene_starts_as_a_ball():
    scene = Scene.ball(32)
    camera = Cameras.orbit(10.0, [20.0], height=32, width=32)
    alpha = scene.draw(camera, torch.full((32 * 32,), 0.5))[0, 3]
    row, column = (alpha > 0.5).nonzero().float().T
    # A ball of radius 0.5 at a distance of 3.5, with a focal length of 1.36 image sides.
    radius = 0.5 / 3.46 * 1.364 * 32
    assert float((alpha > 0.5).sum()) == pytest.approx(3.14 * radius**2, rel=0.1)
    assert float(row.mean()) == pytest.approx(15.5, abs=0.5)
    assert float(column.mean()) == pytest.approx(15.5, abs=0.5)
    mesh = extract_mesh(scene.surface(), 500)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).volume == pytest.approx(0.52, rel=0.1)


def test_measuring_distances_again_leaves_the_surface_where_it_is():
    scene = Scene.ball(32)
    before = scene.table[:, 0].clone()
    # The surface has moved, what is far from it knows nothing of it.
    scene.table[:, 0] = torch.where(before.abs() < 2, before - 1, before)
    moved = scene.table[:, 0].clone()
    scene.measure_far()
    after = scene.table[:, 0]
    assert torch.equal(after < 0, moved < 0)
    assert float((after - (before - 1)).abs().max()) < 1.6


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_clean_latents_are_found_whatever_is_predicted(kind):
    scheduler = DDIMScheduler()
    clean, noise = torch.randn(2, 1, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([600])
    kept = scheduler.alphas_cumprod[time].view(1, 1, 1, 1, 1)
    predicted = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * clean,
    }[kind]
    noisy = scheduler.add_noise(clean, noise, time)
    assert torch.allclose(distill._clean(predicted, noisy, kept, kind), clean, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_gradient_is_that_of_score_distillation(pipeline, kind, monkeypatch):
    run = Distillation(pipeline, DistillConfig("a blue fish", **TINY))
    run._kind = kind
    cameras = Cameras.ring(2, height=64, width=64)
    latents = torch.randn(1, 2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    targets = []
    guide = pipeline.guide
    monkeypatch.setattr(
        pipeline, "guide", lambda *args: targets.append(guide(*args)) or targets[-1], raising=False
    )
    latents.requires_grad_()
    random = distill.np.random.default_rng(0)
    loss = run._distance_to_model(latents, cameras, random, 0.5)
    (gradient,) = torch.autograd.grad(loss, latents)
    towards = (latents.detach() - targets[0]).flatten()
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), towards, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-4)
    if kind != "epsilon":
        assert torch.allclose(gradient.flatten(), towards / towards.numel(), atol=1e-7)


def test_a_run_that_is_resumed_ends_as_one_that_never_stopped(pipeline, tmp_path):
    settings = DistillConfig("a blue fish", **TINY)
    whole = Distillation(pipeline, settings)
    assert list(whole.run()) == [1, 2, 3, 4]
    assert not torch.equal(whole.scene.table, Scene.ball(settings.cells).table)
    first = Distillation(pipeline, settings)
    steps = first.run()
    next(steps), next(steps)
    request = distill._request(settings)
    distill._write_state(tmp_path / "state.safetensors", first, request)
    second = Distillation(pipeline, settings)
    second.load(*distill._read_state(tmp_path / "state.safetensors", request))
    assert list(second.run()) == [3, 4]
    assert torch.equal(second.scene.table, whole.scene.table)
    other = distill._request(replace(settings, seed=4))
    with pytest.raises(ValueError, match="got another one"):
        distill._read_state(tmp_path / "state.safetensors", other)
    (tmp_path / "state.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="expected the state of a distillation"):
        distill._read_state(tmp_path / "state.safetensors", request)


def test_the_command_stops_goes_on_and_writes_a_model(tiny_pipeline_folder, tmp_path, monkeypatch):
    output = tmp_path / "fish.glb"
    command = ["distill", "a blue fish", "--model", str(tiny_pipeline_folder), "--steps", "3"]
    command += ["--cells", "20", "--render-size", "16", "--show-every", "2", "--faces", "200"]
    command += ["--texture-size", "64", "--output", str(output), "--device", "cpu"]
    take = Distillation._take

    def stopped(run: Distillation) -> None:
        if run.step == 1:
            raise KeyboardInterrupt
        take(run)

    # Fewer pixels than people get.
    monkeypatch.setattr(distill, "_PAINTED_SIDE", 32)
    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "_take", stopped)
        assert main(command) == 130
    state = tmp_path / "fish-progress/state.safetensors"
    assert state.is_file()
    assert not output.exists()
    assert main(command) == 0
    assert trimesh.load_mesh(output).faces.shape[0] <= 200
    assert not state.exists()
    shown = sorted(path.name for path in (tmp_path / "fish-progress").iterdir())
    assert shown == ["step-00002.webp", "step-00003.webp"]
    assert main(command) == BAD_INPUT


def test_a_file_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="expected output to end in .glb"):
        DistillConfig("a blue fish", Path("model.fbx"))
