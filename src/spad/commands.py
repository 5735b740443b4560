"""What each command does with its settings, and prints. Each imports its code when it runs."""

from __future__ import annotations

import gc
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tyro.conf import Positional

from spad.app.config import AppConfig
from spad.curation.config import FilterConfig
from spad.data.config import InspectConfig, PackConfig, RenderConfig
from spad.evaluation.config import EvaluateConfig
from spad.generation.config import GenerateConfig
from spad.hub.config import ConvertConfig, DownloadConfig, InitFromBaseConfig
from spad.reconstruction.config import DistillConfig, ReconstructConfig, TextureConfig
from spad.settings import checked
from spad.surroundings import (
    visible,
)
from spad.training.config import (
    ExportConfig,
    TrainAutoencoderConfig,
    TrainConfig,
    TrainReconstructorConfig,
)
from spad.visualize.config import EpipolarConfig

if TYPE_CHECKING:
    from spad.reconstruction.reconstruct import Reconstruction

BAD_INPUT, MACHINE_FAILURE, STOPPED = 2, 1, 130


@dataclass(frozen=True)
@checked
class ModelsConfig:
    """List models in the package, installed and released ones, or describe one of them."""

    model: Positional[str | None] = None
    """Name of a model or a model folder. Default: a list of all models."""
    captions: bool = False
    """List the captions of its training set."""


