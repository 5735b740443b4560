"""Settings of `spad evaluate`. Imports nothing heavy: the command line reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class EvaluateConfig:
    """Judge views of objects: do they belong to one object, and is it the one asked for?

    Judges a folder of sets, or draws the protocol's prompts with a model and judges those. Writes
    a report as JSON, Markdown and a page. Ctrl-C keeps what is done; the same command goes on.
    """

    sets: Positional[Path | None] = None
    """Folder of `spad generate`, `spad render` or `spad pack`, or of pictures with cameras."""
    model: str | None = None
    """Draw with this model instead: its name (see `spad models`) or a folder."""
    compare: tuple[Path, ...] = ()
    """Compare reports instead: two folders that this command made, or more; the first is what the
    others are compared with."""
    output: Path | None = None
    """Folder to make or to go on with; spad-out/evaluation-NAME if left out."""
    overwrite: bool = False
    """Replace the output folder if an earlier run made it."""
    quick: bool = False
    """The first objects of the protocol only: minutes on a CPU."""
    data: Path | None = None
    """Folder that `spad render` or `spad pack` wrote, with the protocol's objects: the truth for
    novel views from one picture, which are left out without it."""
    parts: tuple[Literal["text", "novel"], ...] = ("text", "novel")
    """What a model draws: views of prompts, novel views from one picture."""
    limit: int | None = None
    """Judge only so many sets, or objects of each part."""
    steps: int | None = None
    """Denoising steps; the model's own if left out."""
    guidance_scale: float | None = None
    """Strength of the prompt; the model's own if left out."""
    device: str | None = None
    """That draws, such as cpu, cuda or mps; the fastest there is if left out."""
    clip: Path | None = None
    """Folder of a CLIP model in transformers' layout, for the CLIP score."""
    lpips: Path | None = None
    """Folder with alexnet-owt-7be5be79.pth (torchvision's) and alex.pth (of lpips 0.1), for
    LPIPS."""
    inception: Path | None = None
    """torch-fidelity's file of Inception's weights, for FID (against `data`) and IS."""

    def __post_init__(self) -> None:
        asked = [self.sets is not None, self.model is not None, bool(self.compare)]
        if sum(asked) != 1:
            raise ValueError(
                "expected a folder of sets, --model NAME or --compare REPORT REPORT, got "
                f"{sum(asked) or 'none'} of them"
            )
        if len(self.compare) == 1:
            raise ValueError("expected two reports or more to compare, got one")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"expected a limit of at least 1, got {self.limit}")
        if not self.parts:
            raise ValueError("expected parts among text and novel, got none")
        of_model = ("quick", "steps", "guidance_scale", "device")
        given = [name for name in of_model if getattr(self, name)]
        if self.model is None and given:
            flag = f"--{given[0].replace('_', '-')}"
            raise ValueError(f"expected --model with {flag}, which says how to draw")
        # Nothing is drawn from a negative or zero count of steps; the rest the pipeline checks.
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"expected at least 1 step, got {self.steps}")
