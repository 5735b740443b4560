"""SPADPipeline on a tiny real model."""

import copy
import dataclasses
import functools
import json
import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from PIL import Image

from spad.cameras import Cameras
from spad.hub.registry import load_model, model_info
from spad.images.pixels import fitted_image_tensor
from spad.model import PatchAutoencoder, SPADPipeline, precision
from spad.model.folders import EMBEDDED, GenerationDefaults, Vocabulary
from spad.model.schedulers import SCHEDULERS
from spad.model.start import gaussian_blob


@pytest.fixture(scope="module")
def awake(tiny_pipeline_folder) -> SPADPipeline:
    pipeline = SPADPipeline.from_pretrained(tiny_pipeline_folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    # An untrained UNet has zero weights where views and cameras come in: wake them.
    for name, weight in pipeline.unet.named_parameters():
        if "plucker" in name or "camera_embedding" in name:
            weight.data.normal_(0, 0.2, generator=generator)
    return pipeline


@pytest.fixture
def pipeline(awake) -> SPADPipeline:
    pipeline = SPADPipeline(**copy.deepcopy(awake.components))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def cameras() -> Cameras:
    return Cameras.ring(3, elevation_deg=20.0, height=128, width=128)


@pytest.mark.parametrize("is_old", [False, True])
def test_saved_folders_name_the_package_and_older_ones_load(pipeline, cameras, tmp_path, is_old):
    pipeline.use_scheduler("original")
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    former = {"vae": "spad.autoencoder", "unet": "spad.model"}
    former |= {"scheduler": "spad.original_scheduler"}
    for part, module in former.items():
        assert index[part][0] == "spad.model"
        if is_old:
            index[part] = [module, index[part][1].replace("Released", "Original")]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = SPADPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    drawn, again = (p("a grey rock", cameras, num_inference_steps=2) for p in (pipeline, loaded))
    assert torch.equal(drawn.latents, again.latents)


def test_a_saved_pipeline_carries_its_own_settings(pipeline, tmp_path):
    pipeline.use_scheduler("unipc")
    own = dataclasses.replace(pipeline.defaults, guidance_scale=3.0, guidance_scale_with_image=1.0)
    words = Vocabulary(("a blue couch",), (("couch", "divan"),))
    pipeline = SPADPipeline(**pipeline.components, defaults=own, vocabulary=words)
    pipeline.save_pretrained(tmp_path)
    loaded = SPADPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.defaults == dataclasses.replace(own, scheduler="unipc")
    assert type(loaded.scheduler) is SCHEDULERS["unipc"]
    assert loaded.read_prompts(["a divan", "a sofa"]) == ["a couch", "a sofa"]
    assert load_model(tmp_path, "cpu").defaults == loaded.defaults
    again = SPADPipeline.from_pipe(loaded)
    assert again.unet is loaded.unet and again.vocabulary == loaded.vocabulary
    # As with every pipeline of diffusers, a scheduler that is given counts.
    euler = SCHEDULERS["euler"].from_config(pipeline.scheduler.config)
    assert SPADPipeline.from_pretrained(tmp_path, scheduler=euler).scheduler is euler


def test_settings_of_older_folders_are_read_from_their_manifest(tmp_path):
    """Of the form of the first two editions of mini."""
    folder = Path(shutil.copytree(EMBEDDED / "mini", tmp_path / "mini"))
    (folder / "sha256.txt").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"][0] = "spad.autoencoder"
    for name in ("defaults", "vocabulary"):
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))
    defaults = {
        "elevation_deg": 20.0, "azimuth_start_deg": -50.0, "radius": 3.5, "fov_deg": 40.2657513,
        "cfg_scale": 3.5, "guidance_rescale": 0.7, "blob_sigma": 0.5, "steps": 13,
        "scheduler": "ddim", "image_cfg_scale": 1.5,
    }  # fmt: skip
    manifest = {"name": "mini", "description": "", "licence": "CC0", "defaults": defaults}
    (folder / "spad.json").write_text(json.dumps(manifest))
    pipeline = SPADPipeline.from_pretrained(folder)
    assert type(pipeline.vae) is PatchAutoencoder and pipeline.name == "mini"
    own, info = pipeline.defaults, model_info(folder)
    assert own == info.defaults and info.license == "CC0"
    assert (own.start_azimuth_deg, own.guidance_scale, own.guidance_scale_with_image) == (
        -50.0,
        3.5,
        1.5,
    )
    assert own.num_inference_steps == 13
    assert pipeline.vocabulary == info.vocabulary()
    assert pipeline.read_prompts(["a scarlet car"]) == ["a red car"]


