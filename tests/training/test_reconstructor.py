"""Laws of the network that gives a surface in one pass, and of its training."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from made_views import ring, table, views_of, write_views
from spad.cli import main
from spad.data.view_sets import ViewSet
from spad.geometry.focus import object_ball
from spad.geometry.rays import rays
from spad.reconstruction.learned_surface import (
    SurfaceNetwork,
    load_network,
    predict_surface,
    volume_of_views,
)
from spad.reconstruction.reconstruct import reconstruct
from spad.reconstruction.surface import draw_rays, draw_surface
from spad.training.config import TrainReconstructorConfig
from spad.training.reconstructor import as_drawn, train_reconstructor
from spad.training.run import read_losses

TINY = {"view_channels": 2, "channels": (4, 8), "cells": 20, "rays": 256, "image_size": 32}


@pytest.fixture(scope="module")
def table_views(tmp_path_factory) -> ViewSet:
    return views_of(table(tmp_path_factory.mktemp("table")), ring(6))


@pytest.fixture
def shown(table_views):
    premultiplied = (table_views.images - 1 + table_views.alpha[:, None]).clamp(0, 1)
    return premultiplied, table_views.alpha, table_views.cameras


@pytest.fixture
def network() -> SurfaceNetwork:
    torch.manual_seed(0)
    return SurfaceNetwork(4, (8, 8))


def trained(network: SurfaceNetwork) -> SurfaceNetwork:
    torch.nn.init.normal_(network.out.weight, std=0.1)
    return network


def test_untrained_it_gives_the_hull(network, shown):
    images, alpha, cameras = shown
    surface = predict_surface(network, images, alpha, cameras, object_ball(cameras), 24)
    assert torch.equal(surface.distance, surface.hull)
    assert (surface.distance < 0).any() and (surface.distance > 0).any()


def test_the_order_of_views_does_not_matter(network, shown):
    trained(network)
    order = [3, 1, 5, 0, 2, 4]
    images, alpha, cameras = shown
    ball = object_ball(cameras)
    grid = volume_of_views(alpha, cameras, ball, 20)
    with torch.no_grad():
        first = network(images, alpha, cameras, grid)
        second = network(images[order], alpha[order], cameras[order], grid)
    assert not torch.equal(first.distance, first.hull)
    torch.testing.assert_close(first.distance, second.distance, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first.color, second.color, atol=1e-4, rtol=1e-4)


def test_rays_see_what_whole_images_show(network, shown):
    images, alpha, cameras = shown
    surface = predict_surface(network, images, alpha, cameras, object_ball(cameras), 32)
    whole = draw_surface(surface, cameras[:1])[0]
    origins, directions = rays(
        cameras.world_from_cam[:1], cameras.intrinsics[:1], cameras.height, cameras.width
    )
    jitter = torch.rand(cameras.height * cameras.width, generator=torch.Generator().manual_seed(0))
    drawn = draw_rays(surface, origins.reshape(-1, 3), directions.reshape(-1, 3), jitter, 0.7)
    assert float((drawn.T.reshape(whole.shape) - whole).abs().mean()) < 0.01


def test_errors_of_drawn_views_are_small_and_differ_by_view(shown):
    images, alpha, _ = shown
    again, moved = as_drawn(images, alpha, torch.Generator().manual_seed(0))
    assert (again <= moved[:, None] + 1e-6).all() and again.min() >= 0
    gap = (moved - alpha).abs().mean((1, 2)) / alpha.mean((1, 2))
    assert (gap > 0.01).all() and (gap < 0.5).all()
    assert len(set(gap.tolist())) == len(gap)


def test_training_lowers_the_loss_and_the_network_makes_models(table_views, tmp_path):
    write_views(tmp_path / "renders/table", table_views)
    row = {"uid": "table", "captions": ["a table"], "folder": "table"}
    (tmp_path / "renders/objects.jsonl").write_text(json.dumps(row) + "\n")
    settings = TrainReconstructorConfig(
        tmp_path / "renders", tmp_path / "run", steps=40, views=(3,), targets=3, log_every=10,
        drawn_prob=0, learning_rate=3e-3, warmup_steps=1, **TINY,
    )  # fmt: skip
    folder = train_reconstructor(settings)
    names, rows = read_losses(tmp_path / "run/loss.csv")
    for name, share in (("loss", 1.0), ("color", 0.85)):
        column = names.index(name)
        assert float(rows[-1][column]) < share * float(rows[0][column])
    # Whoever runs it again has nothing to do.
    assert train_reconstructor(settings) == folder
    network = load_network(folder)
    made = reconstruct(table_views, faces=800, texture_size=64, cells=24, network=network)
    assert len(made.mesh.faces) > 100


def test_what_is_no_network_is_named(tmp_path, network):
    with pytest.raises(ValueError, match=r"got no config\.json; its run folder has it in model"):
        load_network(tmp_path)
    network.save_pretrained(tmp_path / "n")
    config = tmp_path / "n/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"view_channels": 5}))
    with pytest.raises(ValueError, match="to be whole, but it cannot be loaded"):
        load_network(tmp_path / "n")
    weights = tmp_path / "n/diffusion_pytorch_model.safetensors"
    network.save_pretrained(tmp_path / "n")
    save_file({k: v for k, v in load_file(weights).items() if k != "out.bias"}, weights)
    with pytest.raises(ValueError, match=r"n to be whole, but it .*out\.bias"):
        load_network(tmp_path / "n")
    torch.nn.init.constant_(network.out.bias, float("nan"))
    network.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="expected finite weights"):
        load_network(tmp_path / "m")


def test_too_few_views_are_said(renders, tmp_path, capsys):
    arguments = ["--data", str(renders), "--output", str(tmp_path / "run"), "--views", "9"]
    assert main(["train-reconstructor", *arguments]) == 2
    assert "objects of 9 views or more" in capsys.readouterr().err
