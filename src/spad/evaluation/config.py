"""Settings of `spad evaluate`. Imports nothing heavy: the command line reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen
from tyro.conf import Positional

from spad.settings import Count, GuidanceScale, checked, flag


@dataclass(frozen=True)
@checked
class EvaluateConfig:
    """Score views of objects: are they consistent, and do they show what was asked for?

    Scores a folder of sets of views, or generates the protocol's prompts with a model and scores
    these; or compares 3D models with references. Writes a report as JSON, Markdown and HTML. Ctrl-C
    keeps what is done; the same command resumes.
    """

    sets: Positional[Path | None] = None
    """Folder of `spad generate`, `spad render` or `spad pack`, or of images with cameras; with
    --reference a 3D model, or a folder of 3D models."""
    reference: Path | None = None
    """3D model that the model should look like, or a folder of these, with the models' names."""
    model: str | None = None
    """Model to generate with instead: a name (see `spad models`) or a folder."""
    compare: tuple[Path, ...] = ()
    """Reports to compare instead: two or more folders of this command. The first is the
    reference."""
    output: Path | None = None
    """Output folder; an unfinished one is resumed. Default: spad-out/evaluation-NAME."""
    overwrite: bool = False
    """Replace the output folder if an earlier run made it."""
    quick: bool = False
    """Only the first objects of the protocol: minutes on a CPU."""
    data: Path | None = None
    """Folder written by `spad render` or `spad pack` with the protocol's objects: the ground truth
    for novel views from one image, which are skipped without it."""
    gso: Path | None = None
    """MVGBench's renders of Google Scanned Objects, OBJECT/RENDERS with 000.png … and
    transforms.json: the ground truth for novel views from 000.png."""
    prompts: Path | None = None
    """Text file of prompts, one a line, in place of the protocol's."""
    seeds: Count = 1
    """Times that every prompt is generated, each with another seed; reviewers expect 3."""
    parts: Annotated[tuple[Literal["text", "novel"], ...], MinLen(1)] = ("text", "novel")
    """Parts of the protocol: views of prompts, novel views from one image."""
    split_consistency: bool = False
    """Also compare models of two halves of the views, as MVGBench does; 15 seconds a set."""
    colmap: bool = False
    """Also let COLMAP find the cameras from the images alone; 5 seconds a set."""
    limit: Count | None = None
    """Score at most this many sets, or objects of each part."""
    steps: Count | None = None
    """Denoising steps. Default: the model's."""
    guidance_scale: GuidanceScale | None = None
    """Strength of the prompt. Default: the model's."""
    device: str | None = None
    """Device to generate on, such as cpu, cuda or mps. Default: the fastest available."""
    executor: Literal["process", "ray"] = "process"
    """Where the model generates: in this process, or one copy of it on every device of a Ray
    cluster."""
    ray_address: str | None = None
    """Address of a running Ray cluster. Default: one of this machine, for this run."""
    clip: Path | None = None
    """Folder of a CLIP model in transformers' layout, for the CLIP score."""
    lpips: Path | None = None
    """Folder with alexnet-owt-7be5be79.pth (torchvision's) and alex.pth (of lpips 0.1), for
    LPIPS."""
    inception: Path | None = None
    """torch-fidelity's file of Inception's weights, for FID (against --data) and IS."""

    def __post_init__(self) -> None:
        given = [self.sets is not None, self.model is not None, bool(self.compare)]
        if sum(given) != 1:
            raise ValueError(
                "expected a folder of sets, --model NAME or --compare REPORT REPORT, got "
                f"{sum(given) or 'none'} of them"
            )
        if self.reference is not None and self.sets is None:
            raise ValueError("expected a 3D model, or a folder of them, with --reference, got none")
        for name in ("split_consistency", "colmap"):
            if getattr(self, name) and (self.compare or self.reference is not None):
                raise ValueError(
                    f"expected {flag(name)} with sets of views or --model, got it with "
                    f"{flag('compare' if self.compare else 'reference')}"
                )
        if len(self.compare) == 1:
            raise ValueError("expected two or more reports to compare, got one")
        if self.ray_address is not None and self.executor != "ray":
            raise ValueError(f"expected --executor ray with {flag('ray_address')}, got none")
        if self.model is None and self.seeds != 1:
            raise ValueError(f"expected --model with {flag('seeds')}, got none")
        if self.gso is not None and self.data is not None:
            raise ValueError("expected --data or --gso for novel views, got both")
        for name in ("quick", "gso", "prompts", "steps", "guidance_scale", "device", "ray_address"):
            if self.model is None and getattr(self, name):
                raise ValueError(f"expected --model with {flag(name)}, got none")
