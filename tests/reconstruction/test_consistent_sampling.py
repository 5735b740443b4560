"""Laws of views that are made to agree while they are sampled."""

import json
from dataclasses import replace

import pytest
import torch

from made_views import ring, table, views_of
from spad.cli import main
from spad.data.view_sets import ViewSet
from spad.evaluation.psnr_ssim import psnr
from spad.model import SPADPipeline
from spad.reconstruction.consistent_sampling import ConsistentSampling, agreeing_images


@pytest.fixture(scope="module")
def table_views(tmp_path_factory) -> ViewSet:
    return views_of(table(tmp_path_factory.mktemp("table")), ring())


def test_views_that_agree_stay(table_views):
    agreed = agreeing_images(table_views.images, table_views.cameras)
    assert float(psnr(agreed, table_views.images).min()) > 17


def test_a_view_that_disagrees_is_drawn_to_the_others(table_views):
    wrong = table_views.images.clone()
    wrong[2] = wrong[4]
    agreed = agreeing_images(wrong, table_views.cameras)
    before, after = (psnr(x[2:3], table_views.images[2:3]) for x in (wrong, agreed))
    assert float(after) > float(before) + 3


def test_views_of_nothing_have_no_shape(table_views):
    blank = torch.ones_like(table_views.images)
    assert agreeing_images(blank, table_views.cameras) is None


def test_only_some_steps_are_mixed_and_none_at_a_share_of_zero(tiny_pipeline_folder, table_views):
    pipeline = SPADPipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.scheduler.set_timesteps(12)
    views = replace(table_views, images=table_views.images[::2], alpha=table_views.alpha[::2],
                    cameras=table_views.cameras[::2])  # fmt: skip
    scale = pipeline.vae.config.scaling_factor
    with torch.no_grad():
        estimate = pipeline.vae.encode(views.images * 2 - 1).latent_dist.mode()[None] * scale
    tensors = {"latents": torch.ones_like(estimate), "pred_original_sample": estimate}

    def changed(share: float, step: int) -> dict:
        with torch.no_grad():
            agree = ConsistentSampling(views.cameras, share)
            return agree(pipeline, step, pipeline.scheduler.timesteps[step], tensors)

    assert changed(1.0, 0) == {}
    assert changed(1.0, 11) == {}
    assert torch.equal(changed(0.0, 7)["latents"], tensors["latents"])
    half, whole = (changed(share, 7)["latents"] - 1 for share in (0.5, 1.0))
    assert half.isfinite().all()
    assert torch.allclose(2 * half, whole, atol=1e-4)


def test_the_command_line_makes_views_agree_and_records_it(tiny_pipeline_folder, tmp_path):
    command = ["generate", "a blue fish", "--model", str(tiny_pipeline_folder), "--views", "3"]
    for name, share in (("without", "0"), ("with", "0.5")):
        given = ["--steps", "4", "--consistency", share, "--output", str(tmp_path / name)]
        assert main([*command, *given]) == 0
    one, other = ((tmp_path / name / "images/000.png").read_bytes() for name in ("without", "with"))
    assert one != other
    assert json.loads((tmp_path / "with/run.json").read_text())["consistency"] == 0.5
    assert main([*command[:-1], "2", "--consistency", "0.5", "--output", str(tmp_path / "x")]) == 2