def test_without_arguments_it_draws_as_the_model_was_made_to(pipeline, caplog):
    own = dict(guidance_scale=3.0, guidance_rescale=0.5, blob_sigma=0.4, elevation_deg=50.0)
    own = GenerationDefaults(**own, num_inference_steps=2, guidance_scale_with_image=1.0)
    natural = SPADPipeline(**pipeline.components, defaults=own)
    natural.set_progress_bar_config(disable=True)
    told = dict(num_inference_steps=2, guidance_rescale=0.5, blob_sigma=0.4, seed=0)
    at_own_size = Cameras.ring(4, 50.0, -60.0, fov_rad=math.radians(40.2657513), height=128)
    image = Image.new("RGB", (128, 128), "red")
    for given, scale in (({}, 3.0), ({"image": image}, 1.0)):
        drawn = natural("a blue fish", **given)
        expected = natural("a blue fish", at_own_size, guidance_scale=scale, **told, **given)
        assert torch.equal(drawn.latents, expected.latents)
    assert drawn.images[0][0].size == (128, 128)
    assert natural("a fish", Cameras.ring(2)).images[0][0].size == (128, 128)
    assert not caplog.records
    assert natural("a fish", Cameras.ring(2, height=64)).images[0][0].size == (64, 64)
    assert "was trained on images of 128x128: at 64x64 expect" in caplog.text


def test_words_mean_the_same_as_on_the_command_line(tiny_pipeline_folder, cameras, caplog):
    pipeline = SPADPipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    known, other = (
        pipeline(p, cameras, negative_prompt=n).latents
        for p, n in (("a grey rock", "a red house"), ("a gray boulder", "a scarlet cottage"))
    )
    assert torch.equal(known, other)
    assert '"boulder" is not in tiny\'s vocabulary; reading it as "rock"' in caplog.text
    with pytest.raises(ValueError, match="at most 22 words.*got 23"):
        pipeline("fish " * 23, cameras)


def test_one_picture_for_every_prompt_and_camera(pipeline, cameras):
    result = pipeline(["a blue fish", "a grey rock"], cameras, num_inference_steps=2)
    assert [len(views) for views in result.images] == [3, 3]
    assert {view.size for views in result.images for view in views} == {(128, 128)}
    assert result.latents.shape == (2, 3, 16, 8, 8)
    assert result.latents.isfinite().all()


def test_a_prompt_is_drawn_alike_alone_and_in_a_list(pipeline, cameras):
    both = pipeline(["a blue fish", "a grey rock"], cameras, num_inference_steps=2).latents
    alone = pipeline("a grey rock", cameras, num_inference_steps=2).latents
    assert torch.allclose(both[1], alone[0], atol=1e-4)


def test_the_release_s_name_of_the_guidance_scale_is_understood(pipeline, cameras):
    named = {"guidance_scale": 3.0}, {"cfg_scale": 3.0}
    ours, theirs = (
        pipeline("a fish", cameras, num_inference_steps=1, **one).latents for one in named
    )
    assert torch.equal(ours, theirs)


