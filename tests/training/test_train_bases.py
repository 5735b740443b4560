"""Training from base models: a tiny Stable Diffusion XL, frozen beside what is learned."""

import pytest
import torch
from accelerate.state import AcceleratorState

from spad.hub.base_model import init_from_base
from spad.hub.config import InitFromBaseConfig
from spad.hub.registry import load_model
from spad.model import MultiViewUNet
from spad.model.schedulers import SCHEDULERS
from spad.training import train as training_module
from spad.training.build import NEW_LAYERS
from spad.training.config import PRESETS
from spad.training.dry_run import dry_run
from spad.training.memory import activations, resident
from spad.training.train import Trainer, train
from tiny_bases import TINY, plain_pipeline, tokenizer_folder
from train_settings import changed


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """A tiny untrained SPAD of Stable Diffusion XL, for images of the colored discs' size."""
    folder = tmp_path_factory.mktemp("sdxl")
    plain = plain_pipeline(TINY["sdxl"], tokenizer_folder(folder / "tokenizer"))
    plain.save_pretrained(folder / "plain")
    return str(init_from_base(InitFromBaseConfig(folder / "plain", folder / "base", image_size=64)))


@pytest.fixture
def settings(training, sdxl):
    """The preset, with a few views in a few steps."""
    return changed(
        PRESETS["sdxl"],
        data=training.data,
        output=training.output,
        init=sdxl,
        steps=2,
        views=(2,),
        view_sampling="random",
        batch_size=2,
        warmup_steps=0,
        caption_dropout=0.5,
        mixed_precision="bf16",
        gradient_checkpointing=False,
        device="cpu",
        num_workers=0,
        sample_every=0,
        trackers=(),
        save_dtype="float32",
    )


def test_the_preset_learns_beside_a_base_model_that_stays_as_it_is(settings, sdxl):
    samples = {"sample_every": 2, "num_inference_steps": 1, "sample_prompts": ("a red disc",)}
    settings = changed(settings, gradient_checkpointing=True, **samples)
    trained = load_model(train(settings), "cpu", torch.float32)
    base = load_model(sdxl, "cpu", torch.float32)
    assert trained.unet.config.view_attention == "added"
    assert len(list((settings.run_folder / "samples").iterdir())) == 1
    before = base.unet.state_dict()
    weights = trained.unet.state_dict()
    new = {name for name in weights if any(part in name for part in NEW_LAYERS)}
    # Frozen weights were bfloat16 in training, and are saved as they were.
    assert all(torch.equal(weights[name], before[name]) for name in weights.keys() - new)
    assert all(weights[n].any() for n in new if "to_out.0" in n or "plucker" in n)
    assert trained.text_encoder_2 is not None and trained.unet.config.sample_size == 8
    encoders = zip(trained.text_encoders, base.text_encoders, strict=True)
    for own, theirs in encoders:
        assert all(torch.equal(own.state_dict()[k], v) for k, v in theirs.state_dict().items())


def test_added_attention_starts_as_a_copy_of_the_base_models(settings):
    unet = Trainer(settings).pipeline.unet
    attn = unet.mid_block.attentions[0].transformer_blocks[1].attn1
    assert torch.equal(attn.across_views.to_q.weight.bfloat16(), attn.to_q.weight)
    assert not attn.across_views.to_out[0].weight.any()
    assert attn.to_q.weight.dtype == torch.bfloat16 and not attn.to_q.weight.requires_grad
    assert attn.across_views.to_q.weight.dtype == torch.float32
    # Normalization is not narrowed: mixed precision keeps it exact.
    assert unet.conv_norm_out.weight.dtype == torch.float32


def test_narrow_frozen_weights_change_no_gradient(settings, monkeypatch):
    settings = changed(settings, trainable="lora", lora_rank=2)
    found = []
    for is_narrow in (True, False):
        if not is_narrow:
            monkeypatch.setattr(training_module, "narrow_frozen", lambda *_: {})
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = Trainer(settings)
        batch = trainer.next_batch(0)
        trainer.losses(batch)[0].sum().backward()
        found.append({n: p.grad for n, p in trainer.denoiser.trainable().items()})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(g, found[1][n]) for n, g in found[0].items())
    assert any(g.any() for g in found[0].values())


def test_single_images_of_a_base_model_that_reads_sizes_are_learned_too(settings, tmp_path):
    from PIL import Image

    Image.new("RGB", (80, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "red"}\n')
    settings = changed(settings, images=tmp_path, image_batch_prob=1.0, trainable="lora")
    assert Trainer(settings).train_step(0)["loss"] > 0


def test_noise_is_shifted_in_every_scheduler_that_samples_the_model(settings, sdxl):
    def ratios(scheduler):
        return scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)

    own = load_model(sdxl, "cpu").scheduler.config
    learned = Trainer(changed(settings, snr_shift=8.0, mixed_precision="no")).pipeline.scheduler
    for kind in SCHEDULERS.values():
        plain, shifted = (kind.from_config(config) for config in (own, learned.config))
        gain = ratios(plain) / ratios(shifted)
        assert gain[0] == pytest.approx(1, abs=1e-3) and gain[-1] == pytest.approx(8, rel=1e-3)
        assert (gain.diff() > 0).float().mean() > 0.99 and (shifted.betas > 0).all()


def test_the_shift_by_tokens_is_that_of_the_views_area(settings, caplog):
    caplog.set_level("INFO")
    # Two views of 64 x 64 have fewer tokens than one image of 1024 x 1024.
    assert Trainer(settings).pipeline.scheduler.config.trained_betas is None
    assert "divided by 1, by the number of tokens" in caplog.text


def test_memory_is_that_of_what_is_trained(settings):
    for changes in (
        {"trainable": "new-layers", "mixed_precision": "no"},
        {"trainable": "lora", "optimizer": "adafactor"},
        {"trainable": "all", "ema_decay": 0.0, "train_text_encoder": True},
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = Trainer(changed(settings, **changes))
        parts = trainer.denoiser, trainer.pipeline.vae, trainer.settings
        # Counted for any kind of training, it is what this kind has.
        assert resident(*parts, changes["trainable"]) == trainer.sizes().resident


def test_activations_grow_with_the_views_and_are_few_where_they_are_computed_again():
    unet = MultiViewUNet(**TINY["sd15"].unet, sample_size=8)
    again = PRESETS["two-views"]
    settings = changed(again, gradient_checkpointing=False)
    all_of_two, few_of_two = (activations(unet, 2, one) for one in (settings, again))
    assert activations(unet, 4, settings) == pytest.approx(2 * all_of_two, rel=0.05)
    assert 0 < few_of_two < 0.5 * all_of_two


def test_a_dry_run_says_which_cards_are_large_enough(settings):
    # Beside each kind of training, the most views at once.
    rows = [line.split() for line in dry_run(settings).splitlines() if " GB " in line[:8]]
    assert [row[0] for row in rows] == ["8", "12", "16", "24", "80"]
    for name in ("all", "new-layers", "lora"):
        views = [int(row[row.index(name) + 1].strip(",")) for row in rows]
        assert views == sorted(views) and views[0] > 0 and not any(v % 2 for v in views)
