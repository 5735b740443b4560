"""Metrics with pretrained networks: CLIP score, LPIPS, FID and IS. Nothing is downloaded.

Weights are given by path; metrics without weights are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spad.data.view_sets import ViewSet
from spad.evaluation.config import EvaluateConfig
from spad.evaluation.novel_views import NovelViews
from spad.evaluation.report import Column
from spad.files import first_line, read_json
from spad.model.finite import is_finite

_CLIP = Column("clip_score", True, 100.0, "100 · cosine of CLIP's embeddings of views and prompt")
_LPIPS = Column("novel_lpips", False, 0.0, "LPIPS of novel views against renders")
_IS = Column("inception_score", True, None, "confidence and diversity of Inception's classes")
_FID = Column("fid", False, 0.0, "distance of Inception's features to those of renders")

# Smaller images vanish in AlexNet's strides.
_SMALLEST = 32

ALEXNET, HEADS = "alexnet-owt-7be5be79.pth", "alex.pth"


@dataclass(frozen=True)
class LearnedMetrics:
    """Metrics whose weights are given.

    Attributes:
        clip: CLIP score of images (v, 3, h, w) in [0, 1] and a prompt; None without weights.
        lpips: distances (v,) of two batches of images; None without weights.
        inception: file of weights, or None.
    """

    clip: Callable[[Tensor, str], float] | None = None
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    inception: Path | None = None

    @classmethod
    def load(cls, settings: EvaluateConfig) -> LearnedMetrics:
        """Load the weights that `settings` names.

        Raises: ValueError: a file is missing or has other content. ModuleNotFoundError:
            torch-fidelity is not installed.
        """
        if settings.inception is not None:
            if not settings.inception.is_file():
                raise ValueError(f"expected Inception's weights, got {settings.inception}: no file")
            _import_fidelity()
        return cls(
            None if settings.clip is None else ClipScore(settings.clip),
            None if settings.lpips is None else Lpips(settings.lpips),
            settings.inception,
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the metrics that are computed."""
        columns = (_CLIP,) if self.clip else ()
        columns += (_LPIPS,) if self.lpips else ()
        return columns + ((_IS, _FID) if self.inception else ())

    def score_views(self, view_set: ViewSet) -> dict[str, float]:
        """CLIP score, if the set has a prompt."""
        if self.clip is None or not view_set.prompt:
            return {}
        return {_CLIP.name: self.clip(view_set.images, view_set.prompt)}

    def score_novel(self, views: NovelViews) -> dict[str, float]:
        """Mean LPIPS of the novel views."""
        if self.lpips is None:
            return {}
        pair = views.truth.images[1:], views.generated.images[1:]
        return {_LPIPS.name: float(self.lpips(*pair).mean())}

    def totals(
        self, generated: Callable[[], Iterable[Tensor]], real: Callable[[], Iterable[Tensor]] | None
    ) -> dict[str, float]:
        """IS of all generated images, and FID to real ones if given.

        Args:
            generated, real: return an iterator of images (v, 3, h, w) in [0, 1].

        Source: Salimans et al. 2016 and Heusel et al. 2017, as torch-fidelity computes them. Both
        need thousands of images: with fewer, FID is too large and IS too small, so compare only
        equal numbers of images.
        """
        if self.inception is None:
            return {}
        fidelity = _import_fidelity()
        images = _Images(generated())
        options = {
            "input1": images,
            "isc": True,
            "isc_splits": 1,
            "feature_extractor_weights_path": str(self.inception),
            "cuda": torch.cuda.is_available(),
            "batch_size": min(64, len(images)),
            "verbose": False,
            "save_cpu_ram": True,
            "cache": False,
        }
        if real is not None:
            options |= {"input2": _Images(real()), "fid": True}
        with redirect_stdout(StringIO()):
            scores = fidelity.calculate_metrics(**options)
        found = {_IS.name: scores["inception_score_mean"]}
        if real is not None:
            found[_FID.name] = scores["frechet_inception_distance"]
        return {name: float(value) for name, value in found.items()}