def test_seed_decides(pipeline, cameras):
    first, again, other = (
        pipeline("a grey rock", cameras, num_inference_steps=2, seed=seed).latents
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_guidance_of_one_is_the_prediction_with_text(pipeline, cameras):
    """Linear in the scale: scale 0 ignores the prompt, 1 needs no second branch."""
    without = [
        pipeline(p, cameras, num_inference_steps=1, guidance_scale=0).latents
        for p in ("a blue fish", "a grey rock")
    ]
    assert torch.allclose(*without, atol=1e-5)
    one, two = (
        pipeline("a blue fish", cameras, num_inference_steps=1, guidance_scale=scale).latents
        for scale in (1, 2)
    )
    assert torch.allclose(one - without[0], two - one, atol=1e-3)


def test_rescaled_guidance_keeps_the_deviation_of_the_prediction_with_text():
    predicted = torch.randn(4, 2, 8, 4, 4)
    with_text = predicted[2:]
    over = (1, 2, 3, 4)
    rescaled = SPADPipeline.guide(predicted, 7.5, rescale=1.0)
    torch.testing.assert_close(rescaled.std(over), with_text.std(over))
    plain = SPADPipeline.guide(predicted, 7.5)
    direction = torch.nn.functional.cosine_similarity(rescaled.flatten(1), plain.flatten(1))
    torch.testing.assert_close(direction, torch.ones(2))


def test_negative_prompt_changes_the_pictures(pipeline, cameras):
    plain = pipeline("a blue fish", cameras, num_inference_steps=2).latents
    led_away = pipeline(
        "a blue fish", cameras, negative_prompt="a tall oak tree", num_inference_steps=2
    ).latents
    assert (plain - led_away).abs().max() > 1e-4


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_schedulers_draw(pipeline, cameras, name, prediction_type):
    pipeline.scheduler.register_to_config(prediction_type=prediction_type)
    pipeline.use_scheduler(name)
    assert pipeline.scheduler.config.prediction_type == prediction_type
    latents = pipeline("a blue fish", cameras, num_inference_steps=3).latents
    assert latents.isfinite().all()


def test_solvers_agree_on_where_they_lead(pipeline, cameras):
    """Many steps of any solver follow the same path from the same start."""
    ends = {}
    for name in ("ddim", "dpm++", "euler"):
        pipeline.use_scheduler(name)
        ends[name] = pipeline("a fish", cameras, num_inference_steps=50, guidance_scale=1).latents
    for name in ("dpm++", "euler"):
        error = (ends[name] - ends["ddim"]).norm() / ends["ddim"].norm()
        assert error < 0.15, (name, error)


def test_given_views_are_kept_and_lead_the_others(pipeline, cameras):
    image = Image.new("RGB", (128, 128), "white")
    image.paste((200, 30, 30), (40, 40, 90, 90))
    views = {2: image, 0: image.rotate(90).resize((64, 64))}
    draw = functools.partial(pipeline, "a blue fish", cameras, num_inference_steps=2)
    free = draw(guidance_scale=5.0).latents
    seen_timesteps = []
    forward = pipeline.unet.forward

    def watched(sample, timestep, *args, **kwargs):
        seen_timesteps.append(timestep)
        return forward(sample, timestep, *args, **kwargs)

    pipeline.unet.forward = watched
    led = draw(views=views).latents
    for index, view in views.items():
        expected = pipeline._encode_image(fitted_image_tensor(view, 128, 128))[0, 0]
        assert torch.equal(led[0, index], expected)
    assert not torch.allclose(led[0, 1], free[0, 1], atol=1e-4)
    assert all((t[:, ::2] == 0).all() and (t[:, 1] > 0).all() for t in seen_timesteps[:1])
    pipeline.unet.forward = forward
    first = draw(image=image).latents
    assert torch.equal(first, draw(views={0: image}).latents)
    assert not torch.allclose(first[0, 1], led[0, 1], atol=1e-4)


def test_conditioning_is_computed_once(pipeline, cameras, monkeypatch):
    calls = []
    prepare = pipeline.unet.prepare_views
    monkeypatch.setattr(
        pipeline.unet, "prepare_views", lambda *a, **k: calls.append(1) or prepare(*a, **k)
    )
    pipeline("a blue fish", cameras, num_inference_steps=4)
    assert len(calls) == 1


def test_callback_sees_and_may_replace_latents(pipeline, cameras):
    steps = []

    def callback(_pipeline, step, _timestep, tensors):
        steps.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    result = pipeline("a fish", cameras, num_inference_steps=3, callback_on_step_end=callback)
    assert steps == [0, 1, 2]
    assert not result.latents.any()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_callbacks_see_where_sampling_leads_and_may_end_it(pipeline, cameras, name):
    pipeline.use_scheduler(name)
    seen = []

    class Watch(PipelineCallback):
        tensor_inputs = ["latents", "pred_original_sample"]

        def callback_fn(self, run, step, timestep, tensors):
            assert run.guidance_scale == 2.0 and run.scheduler.num_inference_steps == 2
            seen.append(tensors)
            run._interrupt = step == stop
            return tensors

    draw = functools.partial(pipeline, "a fish", cameras, num_inference_steps=2, cfg_scale=2.0)
    stop = None
    whole = draw(callback_on_step_end=Watch(), image=Image.new("RGB", (9, 9), "red")).latents
    # The last estimate is what comes out, but for the noise that remains.
    torch.testing.assert_close(seen[-1]["pred_original_sample"], whole, rtol=0.1, atol=0.1)
    assert torch.equal(seen[0]["pred_original_sample"][:, 0], whole[:, 0])
    assert len(seen) == 2 and not torch.allclose(seen[0]["latents"], whole)
    seen.clear()
    stop = 0
    assert torch.equal(draw(callback_on_step_end=Watch()).latents, seen[0]["latents"])
    assert len(seen) == 1 and not pipeline.interrupt and pipeline.guidance_scale is None


def test_noise_comes_from_seeds_generators_or_latents(pipeline, cameras):
    def noise(seed, count=1):
        return torch.randn(count, 3, 16, 8, 8, generator=torch.Generator().manual_seed(seed))

    draw = functools.partial(pipeline, num_inference_steps=1, output_type="latent")
    prompts = ["a fish", "a rock"]
    four = draw(prompts, cameras, num_images_per_prompt=2, seed=5).images
    for place, seed in enumerate((5, 6, 5, 6)):
        alone = draw(prompts[place // 2], cameras, seed=seed).images[0]
        torch.testing.assert_close(four[place], alone, rtol=1e-4, atol=1e-4)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 5, 6)]
    for given in (
        {"generator": generators},
        {"latents": torch.cat([noise(5), noise(6)] * 2)},
    ):
        assert torch.equal(draw(prompts, cameras, num_images_per_prompt=2, **given).images, four)
    generator = torch.Generator().manual_seed(7)
    one_for_all = draw(prompts, cameras, generator=generator).images
    assert torch.equal(draw(prompts, cameras, latents=noise(7, 2)).images, one_for_all)


def test_embeddings_stand_for_prompts(pipeline, cameras):
    draw = functools.partial(pipeline, cameras=cameras, num_inference_steps=1)
    expected = draw(["a fish", "a rock"], negative_prompt=["a house", "a tree"]).latents
    embedded = draw(
        prompt_embeds=pipeline.encode_text(["a fish", "a rock"]),
        negative_prompt_embeds=pipeline.encode_text(["a house", "a tree"]),
    ).latents
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-4)
    last = draw("a rock", negative_prompt="a tree").latents
    torch.testing.assert_close(expected[1:], last, rtol=1e-4, atol=1e-4)
    plain = draw(prompt_embeds=pipeline.encode_text(["a fish"])).latents
    torch.testing.assert_close(plain, draw("a fish").latents, rtol=1e-4, atol=1e-4)


