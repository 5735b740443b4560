"""Training a denoiser on a few colored discs: what learns, what a step sees, what is written."""

import functools
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from made_renders import SIZE, write_renders
from parity import Golden, converted_tiny
from spad.data.config import PackConfig
from spad.data.pack import pack
from spad.data.renders import is_held_out
from spad.hub.registry import check_files, load_model, model_info, save_model_manifest
from spad.model import MultiViewUNet, SPADPipeline
from spad.model.word_tokenizer import tokenize
from spad.training.batches import Batch
from spad.training.build import NEW_LAYERS
from spad.training.config import PRESETS
from spad.training.cost import check_space
from spad.training.dry_run import dry_run
from spad.training.samples import generation_defaults
from spad.training.train import Trainer, train
from train_settings import changed

# Which new layers read rays.
RAY_LAYERS = {
    "map": {"plucker"},
    "qk": {"ray_encoding"},
    "both": {"plucker", "ray_encoding"},
    "none": set(),
}


def load_exactly(folder: Path) -> SPADPipeline:
    return load_model(folder, "cpu", torch.float32)


def gradients(trainer: Trainer, batch: Batch) -> dict[str, torch.Tensor]:
    """Of a whole step, made of micro-batches as `train_step` makes it, before clipping."""
    trainer.next_batch = lambda step: batch
    kept = {}
    step = trainer.optimizer.step

    def keep():
        learned = trainer.denoiser.trainable().items()
        kept.update({n: p.grad.clone() for n, p in learned if p.grad is not None})
        step()

    trainer.optimizer.step = keep
    trainer.train_step(0)
    return kept


def hashes(module: torch.nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest()
        for name, p in module.named_parameters()
    }


def test_it_learns(training):
    """The same batch again and again: its loss falls by half."""
    trainer = Trainer(changed(training, steps=1000, learning_rate=2e-3, views=(4,)))
    batch = trainer.next_batch(0)
    trainer.next_batch = lambda step: batch
    losses = [trainer.train_step(step)["loss"] for step in range(40)]
    assert min(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "min_snr_gamma": 5.0},
        {"prediction_type": "v_prediction", "optimizer": "adamw"},
        {"optimizer": "adafactor", "mixed_precision": "bf16", "offset_noise": 0.1},
        {"epipolar": "original", "intrinsics": True, "cameras": "relative", "ema_decay": 0.0},
    ],
    ids=["mini", "epsilon", "velocity-adamw", "adafactor-bf16", "original-masks"],
)
def test_every_weight_learns(training, changes):
    trainer = Trainer(changed(training, views=(4,), **changes))
    before = {name: p.detach().clone() for name, p in trainer.denoiser.trainable().items()}
    for step in range(3):
        assert trainer.train_step(step)["loss"] > 0
    still = [n for n, p in trainer.denoiser.trainable().items() if torch.equal(before[n], p)]
    assert not still


