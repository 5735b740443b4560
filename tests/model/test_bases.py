"""Base models of every kind: one view with fresh weights is what the plain model gives."""

import functools

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from spad.cameras import Cameras
from spad.hub.base_model import init_from_base
from spad.hub.config import InitFromBaseConfig
from spad.hub.registry import load_model
from spad.model import MultiViewUNet, SPADPipeline
from spad.model.bases import BASES, base_of
from spad.model.conditioning import condition_on_cameras
from spad.model.start import gaussian_blob
from spad.model.text import TextEmbeddings
from spad.model.unet import copy_attention
from tiny_bases import IMAGE_SIZE, TINY, plain_pipeline, tokenizer_folder

KINDS = list(TINY)
# Of the published models.
PARAMETERS = {
    "sd15": (859_520_964, 83_653_863, (123_060_480,)),
    "sd21": (865_910_724, 83_653_863, (340_387_840,)),
    "sdxl": (2_567_463_684, 83_653_863, (123_060_480, 694_659_840)),
}


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory):
    """Kind -> the plain pipeline, and the SPAD that is made of it."""

    @functools.cache
    def make(kind: str):
        folder = tmp_path_factory.mktemp(kind)
        plain = plain_pipeline(TINY[kind], tokenizer_folder(folder / "tokenizer"))
        plain.save_pretrained(folder / "plain")
        settings = InitFromBaseConfig(folder / "plain", folder / "model", image_size=IMAGE_SIZE)
        ours = load_model(init_from_base(settings), dtype=torch.float32)
        ours.set_progress_bar_config(disable=True)
        return plain, ours

    return make


@pytest.fixture
def cameras() -> Cameras:
    return Cameras.ring(1, elevation_deg=30.0, height=IMAGE_SIZE, width=IMAGE_SIZE)


def both(of_kind, kind, cameras, theirs=None, **ours):
    """Latents of one view by the plain pipeline and by ours, from the same start."""
    plain, pipeline = of_kind(kind)
    plain.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    noise = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    blob = pipeline._encode_image(gaussian_blob(IMAGE_SIZE, IMAGE_SIZE, 0.5))
    plain.scheduler.set_timesteps(2)
    start = plain.scheduler.add_noise(blob, noise, plain.scheduler.timesteps[:1])[0]
    shared = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
    drawn = pipeline(cameras=cameras, latents=noise, **shared, **ours).images[0]
    theirs = ours if theirs is None else theirs
    prefix = pipeline.config["prompt_prefix"]
    theirs = {k: prefix + v if k in ("prompt", "prompt_2") else v for k, v in theirs.items()}
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return plain(latents=start, **size, **shared, **theirs).images, drawn


@pytest.mark.parametrize("kind", KINDS)
def test_one_view_is_what_the_plain_pipeline_draws(of_kind, cameras, kind):
    _, pipeline = of_kind(kind)
    assert base_of(pipeline.unet.config).name == kind
    expected, drawn = both(of_kind, kind, cameras, prompt="a red fish")
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    expected, drawn = both(
        of_kind, kind, cameras, prompt="a red fish", negative_prompt="a blue rock"
    )
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    other = both(of_kind, kind, cameras, prompt="9 owls", negative_prompt="a blue rock")[1]
    assert (other - drawn).abs().max() > 1e-3


def test_the_second_prompt_and_embeddings_are_those_of_diffusers(of_kind, cameras):
    texts = {"prompt": "a fish", "prompt_2": "an owl", "negative_prompt": "a rock"}
    expected, drawn = both(of_kind, "sdxl", cameras, **texts, negative_prompt_2="a fox")
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    _, pipeline = of_kind("sdxl")
    prefix = pipeline.config["prompt_prefix"]
    positive = pipeline.encode_text([f"{prefix}a fish"], [f"{prefix}an owl"])
    negative = pipeline.encode_text(["a rock"], ["a fox"])
    tensors = {
        "prompt_embeds": positive.tokens,
        "pooled_prompt_embeds": positive.pooled,
        "negative_prompt_embeds": negative.tokens,
        "negative_pooled_prompt_embeds": negative.pooled,
    }
    for given in (tensors, {"prompt_embeds": positive, "negative_prompt_embeds": negative}):
        again = both(of_kind, "sdxl", cameras, theirs=tensors, **given)
        for latents in again:
            torch.testing.assert_close(latents, drawn, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("sdxl", {"prompt_embeds": torch.zeros(1, 77, 64)}, "with pooled_prompt_embeds"),
        ("sd15", {"prompt": "a", "prompt_2": "b"}, "no prompt_2 .* one text encoder"),
        ("sd15", {"prompt": "a", "pooled_prompt_embeds": torch.zeros(1, 32)}, "prompt_embeds with"),
        ("sdxl", {"prompt": "a", "prompt_2": ["b", "c"]}, "expected 1 of prompt_2"),
    ],
)
def test_other_texts_are_refused(of_kind, cameras, kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        of_kind(kind)[1](cameras=cameras, **arguments)


def test_a_unet_that_reads_pooled_text_asks_for_it(of_kind, cameras):
    unet = of_kind("sdxl")[1].unet
    with pytest.raises(ValueError, match="pooled text and an image size"):
        condition_on_cameras(unet, cameras, 8, 8, text=torch.zeros(1, 77, 64))


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_lora_layers_of_the_base_model_load(of_kind, cameras, kind, tmp_path):
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    plain, pipeline = of_kind(kind)
    prompt = {"prompt": "a red fish"}
    before = both(of_kind, kind, cameras, **prompt)[1]
    layers = {}
    for part, module in plain.components.items():
        if part.startswith(("unet", "text_encoder")):
            targets = ["to_q", "proj_in"] if part == "unet" else ["q_proj"]
            module.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets))
            for name, weight in module.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.5)
            layers[f"{part}_lora_layers"] = peft.utils.get_peft_model_state_dict(module)
    type(plain).save_lora_weights(tmp_path, **layers)
    pipeline.load_lora_weights(tmp_path)
    expected, drawn = both(of_kind, kind, cameras, **prompt)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    assert (drawn - before).abs().max() > 1e-3
    pipeline.unload_lora_weights()
    plain.unload_lora_weights()
    assert torch.allclose(both(of_kind, kind, cameras, **prompt)[1], before, atol=1e-5)