def test_output_types_are_those_of_diffusers(pipeline, cameras):
    draw = functools.partial(pipeline, "a fish", cameras, num_inference_steps=1)
    pil, latents = draw(return_dict=False)
    pil = np.stack([np.asarray(view) for view in pil[0]])[None]
    array = draw(output_type="np").images
    assert array.shape == (1, 3, 128, 128, 3) and np.abs(array * 255 - pil).max() <= 0.5 + 1e-3
    tensor = draw(output_type="pt").images
    assert np.array_equal(tensor.movedim(2, -1).numpy(), array)
    assert torch.equal(draw(output_type="latent").images, latents)


def test_one_view_and_many_views(pipeline):
    for count in (1, 12):
        cameras = Cameras.ring(count, height=64, width=64)
        assert len(pipeline("a fish", cameras, num_inference_steps=1).images[0]) == count


def test_rectangular_pictures(pipeline):
    cameras = Cameras.ring(2, height=64, width=96)
    image = pipeline("a fish", cameras, num_inference_steps=1).images[0][0]
    assert image.size == (96, 64)


def test_saved_and_loaded_it_draws_the_same(pipeline, cameras, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = SPADPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    expected = pipeline("a blue fish", cameras, num_inference_steps=2).latents
    assert torch.equal(loaded("a blue fish", cameras, num_inference_steps=2).latents, expected)


def test_lora_layers_train_and_load(pipeline, cameras, tmp_path):
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    before = pipeline("a blue fish", cameras, num_inference_steps=3).latents
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "proj_in"])
    pipeline.unet.add_adapter(config)
    for name, weight in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted = pipeline("a blue fish", cameras, num_inference_steps=3).latents
    assert (before - adapted).abs().max() > 1e-3
    layers = peft.utils.get_peft_model_state_dict(pipeline.unet)
    SPADPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    pipeline.unet.delete_adapters("default")
    pipeline.load_lora_weights(tmp_path)
    loaded = pipeline("a blue fish", cameras, num_inference_steps=3).latents
    assert torch.allclose(loaded, adapted, atol=1e-5)


def test_blob_is_dark_inside_and_white_in_the_corners():
    blob = gaussian_blob(64, 64, 0.5)
    assert blob.shape == (3, 64, 64)
    assert blob[:, 0, 0].tolist() == [1, 1, 1]
    assert -1 < blob.min() < -0.9
    assert gaussian_blob(64, 64, 0.2).mean() > blob.mean()