@dataclass(frozen=True)
class _Moments:
    """Mean and standard deviation of each channel, as `preprocessor_config.json` has them."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rest: dict[str, Any]


class ClipScore:
    """100 · max(cos, 0) of CLIP's embeddings of an image and a prompt, mean over views.

    Source: Hessel et al. 2021, with the usual factor 100 instead of 2.5. Images are resized to
    CLIP's size (bicubic, antialiased); prompts longer than CLIP's context are truncated.

    Args:
        folder: a CLIP model in transformers' layout.

    Raises: ValueError: it has something else.
    """

    def __init__(self, folder: Path):
        from transformers import CLIPModel, CLIPTokenizer

        try:
            self._model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            moments = read_json(folder / "preprocessor_config.json", _Moments)
        # Libraries answer damaged files with any error.
        except Exception as error:
            reason = first_line(error)
            raise ValueError(
                f"expected the folder of a CLIP model, got {folder}: {reason}"
            ) from None
        self._mean = torch.tensor(moments.image_mean)[:, None, None]
        self._deviation = torch.tensor(moments.image_std)[:, None, None]
        self._size = self._model.config.to_dict()["vision_config"]["image_size"]

    @torch.no_grad()
    def __call__(self, images: Tensor, prompt: str) -> float:
        size = (self._size, self._size)
        pixels = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - self._mean) / self._deviation
        words = self._tokenizer([prompt], truncation=True, return_tensors="pt")
        model = self._model
        seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        read = model.text_projection(
            model.text_model(words.input_ids, words.attention_mask).pooler_output
        )
        cosines = F.cosine_similarity(seen, read)
        return float(100 * cosines.clamp_min(0).mean())


class Lpips(nn.Module):
    """LPIPS 0.1 on AlexNet: (v,) distances of images (v, 3, h, w) in [0, 1].

    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual
    metric", equation 1.

    Args:
        folder: has torchvision's AlexNet and the linear layers of the authors' package.

    Raises: ValueError: one of the two files is missing or has other content.
    """

    # Indices of the ReLU layers whose outputs are compared.
    _TAPS = (1, 4, 7, 9, 11)
    shift: Tensor
    scale: Tensor

    def __init__(self, folder: Path):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        backbone = _read_weights(folder / ALEXNET)
        heads = _read_weights(folder / HEADS)
        try:
            self.features.load_state_dict(
                {n.removeprefix("features."): w for n, w in backbone.items() if "features." in n}
            )
            weights = [heads[f"lin{i}.model.1.weight"] for i in range(len(self._TAPS))]
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{folder}: expected AlexNet and the layers of LPIPS 0.1, got other weights"
            ) from error
        for i, weight in enumerate(weights):
            self.register_buffer(f"head{i}", weight.reshape(1, -1, 1, 1))
        # For images in [-1, 1], as in the authors' code.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.eval()

    @torch.no_grad()
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        if min(one.shape[-2:]) < _SMALLEST:
            height, width = one.shape[-2:]
            raise ValueError(
                f"expected images of at least {_SMALLEST} pixels for LPIPS, got {width}x{height}; "
                "leave out --lpips"
            )
        distance = torch.zeros(len(one))
        for i, (a, b) in enumerate(zip(self._taps(one), self._taps(other), strict=True)):
            difference = (_unit_channels(a) - _unit_channels(b)).square()
            distance += (difference * getattr(self, f"head{i}")).sum(1).mean((1, 2))
        return distance

    def _taps(self, images: Tensor) -> Iterator[Tensor]:
        values = (images * 2 - 1 - self.shift) / self.scale
        for number, layer in enumerate(self.features):
            values = layer(values)
            if number in self._TAPS:
                yield values


class _Images(torch.utils.data.Dataset):
    """uint8 (3, h, w) images, the input of torch-fidelity."""

    def __init__(self, sets: Iterable[Tensor]):
        self._images = [view for views in sets for view in views.mul(255).round().to(torch.uint8)]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def _unit_channels(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"expected the weights {path}, got no such file")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged pickles and archives may raise any error.
    except Exception as error:
        raise ValueError(f"{path}: expected weights saved by torch, got something else") from error
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{path}: expected weights saved by torch, got something else")
    for name, weight in weights.items():
        if not is_finite(weight):
            raise ValueError(f"{path}: expected finite weights, got NaN or infinity in {name}")
    return weights


def _import_fidelity():
    try:
        import torch_fidelity  # pyright: ignore[reportMissingImports]  # an extra
    # Raised by torchvision if it was built for another torch.
    except RuntimeError as error:
        raise ValueError(
            f"torch-fidelity is installed and cannot be loaded ({error}); install torch and "
            "torchvision from one index"
        ) from error
    return torch_fidelity