def test_pictures_in_tiles_are_nearly_those_in_one(of_kind):
    _, pipeline = of_kind("sdxl")
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = pipeline._pixels(latents)
    pipeline.vae.enable_tiling()
    in_tiles = pipeline._pixels(latents)
    pipeline.vae.disable_tiling()
    assert in_tiles.shape == whole.shape == (1, 3, 128, 128)
    assert 0 < (in_tiles - whole).abs().mean() < 0.5 * whole.std()


def test_the_autoencoder_of_xl_stays_out_of_float16(of_kind, cameras):
    for kind, dtype in (("sd15", torch.float16), ("sdxl", torch.float32)):
        pipeline = SPADPipeline(**of_kind(kind)[1].components)
        pipeline.set_progress_bar_config(disable=True)
        vae = pipeline.vae.to(torch.float16)
        drawn = pipeline("a fish", cameras, num_inference_steps=1)
        assert vae.dtype == dtype and drawn.latents.isfinite().all()
        vae.to(torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_views_of_fresh_added_attention_are_what_the_plain_unet_gives(of_kind, kind):
    plain, pipeline = of_kind(kind)
    config = {**pipeline.unet.config, "view_attention": "added", "rays": "both"}
    unet = MultiViewUNet.from_config(config).eval()
    unet.load_state_dict(plain.unet.state_dict(), strict=False)
    copy_attention(unet)
    three = Cameras.ring(3, height=IMAGE_SIZE, width=IMAGE_SIZE)
    text = pipeline.encode_text(["a fish"])
    sample = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    views = condition_on_cameras(unet, three, 8, 8, text=text)
    found = unet(sample, 500, text, views).sample
    added = {}
    if text.pooled is not None:
        sizes = torch.tensor([[IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]])
        added = {"text_embeds": text.pooled.expand(3, -1), "time_ids": sizes.expand(3, -1)}
    tokens = text.tokens.expand(3, -1, -1)
    expected = plain.unet(sample[0], 500, tokens, added_cond_kwargs=added).sample
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    for name, weight in unet.named_parameters():
        if "across_views.to_out" in name:
            weight.normal_()
    assert not torch.allclose(unet(sample, 500, text, views).sample[0], expected, atol=1e-2)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_full_size_models_have_the_published_sizes(base):
    def count(module):
        return sum(weight.numel() for weight in module.parameters())

    unet_count, vae_count, encoder_counts = PARAMETERS[base.name]
    with torch.device("meta"):
        unet = MultiViewUNet(**base.unet, sample_size=base.image_size // 8)
        assert count(AutoencoderKL(**base.vae)) == vae_count
        for kind, expected in zip(base.text_encoders, encoder_counts, strict=True):
            kind_class = CLIPTextModelWithProjection if kind.is_projected else CLIPTextModel
            assert count(kind_class(CLIPTextConfig(**kind.config))) == expected
    own = [w for k, w in unet.named_parameters() if ".plucker." in k or "camera_embedding" in k]
    assert count(unet) - sum(w.numel() for w in own) == unet_count
    assert 0 < sum(w.numel() for w in own) < 0.005 * unet_count

    # Two views at the size that it is trained for.
    side = base.image_size // 8
    meta = functools.partial(torch.empty, device="meta")
    pooled = meta(1, 1280) if base.reading.is_pooled else None
    text = TextEmbeddings(meta(1, 77, base.unet["cross_attention_dim"]), pooled)
    views = unet.prepare_views(
        2, meta(1, 2, 4), meta(1, 2, 6, side, side), text=text, image_size=(side * 8, side * 8)
    )
    sample = unet(meta(1, 2, 4, side, side), 5, text, views).sample
    assert sample.shape == (1, 2, 4, side, side)
    levels = [side // 2**level for level in range(len(base.unet["down_block_types"]))]
    attended = [s for s, _ in unet.attention_grids(side, side)]
    kinds = zip(levels, base.unet["down_block_types"], strict=True)
    # The middle, at the coarsest level, has attention everywhere.
    assert attended == [s for s, kind in kinds if "Cross" in kind or s == levels[-1]]


def test_known_files_have_hashes_of_their_own():
    files = [file for base in BASES for file in base.files]
    assert len({file.sha256 for file in files}) == len(files)
    assert all(len(f.sha256) == 64 and int(f.sha256, 16) and f.repositories for f in files)