class Stop(Exception):
    """Early end of a command, with a message for the user and the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def commands() -> dict[str, dict[str, tuple[type, Callable]]]:
    """All commands by group: their settings and the functions that run them."""
    return {
        "Images and 3D models": {
            "generate": (GenerateConfig, _generate),
            "reconstruct": (ReconstructConfig, _reconstruct),
            "texture": (TextureConfig, _texture),
            "distill": (DistillConfig, _distill),
            "app": (AppConfig, _app),
            "epipolar": (EpipolarConfig, _epipolar),
            "evaluate": (EvaluateConfig, _evaluate),
        },
        "Models": {
            "models": (ModelsConfig, _models),
            "download": (DownloadConfig, _download),
            "convert": (ConvertConfig, _convert),
            "init-from-base": (InitFromBaseConfig, _convert),
            "export": (ExportConfig, _export),
        },
        "Data and training": {
            "filter": (FilterConfig, _filter),
            "render": (RenderConfig, _render),
            "pack": (PackConfig, _pack),
            "inspect": (InspectConfig, _inspect),
            "train": (TrainConfig, _train),
            "train-autoencoder": (TrainAutoencoderConfig, _train_autoencoder),
            "train-reconstructor": (TrainReconstructorConfig, _train_reconstructor),
        },
    }


def _generate(settings: GenerateConfig, argv: list[str]) -> None:
    started = time.monotonic()
    # Imports allocate about a million long-lived objects; collecting garbage less often saves 4 %
    # of a cold start.
    gc.set_threshold(100_000, 50, 50)
    reconstruct = None
    if settings.mesh:
        # Imported first, so that a missing package is reported before the images are generated.
        from spad.reconstruction.reconstruct import run_reconstruct as reconstruct
    from spad.generation.generate import draw
    from spad.generation.plan import plan_generation

    plan = plan_generation(settings)
    agreement = choose = None
    if plan.consistency > 0:
        from spad.reconstruction.consistent_sampling import ConsistentSampling as agreement
    if plan.settings.best_of > 1:
        from spad.evaluation.best_of import choose_best as choose
    with _resumable(argv) if plan.keeps_parts else nullcontext():
        folder = draw(plan, argv, agreement, choose)
    for name in ("grid.png", "turntable.webp", "transforms.json", "run.json"):
        if (folder / name).exists():
            say(folder / name)
    is_single = len(plan.prompts) == 1
    say(f"{folder / ('images' if is_single else '*')}{os.sep}")
    if settings.save_for is not None:
        say(f"{folder / ('' if is_single else '*') / f'for-{settings.save_for}'}{os.sep}")
    if reconstruct is not None:
        several = sorted(each for each in folder.iterdir() if each.is_dir())
        for one in [folder] if len(plan.prompts) == 1 else several:
            output, turntable = one / "model.glb", one / "model.webp"
            _print_model(*reconstruct(ReconstructConfig(one, output, turntable=turntable)))
    say(f"{time.monotonic() - started:.1f} s")


def _reconstruct(settings: ReconstructConfig, _argv: list[str]) -> None:
    started = time.monotonic()
    from spad.reconstruction.reconstruct import run_reconstruct

    _print_model(*run_reconstruct(settings))
    say(f"{time.monotonic() - started:.1f} s")


def _texture(settings: TextureConfig, _argv: list[str]) -> None:
    started = time.monotonic()
    from spad.reconstruction.mesh_texturing import run_texture

    made, files = run_texture(settings)
    say("\n".join([*made.notes, *map(str, files)]))
    say(f"{time.monotonic() - started:.1f} s")


def _distill(settings: DistillConfig, argv: list[str]) -> None:
    from spad.reconstruction.distill import distill_model

    with _resumable(argv):
        say("\n".join(map(str, distill_model(settings))))


def _app(settings: AppConfig, _argv: list[str]) -> None:
    from spad.app.server import run_app

    run_app(settings, lambda address: say(f"{address}  (Ctrl-C ends it)"))


def _print_model(result: Reconstruction, files: Sequence[Path]) -> None:
    say("\n".join([*result.notes, str(result.scores), *map(str, files)]))


def _filter(settings: FilterConfig, _argv: list[str]) -> None:
    from spad.curation.filter import filter_objects

    say(filter_objects(settings))


def _render(settings: RenderConfig, argv: list[str]) -> None:
    from spad.data.render import render_all

    with _resumable(argv):
        summary = render_all(settings)
    say(summary)
    if not summary.rendered + summary.skipped:
        raise ValueError("expected a model that can be rendered, got none; see the reasons above")
    if settings.pack is not None:
        _pack(PackConfig(settings.output, settings.pack, workers=settings.workers), argv)


def _pack(settings: PackConfig, argv: list[str]) -> None:
    from spad.data.pack import pack

    with _resumable(argv):
        say(pack(settings))


def _inspect(settings: InspectConfig, _argv: list[str]) -> None:
    from spad.data.inspect import inspect_data

    say(inspect_data(settings))


def _epipolar(settings: EpipolarConfig, argv: list[str]) -> None:
    from spad.visualize.epipolar import run_epipolar

    report = run_epipolar(settings, argv)
    say("\n".join([*report.lines, *map(str, report.files)]))


def _train(settings: TrainConfig, argv: list[str]) -> None:
    if settings.dry_run:
        from spad.training.dry_run import dry_run as train
    else:
        from spad.training.train import train
    _print_trained(partial(train, settings), argv)


def _train_autoencoder(settings: TrainAutoencoderConfig, argv: list[str]) -> None:
    from spad.training.autoencoder import train_autoencoder

    _print_trained(partial(train_autoencoder, settings), argv)


def _train_reconstructor(settings: TrainReconstructorConfig, argv: list[str]) -> None:
    from spad.training.reconstructor import train_reconstructor

    _print_trained(partial(train_reconstructor, settings), argv)


def _print_trained(train: Callable[[], object], argv: list[str]) -> None:
    from spad.training.run import Interrupted

    try:
        result = train()
    except Interrupted as stop:
        message = f"{stop}; resume with the same command: {shlex.join(argv)}"
        raise Stop(message, STOPPED) from None
    if is_first_process():
        say(result)


def _export(settings: ExportConfig, _argv: list[str]) -> None:
    from spad.training.export import export_model

    say(export_model(settings))


def _evaluate(settings: EvaluateConfig, argv: list[str]) -> None:
    from spad.evaluation.evaluate import evaluate

    with _resumable(argv):
        table, files = evaluate(settings, argv)
    say("\n".join([table, *map(str, files)]))


def _models(command: ModelsConfig, _argv: list[str]) -> None:
    from spad.hub.registry import list_models, model_info
    from spad.model.folders import EMBEDDED
    from spad.model.released import RELEASED

    if command.model is None:
        models = list_models()
        if command.captions:
            raise ValueError("expected the name of a model with --captions; see: spad models")
        rows = [("name", "state", "MB", "pixels", "license", "description")]
        for m in models:
            state = "in the package" if m.path.parent == EMBEDDED else "installed"
            pixels = f"{m.image_size}x{m.image_size}"
            row = (m.path.name, state, f"{m.size_mb:.1f}", pixels, m.license, m.description)
            rows.append(row)
        for name, r in RELEASED.items():
            if name not in {m.path.name for m in models}:
                size, pixels = f"{r.size_bytes / 1e6:.0f}", f"{r.image_size}x{r.image_size}"
                rows.append((name, "to download", size, pixels, r.license, r.description))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            say("  ".join([*cells, row[5]]))
        return
    model = model_info(command.model)
    captions = model.captions()
    if command.captions:
        say("\n".join(captions))
        return
    say(f"{model.name}: {model.description}")
    side, step = model.image_size, model.image_multiple
    say(f"images     {side}x{side}, sides in steps of {step}")
    say(f"size       {model.size_mb:.1f} MB in {model.path}")
    say(f"captions   {len(captions)}; list them with --captions")
    for title, text in (("license", model.license), ("author", model.author)):
        if text:
            say(f"{title:10} {text}")


def _download(settings: DownloadConfig, argv: list[str]) -> None:
    from spad.hub.download import ask_for, describe, find_installed, install

    folder = find_installed(settings)
    if folder is not None:
        say(f"{settings.model} is installed already: {folder}")
        return
    # Python has no stdin where it was closed.
    is_asked = sys.stdin is not None and sys.stdin.isatty()
    if not settings.yes and not is_asked:
        raise ValueError(f"expected --yes, as there is no terminal to ask: {ask_for(settings)}?")
    say(describe(settings))
    sys.stdout.flush()
    if not settings.yes:
        try:
            answer = input(f"{ask_for(settings)}? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise Stop("nothing was downloaded", MACHINE_FAILURE)
    with _resumable(argv):
        folder = install(settings)
    say(folder)


def _convert(settings: ConvertConfig | InitFromBaseConfig, _argv: list[str]) -> None:
    from spad.hub.base_model import init_from_base
    from spad.hub.convert import convert_checkpoint

    is_release = isinstance(settings, ConvertConfig)
    say(convert_checkpoint(settings) if is_release else init_from_base(settings))


@contextmanager
def _resumable(argv: list[str]) -> Iterator[None]:
    """Context of a command that resumes: Ctrl-C says how."""
    try:
        yield
    except KeyboardInterrupt:
        message = f"stopped by Ctrl-C; resume with the same command: {shlex.join(argv)}"
        raise Stop(message, STOPPED) from None


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun started, which alone prints."""
    return os.environ.get("RANK", "0") == "0"


def say(text: object, file: TextIO | None = None) -> None:
    """Print, with what would move the cursor made visible."""
    print(visible(str(text)), file=file or sys.stdout, flush=True)
