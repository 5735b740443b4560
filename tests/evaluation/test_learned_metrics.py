"""Scores of other people's networks, with tiny or random weights: nothing is fetched."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from spad.evaluation.config import EvaluateConfig
from spad.evaluation.learned_metrics import ALEXNET, HEADS, ClipScore, LearnedMetrics, Lpips
from spad.installation import install_command

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory):
    """Random weights under the names of the true files."""
    folder = tmp_path_factory.mktemp("lpips")
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3),
              10: (256, 256, 3, 3)}  # fmt: skip
    weights = {"classifier.1.weight": torch.zeros(2, 2)}
    for layer, shape in shapes.items():
        weights[f"features.{layer}.weight"] = 0.05 * torch.randn(shape, generator=generator)
        weights[f"features.{layer}.bias"] = torch.zeros(shape[0])
    torch.save(weights, folder / ALEXNET)
    channels = (64, 192, 384, 256, 256)
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator)
        for i, c in enumerate(channels)
    }
    torch.save(heads, folder / HEADS)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A real, tiny, untrained CLIP."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
             "num_hidden_layers": 2}  # fmt: skip
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(words), "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    moments = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(moments))
    return folder


def test_lpips_is_a_distance_of_images(lpips_folder):
    lpips = Lpips(lpips_folder)
    noise = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))
    near, far = (lpips(IMAGES, (IMAGES + s * noise).clamp(0, 1)) for s in (0.02, 0.3))
    assert lpips(IMAGES, IMAGES).tolist() == [0, 0]
    assert (near > 0).all() and (near < far).all()
    torch.testing.assert_close(lpips(IMAGES, IMAGES.flip(0))[0], lpips(*IMAGES[:, None])[0])
    with pytest.raises(ValueError, match="expected images of at least 32 pixels"):
        lpips(IMAGES[..., :16], IMAGES[..., :16])


def test_lpips_is_its_formula(lpips_folder):
    """Written again, layer by layer."""
    net, heads = torch.load(lpips_folder / ALEXNET), torch.load(lpips_folder / HEADS)
    mean, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[..., None, None]

    def features(x):
        x = ((2 * x - 1) - mean) / scale
        for layer, (stride, padding) in {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1),
                                         10: (1, 1)}.items():  # fmt: skip
            if layer in (3, 6):
                x = F.max_pool2d(x, 3, 2)
            weight, bias = net[f"features.{layer}.weight"], net[f"features.{layer}.bias"]
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            yield x

    total = torch.zeros(1)
    for i, (a, b) in enumerate(zip(features(IMAGES[:1]), features(IMAGES[1:]), strict=True)):
        difference = (F.normalize(a, dim=1) - F.normalize(b, dim=1)) ** 2
        total += F.conv2d(difference, heads[f"lin{i}.model.1.weight"]).mean()
    torch.testing.assert_close(Lpips(lpips_folder)(IMAGES[:1], IMAGES[1:]), total)


def test_clip_score_is_that_of_the_model(clip_folder):
    from transformers import CLIPModel, CLIPTokenizerFast

    model = CLIPModel.from_pretrained(clip_folder).eval()
    words = CLIPTokenizerFast.from_pretrained(clip_folder)(["a red hat"], return_tensors="pt")
    small = F.interpolate(IMAGES, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = torch.tensor([[0.48, 0.46, 0.41], [0.27, 0.26, 0.28]])[..., None, None]
    with torch.no_grad():
        out = model(pixel_values=(small - mean) / deviation, **words)
    expected = 100 * (out.image_embeds @ out.text_embeds.mT).clamp_min(0).mean()
    assert ClipScore(clip_folder)(IMAGES, "a red hat") == pytest.approx(float(expected), abs=1e-3)


def test_long_prompts_are_cut(clip_folder):
    assert 0 <= ClipScore(clip_folder)(IMAGES, "a very long prompt indeed " * 20) <= 100


def test_what_is_not_given_is_not_computed():
    learned = LearnedMetrics.load(EvaluateConfig(model="mini"))
    assert learned.columns == () and learned.totals(lambda: [], None) == {}


def test_files_that_are_not_what_they_should_be_are_named(tmp_path, lpips_folder):
    with pytest.raises(ValueError, match=ALEXNET):
        LearnedMetrics.load(EvaluateConfig(model="mini", lpips=tmp_path))
    with pytest.raises(ValueError, match="expected the folder of a CLIP model"):
        LearnedMetrics.load(EvaluateConfig(model="mini", clip=tmp_path))
    with pytest.raises(ValueError, match="expected Inception's weights"):
        LearnedMetrics.load(EvaluateConfig(model="mini", inception=tmp_path / "none.pth"))
    (tmp_path / ALEXNET).write_bytes((lpips_folder / ALEXNET).read_bytes())
    (tmp_path / HEADS).write_text("no weights")
    with pytest.raises(ValueError, match="expected weights saved by torch"):
        LearnedMetrics.load(EvaluateConfig(model="mini", lpips=tmp_path))
    torch.save({"a": torch.zeros(1)}, tmp_path / HEADS)
    with pytest.raises(ValueError, match="got other weights"):
        LearnedMetrics.load(EvaluateConfig(model="mini", lpips=tmp_path))


def test_a_missing_package_names_its_install_command(tmp_path, monkeypatch, capsys):
    from spad.cli import main

    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    weights = tmp_path / "inception.pth"
    weights.write_bytes(b"")
    assert main(["evaluate", "--model", "mini", "--inception", str(weights)]) == 1
    assert install_command("fidelity") in capsys.readouterr().err