@pytest.mark.parametrize("changes", [{"micro_batch_size": 4}, {"gradient_checkpointing": True}])
def test_parts_of_a_batch_and_stored_activations_change_no_gradient(training, changes):
    plain = changed(training, views=(4,), max_grad_norm=1e9)
    trainer = Trainer(plain)
    batch = trainer.next_batch(0)
    expected = gradients(trainer, batch)
    for name, gradient in gradients(Trainer(changed(plain, **changes)), batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_micro_batches_of_unequal_size_are_weighed_by_their_objects(training):
    plain = changed(training, views=(2,), max_grad_norm=1e9)
    trainer = Trainer(plain)
    batch = trainer.next_batch(0)
    assert [len(part.keys) for part in batch.split(6)] == [3, 1]
    expected = gradients(trainer, batch)
    for name, gradient in gradients(Trainer(changed(plain, micro_batch_size=6)), batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_average_equals_its_formula(training):
    trainer = Trainer(changed(training, ema_decay=0.9))
    name, weight = next(iter(trainer.denoiser.trainable().items()))
    average = weight.detach().clone()
    for step in range(8):
        trainer.train_step(step)
        # diffusers' warm-up: EMAModel, inv_gamma 1 and power 3/4, from the first step on.
        decay = min(0.9, 1 - (1 + step) ** -0.75) if step else 0.0
        average = decay * average + (1 - decay) * weight.detach()
    with trainer.ema_weights():
        torch.testing.assert_close(trainer.denoiser.trainable()[name].detach(), average)
    assert not torch.equal(weight.detach(), average)


def test_a_run_may_become_longer_until_its_rate_falls(training, tmp_path):
    """And is then the run that it would have been from the start."""
    short, longer = (changed(training, steps=steps) for steps in (6, 12))
    trainer = Trainer(changed(short, output=tmp_path / "stopped"))
    assert trainer.settings.optimizer.lr_schedule == "cooldown"
    run = trainer.run()
    with run.opened() as start:
        stop = replace(run, total_steps=4)
        stop.run(trainer.train_step, start)
    # The learning rate of 6 steps falls from the fifth on: four steps are those of any length.
    train(changed(longer, output=tmp_path / "stopped"))
    train(changed(longer, output=tmp_path / "whole"))
    models = [load_exactly(tmp_path / name / "model").unet for name in ("stopped", "whole")]
    for weight, expected in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(weight, expected)
    for steps in (6, 24):
        with pytest.raises(ValueError, match=f"steps: 12 -> {steps}"):
            train(changed(longer, steps=steps, output=tmp_path / "whole"))


@pytest.fixture
def base(training, tmp_path) -> str:
    """A trained model to go on from."""
    return str(train(changed(training, output=tmp_path / "base", steps=2)))


def test_a_model_of_whole_words_learns_those_of_new_captions(training, tmp_path, caplog):
    caplog.set_level("INFO", logger="spad")
    ids = tmp_path / "ids.txt"
    ids.write_text("object2\n")
    base = str(train(changed(training, output=tmp_path / "base", steps=2, objects=ids)))
    old, settings = load_exactly(base), changed(training, init=base)
    old_ids = old.tokenizer("disc 2").input_ids
    assert old.tokenizer.unk_token_id in old.tokenizer("disc 3").input_ids

    trainer = Trainer(settings)
    pipeline = trainer.pipeline
    assert "words added to the vocabulary, as in 'disc 0'" in caplog.text
    assert pipeline.tokenizer("disc 2").input_ids == old_ids
    # What it knew means what it meant, and a new word what an unknown one did.
    with torch.no_grad():
        for known, prompt in (("disc 2", "disc 2"), ("disc 9", "disc 3")):
            torch.testing.assert_close(
                pipeline.text_encoder(tokenize(pipeline.tokenizer, [prompt])).last_hidden_state,
                old.text_encoder(tokenize(old.tokenizer, [known])).last_hidden_state,
            )

    trained = load_exactly(train(settings))
    written = [tokenize(p.tokenizer, trainer.captions).tolist() for p in (trained, pipeline)]
    assert written[0] == written[1]
    assert all(trained.tokenizer.unk_token_id not in ids for ids in written[0])
    assert len(trained.text_encoder.get_input_embeddings().weight) == len(trained.tokenizer)


@pytest.mark.parametrize(
    ("trainable", "train_text_encoder", "learns"),
    [
        ("all", False, lambda name: name.startswith("unet.")),
        ("new-layers", False, lambda name: any(new in name for new in NEW_LAYERS)),
        (
            "lora",
            False,
            lambda name: "lora_" in name or any(new in name for new in NEW_LAYERS),
        ),
    ],
)
def test_frozen_weights_stay_as_they_are(training, base, trainable, train_text_encoder, learns):
    settings = changed(
        training, init=base, trainable=trainable, train_text_encoder=train_text_encoder, views=(4,)
    )
    trainer = Trainer(settings)
    before, vae = hashes(trainer.denoiser), hashes(trainer.pipeline.vae)
    for step in range(3):
        trainer.train_step(step)
    after = hashes(trainer.denoiser)
    moved = {name for name in after if before[name] != after[name]}
    assert moved == {name for name in after if learns(name)} and moved
    assert hashes(trainer.pipeline.vae) == vae
    assert trainer.parts()["denoiser"].state_dict().keys() == moved


def test_a_lora_run_ends_in_a_plain_model(training, base):
    settings = changed(training, init=base, trainable="lora", train_text_encoder=False, lora_rank=4)
    folder = train(settings)
    trained, before = (
        load_exactly(folder).unet.state_dict(),
        load_exactly(base).unet.state_dict(),
    )
    assert trained.keys() == before.keys()
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    update = trained[name] - before[name]
    assert 1 <= torch.linalg.matrix_rank(update, rtol=1e-4) <= 4
    frozen = "mid_block.resnets.0.conv1.weight"
    assert torch.equal(trained[frozen], before[frozen])


@pytest.mark.parametrize("init", [False, True], ids=["from scratch", "from a model"])
def test_the_ablations_of_masks_and_rays_are_two_flags(training, base, init):
    start = base if init else None
    settings = changed(training, init=start, views=(4,))
    for (rays, layers), epipolar in zip(RAY_LAYERS.items(), ("exact", "none") * 2, strict=True):
        other = changed(settings, epipolar=epipolar, rays=rays)
        unet = Trainer(other).denoiser.unet
        assert (unet.config.epipolar, unet.config.rays) == (epipolar, rays)
        names = list(unet.state_dict())
        assert {n for n in ("plucker", "ray_encoding") if any(n in x for x in names)} == layers
    trainer = Trainer(changed(settings, camera_embedding=False))
    assert trainer.denoiser.unet.camera_embedding is None
    assert trainer.train_step(0)["loss"] > 0


@pytest.mark.parametrize("rays", ["map", "qk"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_layers_of_rays_may_learn_faster_than_the_others(training, base, rays, optimizer):
    """In the first step, AdamW moves every weight by the learning rate."""
    settings = changed(
        training, init=base, rays=rays, optimizer=optimizer, views=(4,), weight_decay=0.0,
        lr_schedule="constant", warmup_steps=1,
    )  # fmt: skip
    moved = []
    for rate in (1.0, 20.0):
        trainer = Trainer(changed(settings, ray_rate=rate))
        before = {name: p.detach().clone() for name, p in trainer.denoiser.trainable().items()}
        trainer.train_step(0)
        after = trainer.denoiser.trainable()
        moved.append({name: (after[name] - weight).detach() for name, weight in before.items()})
    plain, faster = moved
    names = {name for name in plain if any(ray in name for ray in ("plucker.", "ray_encoding."))}
    assert names
    for name, step in plain.items():
        expected = 20 * step if name in names else step
        torch.testing.assert_close(faster[name], expected, rtol=1e-4, atol=1e-7, msg=name)
    with pytest.raises(ValueError, match=r"expected --rays map, qk or both with --ray-rate 20"):
        Trainer(changed(settings, rays="none", ray_rate=20.0))


def test_switching_layers_keeps_all_other_weights(training, base):
    before = load_exactly(base).unet.state_dict()
    trainer = Trainer(changed(training, init=base, rays="none", epipolar="none"))
    for name, weight in trainer.denoiser.unet.state_dict().items():
        assert torch.equal(weight, before[name]), name
    with pytest.raises(ValueError, match="camera vector"):
        Trainer(changed(training, init=base, cameras="relative"))


def test_a_run_goes_on_from_a_saved_model(training, base):
    on = train(changed(training, init=base, steps=1, learning_rate=0.0))
    before, after = (load_exactly(folder).unet.state_dict() for folder in (base, on))
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name


@pytest.mark.parametrize("solver", ["euler", "original"])
def test_a_model_keeps_the_cameras_and_the_solver_it_started_with(training, base, solver):
    start, pipeline = model_info(base), load_exactly(base)
    own = replace(start.defaults, elevation_deg=45.0, start_azimuth_deg=0.0, scheduler=solver)
    pipeline.use_scheduler(solver)
    pipeline.save_pretrained(start.path)
    save_model_manifest(start.path, start.name, start.description, start.captions(), own)
    settings = changed(training, init=base, views=(2,), guidance_scale=3.0)
    expected = replace(own, guidance_scale=3.0, guidance_rescale=settings.record.guidance_rescale)
    found = generation_defaults(settings, Trainer(settings).pipeline)
    assert found == expected
    other = changed(settings, prediction_type="epsilon", rescale_betas_zero_snr=False)
    found = generation_defaults(other, Trainer(other).pipeline)
    assert found == replace(expected, scheduler="ddim" if solver == "original" else solver)


def test_a_converted_release_goes_on_learning(training, shared_dir, tmp_path):
    release = converted_tiny(Golden(shared_dir / "golden"), tmp_path)
    settings = changed(
        training,
        init=str(release),
        train_text_encoder=False,
        word_dropout=0.0,
        views=(2,),
        timestep_shift=1.0,
        gradient_checkpointing=True,
    )
    trainer = Trainer(settings)
    assert trainer.denoiser.unet.config.epipolar == "original"
    assert trainer.objective.scheduler.config.prediction_type == "epsilon"
    model = load_exactly(train(settings))
    assert model.config.prompt_prefix == "[tdv] "
    before = load_exactly(release).unet.state_dict()
    assert any(not torch.equal(w, before[name]) for name, w in model.unet.state_dict().items())


def test_words_that_stay_unknown_are_said(training, base, renders, tmp_path, caplog):
    other = shutil.copytree(renders, tmp_path / "renders")
    listing = other / "objects.jsonl"
    listing.write_text(listing.read_text().replace("disc 3", "saucer 3"))
    pack(PackConfig(other, tmp_path / "packed"))
    settings = changed(training, data=tmp_path / "packed", init=base, train_text_encoder=False)
    tokenizer = Trainer(settings).pipeline.tokenizer
    assert tokenizer.unk_token_id in tokenizer("saucer 3").input_ids
    assert "1 of 6 captions have words" in caplog.text and "saucer 3" in caplog.text


def test_held_out_objects_are_never_seen(training, monkeypatch):
    assert Trainer(training).objects.num_objects == 6
    import spad.training.batches

    held_out = ("object1", "object4")
    monkeypatch.setattr(spad.training.batches, "is_held_out", lambda uid: uid in held_out)
    trainer = Trainer(training)
    seen = {caption for step in range(30) for caption in trainer.next_batch(step).captions}
    assert seen == {"disc 0", "disc 2", "disc 3", "disc 5"}
    assert sum(is_held_out(f"{n}") for n in range(1600)) == pytest.approx(100, abs=30)


def test_only_listed_objects_are_learned_from(training, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("object2\nobject3\nnot there\n")
    trainer = Trainer(changed(training, objects=ids))
    seen = {caption for step in range(9) for caption in trainer.next_batch(step).captions}
    assert seen == {"disc 2", "disc 3"}


def test_captions_and_words_are_dropped_as_often_as_asked(training):
    trainer = Trainer(changed(training, caption_dropout=0.5, word_dropout=0.25, views=(1,)))
    tokenizer = trainer.pipeline.tokenizer
    none = torch.zeros(8, dtype=torch.bool)
    ids = torch.cat([trainer.tokens(trainer.next_batch(step), none).ids[0] for step in range(60)])
    words = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    kept = [
        row
        for row, text in zip(ids, words, strict=True)
        if (row != tokenizer.pad_token_id).sum() > 2
    ]
    assert 0.4 < len(kept) / len(ids) < 0.6
    unknown = (torch.stack(kept) == tokenizer.unk_token_id).sum() / (2 * len(kept))
    assert 0.15 < unknown < 0.35


def test_where_a_view_is_given_captions_are_dropped_at_their_own_rate(training):
    shares = {"caption_dropout": 0.0, "clean_view_caption_dropout": 1.0}
    trainer = Trainer(changed(training, clean_view_prob=0.5, views=(4,), **shares))
    nothing = trainer.pipeline.tokenizer("").input_ids
    seen = set()
    for step in range(10):
        batch = trainer.next_batch(step)
        *_, noised = trainer.losses(batch)
        given = (noised.timesteps == 0).any(1)
        ids = trainer.tokens(batch, noised.has_clean_view).ids[0]
        empty = (ids[:, : len(nothing)] == torch.tensor(nothing)).all(1)
        assert torch.equal(empty, given)
        seen |= set(given.tolist())
    assert seen == {True, False}


def test_stored_latents_are_the_images_encoded(training, base, renders, tmp_path):
    packed = tmp_path / "packed"
    pack(PackConfig(renders, packed, objects_per_shard=3, latents=base))
    trainers = [Trainer(changed(training, data=data)) for data in (training.data, packed)]
    assert [trainer.objects.parts for trainer in trainers] == [("images",), ("latents",)]
    for step in range(3):
        pixels, latents = (trainer.next_batch(step) for trainer in trainers)
        assert pixels.captions == latents.captions
        encoded = trainers[0].latents(pixels.views, are_pixels=True)
        torch.testing.assert_close(encoded, latents.views.float(), atol=2e-3, rtol=2e-3)


def test_batches_are_consistent(training, renders):
    """Pictures, cameras and captions of a batch belong to the same views."""
    from spad.data.renders import read_renders
    from spad.images.pixels import image_tensor

    known = {o.captions[0]: o for o in read_renders(renders)}
    trainer = Trainer(training)
    for step in range(5):
        batch = trainer.next_batch(step)
        poses = batch.cameras.world_from_cam.unflatten(0, batch.views.shape[:2])
        for views, pose, caption in zip(batch.views, poses, batch.captions, strict=True):
            images = image_tensor(known[caption].images())
            for view, one in zip(views, pose, strict=True):
                number = (images == view).flatten(1).all(1).nonzero()[0, 0]
                assert torch.equal(known[caption].cameras.world_from_cam[number], one)


def test_reduced_images_are_means_of_areas_seen_by_the_same_cameras(training):
    whole, reduced = Trainer(training), Trainer(changed(training, image_size=32))
    assert reduced.pipeline.image_size == reduced.image_size == 32
    for step in range(3):
        large, small = whole.next_batch(step), reduced.next_batch(step)
        blocks = large.views.unflatten(-1, (32, 2)).unflatten(-3, (32, 2))
        torch.testing.assert_close(small.views, blocks.mean((-3, -1)))
        assert (small.captions, small.keys) == (large.captions, large.keys)
        assert (small.cameras.height, small.cameras.width) == (32, 32)
        point = torch.tensor([[0.1, -0.2, 0.3]])
        (xy, depth), (half, same) = (x.cameras.project(point) for x in (large, small))
        torch.testing.assert_close(half, xy / 2)
        torch.testing.assert_close(same, depth)


def test_a_model_learns_another_size_if_told(training, base):
    small = train(changed(training, init=base, image_size=32, steps=1, learning_rate=0.0))
    before, after = load_exactly(base), load_exactly(small)
    assert (before.image_size, after.image_size) == (64, 32)
    for name, weight in before.unet.state_dict().items():
        assert torch.equal(weight, after.unet.state_dict()[name]), name
    large = changed(training, init=str(small), image_size=64)
    assert Trainer(large).train_step(0)["loss"] > 0


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in (("a.png", "red"), ("b.jpg", "blue")):
        Image.new("RGB", (90, 70), color).save(folder / name)
    rows = [{"file_name": "a.png", "text": "red"}, {"file_name": "b.jpg", "text": "blue"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_single_images_are_mixed_in_and_touch_no_camera(training, pictures):
    trainer = Trainer(changed(training, images=pictures, image_batch_prob=0.5))
    batches = [trainer.next_batch(step) for step in range(40)]
    flat = [batch for batch in batches if batch.cameras is None]
    assert 10 <= len(flat) <= 30
    assert flat[0].views.shape == (8, 1, 3, 64, 64)
    red = flat[0].views[flat[0].captions.index("red")]
    assert red[0, 0].min() > 0.9 and red[0, 1:].max() < -0.9
    found = gradients(Trainer(changed(training, images=pictures)), flat[0])
    assert found and not [name for name in found if any(new in name for new in NEW_LAYERS)]


@pytest.fixture(scope="module")
def shards_with_depth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    uids = [f"deep{i}" for i in range(8)]
    write_renders(folder / "renders", uids, passes=("depth",))
    pack(PackConfig(folder / "renders", folder / "shards"))
    return folder / "shards"


def test_some_steps_give_depth_and_train_its_layers(training, shards_with_depth):
    settings = changed(training, data=shards_with_depth, depth_prob=0.5, micro_batch_size=4)
    trainer = Trainer(settings)
    batches = [trainer.next_batch(step) for step in range(40)]
    deep = [batch for batch in batches if batch.depth is not None]
    assert 10 <= len(deep) <= 30
    for batch in deep:
        parts = [part.depth for part in batch.split(4)]
        assert torch.equal(torch.cat(parts), batch.depth)
        assert batch.depth.shape == (8, SIZE, SIZE)
    other = next(batch for batch in batches if batch.depth is None)
    for batch, is_trained in ((deep[0], True), (other, False)):
        found = gradients(Trainer(settings), batch)
        assert any("depth_projection" in name for name in found) == is_trained
    # Depth is of half as many pixels, none of them mixed of two.
    large, small = (
        Trainer(changed(settings, image_size=size, depth_prob=1.0)).next_batch(0).depth
        for size in (SIZE, SIZE // 2)
    )
    blocks = torch.nn.functional.pixel_unshuffle(large[:, None], 2)
    assert (blocks == small[:, None]).any(1).all()


def test_depth_needs_shards_with_depth(training):
    with pytest.raises(ValueError, match="has no depth; render with --passes depth"):
        Trainer(changed(training, depth_prob=0.5))


def test_a_model_learns_depth_later_and_keeps_it(training, shards_with_depth, tmp_path):
    first = train(changed(training, steps=1))
    assert load_exactly(first).unet.config["depth_patch"] == 0
    settings = changed(
        training, data=shards_with_depth, init=str(first), image_size=SIZE, depth_prob=1.0
    )
    second = load_exactly(train(changed(settings, output=tmp_path / "second", steps=2)))
    assert second.unet.config["depth_patch"] == second.vae_downscale
    assert second.unet.depth_projection.conv.weight.any()


def test_a_run_leaves_images_a_table_and_a_model_with_its_card(training, disc_shards):
    settings = changed(
        training, sample_every=3, trackers=("tensorboard",), license="CC0-1.0", author="us"
    )
    folder = train(settings)
    run = settings.run_folder
    assert [p.name for p in sorted((run / "samples").iterdir())] == [
        "step-00000003.png",
        "step-00000004.png",
    ]
    head, *rows = (run / "loss.csv").read_text().splitlines()
    assert head.startswith(
        "step,loss,objects_per_s,gradient_norm,learning_rate,data_wait,memory_gb"
    )
    assert "error_0_250" in head and len(rows) == 4
    (events,) = (run / "spad").glob("events*")
    assert b"samples" in events.read_bytes() and b"gradient_norm" in events.read_bytes()
    model = model_info(folder)
    check_files(model)
    assert (model.name, model.license) == ("run", "CC0-1.0")
    assert "disc 2" in model.captions()
    card = (folder / "README.md").read_text()
    for part in ("samples.png", "6 objects", '"learning_rate"', "loss.svg", "us."):
        assert part in card
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md", ".txt", ".csv"):
            assert str(run.parent) not in path.read_text(), path


def test_bf16_gives_nearly_the_loss_of_fp32(training):
    losses = []
    for kind in ("no", "bf16"):
        AcceleratorState._reset_state()
        settings = changed(training, mixed_precision=kind, views=(4,))
        losses.append(Trainer(settings).train_step(0)["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[0] != losses[1]


def test_a_compiled_model_learns_the_same(training, monkeypatch):
    """Without the compiler proper, which takes minutes on a CPU."""
    captured = functools.partialmethod(MultiViewUNet.compile, backend="aot_eager")
    monkeypatch.setattr(MultiViewUNet, "compile", captured)
    losses = [
        Trainer(changed(training, compile=compiled, views=(2,))).train_step(0)["loss"]
        for compiled in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
def test_a_gpu_learns_what_the_cpu_learns(training, mixed_precision):
    losses = []
    for device, kind in (("cpu", "no"), ("cuda", mixed_precision)):
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = Trainer(changed(training, device=device, mixed_precision=kind))
        losses.append([trainer.train_step(step)["loss"] for step in range(5)])
    tolerance = 1e-3 if mixed_precision == "no" else 0.1
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


def test_the_cost_is_told_and_nothing_is_written(training):
    said = dry_run(changed(training, steps=100))
    parts = ("M parameters", "6 objects of 4 views", "threads", "s a step", "GB", "100 steps")
    for part in parts:
        assert part in said
    assert not training.run_folder.exists()


def test_a_disk_too_small_is_said_before_the_first_step(training, monkeypatch):
    trainer = Trainer(training)
    monkeypatch.setattr("spad.training.cost.free_space", lambda folder: 10_000)
    with pytest.raises(ValueError, match=r"GB of free disk for 2 checkpoints"):
        check_space(trainer.sizes(), training)
    with pytest.raises(ValueError, match="free disk"):
        train(training)
    assert not (training.run_folder / "checkpoints").exists()


def test_presets_are_the_papers_settings():
    two, four = PRESETS["two-views"], PRESETS["four-views"]
    assert (two.optimizer.learning_rate, four.optimizer.learning_rate) == (1e-4, 2e-5)
    assert (two.batch.views, four.batch.views) == ((2,), (4,))
    assert (two.model.cameras, two.model.intrinsics) == ("relative", False)
    assert (four.model.cameras, four.model.intrinsics) == ("absolute", True)
    for preset in (two, four):
        assert preset.loss.prediction_type == "epsilon" and preset.optimizer.warmup_steps == 100
        assert not preset.model.train_text_encoder and preset.optimizer.lr_schedule == "constant"