def test_blob_equals_the_original(shared_dir):
    recorded = np.load(shared_dir / "golden" / "gaussian_blob.npz")
    for name, blob in {
        "s5_256": gaussian_blob(256, 256, 0.5)[0],
        "s5_64": gaussian_blob(64, 64, 0.5)[0],
        "s2_256_row128": gaussian_blob(256, 256, 0.2)[0, 128],
        "s7_256_row128": gaussian_blob(256, 256, 0.7)[0, 128],
    }.items():
        assert np.abs(blob.numpy() - recorded[name]).max() < 2e-6, name


def test_pictures_are_put_on_white_and_padded():
    picture = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 20, 20))
    pixels = fitted_image_tensor(picture, 40, 40)
    assert pixels[:, 0, 0].tolist() == [1, 1, 1], "padding is white"
    assert pixels[:, 20, 5].tolist() == [1, 1, 1], "transparent is white"
    assert pixels[:, 20, 35].tolist() == [1, -1, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "empty"),
        ({"prompt": []}, "empty"),
        ({"num_inference_steps": 0}, "steps"),
        ({"num_inference_steps": 1001}, "steps"),
        ({"guidance_scale": -1}, "guidance"),
        ({"guidance_rescale": 2}, "guidance_rescale"),
        ({"guidance_scale": float("nan")}, "guidance"),
        ({"blob_sigma": 0}, "blob_sigma"),
        ({"cameras": Cameras.ring(2, height=100, width=128)}, "try 96"),
        ({"prompt": None}, "prompt_embeds, got neither"),
        ({"prompt_embeds": torch.zeros(1, 24, 64)}, "prompt_embeds, got both"),
        ({"negative_prompt": ["a", "b"]}, "one negative_prompt, or 1, one per prompt, got 2"),
        ({"negative_prompt_embeds": torch.zeros(2, 24, 64)}, "of one shape"),
        ({"cfg_scale": 2, "guidance_scale": 3}, "alias cfg_scale, got both"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt of 1 or more"),
        ({"seed": 1, "latents": torch.zeros(1, 3, 16, 8, 8)}, "got seed and latents"),
        ({"latents": torch.zeros(1, 2, 16, 8, 8)}, r"latents of shape \(1, 3, 16, 8, 8\)"),
        ({"generator": [torch.Generator()] * 2}, "expected 1 generators"),
        ({"output_type": "jpg"}, "pil, np, pt or latent"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "among latents, pred_orig"),
        ({"views": {3: Image.new("RGB", (9, 9))}}, "among 0 to 2.*got 3"),
        ({"views": {1: "a.png"}}, "view 1 to be a PIL image"),
        (dict.fromkeys(["image"], Image.new("RGB", (9, 9))) | {"views": {0: 1}}, "got both"),
    ],
)
def test_bad_arguments_are_refused(pipeline, cameras, change, message):
    arguments = {"prompt": "a fish", "cameras": cameras, "num_inference_steps": 1} | change
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_unknown_scheduler_is_refused(pipeline):
    with pytest.raises(ValueError, match="ddim, dpm"):
        pipeline.use_scheduler("magic")


def test_bfloat16_draws_nearly_the_same(pipeline, cameras):
    draw = functools.partial(
        pipeline, "a blue fish", cameras, num_inference_steps=4, guidance_scale=2
    )
    exact = draw().latents
    rough = pipeline.to(torch.bfloat16) and draw().latents
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.05 * exact.norm()


def test_deep_blocks_run_only_on_every_so_many_steps(pipeline, cameras):
    calls = []
    deep, shallow = pipeline.unet.mid_block, pipeline.unet.conv_in
    for module, name in ((deep.resnets[0], "deep"), (shallow, "shallow")):
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    draw = functools.partial(pipeline, "a blue fish", cameras, num_inference_steps=5)
    exact = draw().latents
    assert (calls.count("deep"), calls.count("shallow")) == (5, 5)
    calls.clear()
    cached = draw(deep_cache_interval=2).latents
    assert (calls.count("deep"), calls.count("shallow")) == (3, 5)
    assert 0 < (cached - exact).norm() < exact.norm()
    calls.clear()
    # Nothing of it stays behind.
    assert torch.equal(draw().latents, exact) and calls.count("deep") == 5
    with pytest.raises(ValueError, match="cache interval of 1 or more"):
        draw(deep_cache_interval=0)


