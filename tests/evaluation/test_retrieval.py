"""Retrieval finds the caption where it is known, and only there; the protocol is what it says."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spad.data.renders import is_held_out
from spad.evaluation.protocol import load_gallery, load_protocol
from spad.evaluation.retrieval import Gallery, fit_discriminant, image_features
from spad.images.pixels import to_floats
from spad.images.reading import on_white

COLORS = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.6, 0.2], [0.1, 0.2, 0.8], [0.9, 0.8, 0.1]])
SHAPES = 3


def sample(color: int, shape: int, views: int = 6, seed: int = 0, size: int = 64):
    """(v, 3, size, size) of a disc, a bar or a ring of about one color, moved about a bit."""
    generator = torch.Generator().manual_seed(100 * color + 10 * shape + seed)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    images = torch.ones(views, 3, size, size)
    for view in range(views):
        dx, dy, scale = 0.2 * torch.rand(3, generator=generator) - 0.1
        r = ((x - dx) ** 2 + (y - dy) ** 2).sqrt() / (0.6 + scale)
        inside = (r < 1, (r < 1.2) & ((y - dy).abs() < 0.15), (r < 1) & (r > 0.6))[shape]
        images[view, :, inside] = COLORS[color][:, None] * (0.9 + dx)
    return images


KINDS = [(color, shape) for color in range(len(COLORS)) for shape in range(SHAPES)]
CAPTIONS = [f"{shape} of {color}" for color, shape in KINDS]


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    known = [sample(*kind) for kind in KINDS]
    features = torch.cat([image_features(images) for images in known])
    classes = torch.arange(len(KINDS)).repeat_interleave(6)
    learned = fit_discriminant(features, classes, dimensions=8)
    return Gallery((), torch.empty(0), *learned).with_objects(CAPTIONS, known)


def test_other_views_find_their_caption(gallery):
    for caption, kind in zip(CAPTIONS, KINDS, strict=True):
        assert gallery.rank(sample(*kind, seed=1), caption) == 1


def test_the_order_and_size_of_views_do_not_matter(gallery):
    views = sample(1, 2, seed=2)
    similarity = gallery.similarity(views)
    torch.testing.assert_close(gallery.similarity(views.flip(0)), similarity)
    larger = views.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(gallery.similarity(larger), similarity)


def test_what_is_not_square_stands_on_white(gallery):
    views = sample(0, 1, seed=1)
    padded = torch.nn.functional.pad(views, (0, 0, 16, 16), value=1.0)
    wide = torch.nn.functional.pad(padded, (16, 16, 0, 0), value=1.0)
    torch.testing.assert_close(gallery.describe(padded), gallery.describe(wide))


def test_other_objects_images_rank_low(gallery):
    ranks = [
        gallery.rank(sample(*KINDS[(i + 5) % len(KINDS)]), caption)
        for i, caption in enumerate(CAPTIONS)
    ]
    assert 1 not in ranks and sum(ranks) / len(ranks) > len(KINDS) / 3


def test_an_unknown_caption_has_no_rank(gallery):
    assert gallery.rank(sample(0, 0), "a blue fish") is None


def test_what_all_captions_resemble_alike_ranks_last():
    views = torch.ones(3, 2, 4) / 2
    same = Gallery(("a", "b", "c"), views, torch.zeros(1341), torch.ones(1341, 4))
    assert same.rank(sample(0, 0), "a") == 3


def test_blank_images_have_a_rank(gallery):
    assert gallery.rank(torch.ones(2, 3, 16, 16), CAPTIONS[0]) in range(1, len(CAPTIONS) + 1)


def test_galleries_are_written_and_read(gallery, tmp_path):
    gallery.save(tmp_path / "g.safetensors")
    again = Gallery.load(tmp_path / "g.safetensors")
    assert again.captions == gallery.captions
    torch.testing.assert_close(again.views, gallery.views, atol=1e-3, rtol=1e-2)
    (tmp_path / "other").write_text("x")
    with pytest.raises(ValueError, match="expected a gallery"):
        Gallery.load(tmp_path / "other")


def test_a_gallery_refuses_what_it_cannot_rank(gallery):
    views = sample(0, 0)
    with pytest.raises(ValueError, match="different captions"):
        gallery.with_objects(["a", "a"], [views, views])
    with pytest.raises(ValueError, match="equal numbers of views"):
        gallery.with_objects(["a", "b"], [views, views[:2]])


def test_the_discriminant_keeps_what_tells_classes_apart_and_drops_the_rest():
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(10).repeat_interleave(20)
    signal = torch.randn(10, generator=generator)[classes]
    features = torch.randn(200, 5, generator=generator) * torch.tensor([1.0, 1, 1, 1, 50])
    features[:, 2] = signal * 3 + 0.1 * features[:, 2]
    mean, projection = fit_discriminant(features, classes, dimensions=1, shrinkage=1e-6)
    torch.testing.assert_close(mean, features.mean(0))
    assert projection[:, 0].abs().argmax() == 2
    # The loudest feature says nothing of the class.
    assert projection[4, 0].abs() < 0.02 * projection[2, 0].abs()


def test_the_protocol_asks_for_held_out_objects_only():
    protocol, gallery = load_protocol(), load_gallery()
    assert protocol.novel == tuple(protocol.captions)
    assert all(is_held_out(uid) for uid in protocol.captions)
    assert len(gallery.captions) == 100 == len(set(gallery.captions))
    assert set(protocol.captions.values()) <= set(gallery.captions)
    assert 0 < protocol.quick <= len(protocol.captions)
    assert torch.allclose(gallery.views.norm(dim=-1), torch.ones(()), atol=1e-2)


def test_the_protocols_cameras_and_choices_are_fixed():
    protocol = load_protocol()
    cameras = protocol.cameras(32)
    assert len(cameras) == 12 and cameras.height == 32
    assert cameras.azimuth_deg.tolist() == pytest.approx([(300 + 30 * i) % 360 for i in range(12)])
    chosen = protocol.choose_views("an id", 24)
    assert chosen == protocol.choose_views("an id", 24) == [22, 7, 19, 23]
    assert len(set(chosen)) == protocol.novel_views
    assert chosen != protocol.choose_views("another", 24)
    assert len(protocol.choose_views("an id", 3)) == 3


def test_renders_of_held_out_objects_find_their_caption(shared_dir, tmp_path):
    """Of the true objects, from cameras that the gallery has not seen."""
    from spad.meshes.mesh import load_object
    from spad.meshes.raycast import render_views

    protocol, gallery = load_protocol(), load_gallery()
    lines = (shared_dir / "assets/assets.jsonl").read_text(encoding="utf-8").splitlines()
    files = {row["uid"]: row["file"] for row in map(json.loads, lines)}
    uid_of = {files[uid]: uid for uid in list(protocol.captions)[:5]}
    cameras = protocol.cameras(64)
    ranks = []
    with tarfile.open(shared_dir / "assets/assets.tar.xz", "r|xz") as archive:
        for member in archive:
            if member.name not in uid_of:
                continue
            path = tmp_path / Path(member.name).name
            path.write_bytes(archive.extractfile(member).read())
            rgba = render_views(load_object(path), cameras).rgba
            images = to_floats(np.stack([on_white(Image.fromarray(view)) for view in rgba]))
            ranks.append(gallery.rank(images, protocol.captions[uid_of[member.name]]))
    assert len(ranks) == 5 and ranks.count(1) >= 4 and max(ranks) <= 3