@pytest.mark.parametrize("is_shared", [True, False])
def test_threads_that_share_a_unet_draw_what_each_would_alone(pipeline, cameras, is_shared):
    pipeline.use_scheduler("dpm++")
    pipelines = [pipeline, pipeline if is_shared else SPADPipeline(**pipeline.components)]
    if not is_shared:
        pipelines[1].use_scheduler("euler")
    for one in pipelines:
        one.set_progress_bar_config(disable=True)
    meet = threading.Barrier(2, timeout=60)
    image = Image.new("RGB", (64, 64), "red")

    def draw(number: int, wait: bool) -> torch.Tensor:
        def callback(*_):
            if wait:
                meet.wait()

        return pipelines[number](
            ["a blue fish", "a grey rock"][number],
            cameras[: 2 + number],
            num_inference_steps=4,
            deep_cache_interval=1 + number,
            views={number: image},
            callback_on_step_end=callback,
        ).latents

    alone = [draw(number, wait=False) for number in (0, 1)]
    # They take every step at the same time.
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(draw, (0, 1), (True, True)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not any("forward" in vars(module) for module in pipeline.unet.modules())


@pytest.mark.parametrize("way", ["model", "leaf_level", "block_level"])
def test_offloaded_components_draw_the_same(pipeline, cameras, tmp_path, way):
    """Weights that are not read back from the disk in time are empty."""
    draw = functools.partial(pipeline, "a blue fish", cameras, num_inference_steps=2)
    expected = draw().latents
    cpu = torch.device("cpu")
    if way == "model":
        pipeline.enable_model_cpu_offload(device=cpu)
    else:
        pipeline.enable_group_offload(
            cpu, offload_type=way, num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
        )
    for _ in range(2):
        torch.testing.assert_close(draw().latents, expected, rtol=1e-4, atol=1e-4)


def test_the_decoder_works_in_slices_and_tiles(pipeline):
    torch.nn.init.normal_(pipeline.vae.refiner.conv_out.weight, std=0.01)
    cameras = Cameras.ring(2, height=192, width=256)
    draw = functools.partial(pipeline, "a fish", cameras, num_inference_steps=1, output_type="pt")
    whole = draw().images
    pipeline.vae.enable_slicing()
    torch.testing.assert_close(draw().images, whole)
    pipeline.vae.enable_tiling()
    tiles = draw().images
    assert tiles.shape == whole.shape and 0 < (tiles - whole).abs().mean() < 0.02


def test_what_would_hide_views_from_each_other_is_refused(pipeline):
    for enable in (
        pipeline.enable_attention_slicing,
        pipeline.enable_xformers_memory_efficient_attention,
        pipeline.unet.fuse_qkv_projections,
    ):
        with pytest.raises(ValueError, match="views see each other"):
            enable()
    pipeline.disable_attention_slicing()


def test_bfloat16_is_automatic_where_it_is_fast(tiny_pipeline_folder, monkeypatch, caplog):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: device.type == "cpu")
    precision._say_bfloat16.cache_clear()
    with caplog.at_level("INFO"):
        for load in (SPADPipeline.from_pretrained, load_model):
            assert load(tiny_pipeline_folder).to("cpu").unet.dtype == torch.bfloat16
    assert caplog.text.count("computing in bfloat16") == 1 and "float32" in caplog.text
    for load in (SPADPipeline.from_pretrained, load_model):
        assert load(tiny_pipeline_folder, dtype=torch.float32).to("cpu").vae.dtype == torch.float32
    pipeline = SPADPipeline.from_pretrained(tiny_pipeline_folder)
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: False)
    # A chosen type follows the device; one that was asked for stays.
    assert pipeline.to("cpu").text_encoder.dtype == torch.float32
    assert pipeline.to(torch.float16).to("cpu").unet.dtype == torch.float16
    with pytest.raises(ValueError, match="dtype such as torch.float32"):
        load_model(tiny_pipeline_folder, dtype="bf16")


def test_an_error_between_steps_leaves_the_model_as_it_was(pipeline, cameras):
    def fail(*_):
        raise KeyboardInterrupt

    before = {name: vars(m).get("forward") for name, m in pipeline.unet.named_modules()}
    with pytest.raises(KeyboardInterrupt):
        pipeline(
            "a blue fish",
            cameras,
            num_inference_steps=2,
            deep_cache_interval=2,
            callback_on_step_end=fail,
        )
    after = {name: vars(m).get("forward") for name, m in pipeline.unet.named_modules()}
    assert after == before
