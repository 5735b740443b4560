"""The `spad` command: parsing and printing only. Each command imports its code when it runs."""

from __future__ import annotations

import argparse
import gc
import io
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import tyro
from tyro.conf import Positional, subcommand

from spad import __version__
from spad.app.config import AppConfig
from spad.command_line import CONFIG, closest, in_groups, overview, parse_command
from spad.curation.config import FilterConfig
from spad.data.config import InspectConfig, PackConfig, RenderConfig
from spad.evaluation.config import EvaluateConfig
from spad.generation.config import HELP_GROUPS, GenerateConfig
from spad.hub.config import ConvertConfig, DownloadConfig, InitFromBaseConfig
from spad.installation import install_command
from spad.reconstruction.config import DistillConfig, ReconstructConfig, TextureConfig
from spad.settings import checked
from spad.surroundings import (
    as_text,
    check_environment,
    quiet_warnings,
    termination_as_interrupt,
    visible,
    widen_terminal,
)
from spad.training.config import (
    PRESETS,
    ExportConfig,
    TrainAutoencoderConfig,
    TrainConfig,
    TrainReconstructorConfig,
)
from spad.training.threads import WAIT_POLICY, set_wait_policy
from spad.visualize.config import EpipolarConfig

if TYPE_CHECKING:
    from spad.reconstruction.reconstruct import Reconstruction

BAD_INPUT, MACHINE_FAILURE, STOPPED = 2, 1, 130

# Optional packages, by the name they are imported by, and the extra that installs each.
_EXTRAS = {
    "embreex": "data",
    "mapbox_earcut": "data",
    "DracoPy": "data",
    "pyarrow": "data",
    "ray": "ray",
    "matplotlib": "plot",
    "OpenEXR": "exr",
    "peft": "lora",
    "tensorboard": "train",
    "bitsandbytes": "adam8bit",
    "gsplat": "splat",
    "bpy": "blender",
    "cv2": "eval",
    "pycolmap": "colmap",
    "torch_fidelity": "fidelity",
    "trimesh": "mesh",
    "starlette": "app",
    "uvicorn": "app",
    "skimage": "mesh",
    "scipy": "mesh",
    "manifold3d": "mesh",
    "fast_simplification": "mesh",
    "xatlas": "mesh",
}


@dataclass(frozen=True)
@checked
class ModelsConfig:
    """List models in the package, installed and released ones, or describe one of them."""

    model: Positional[str | None] = None
    """Name of a model or a model folder. Default: a list of all models."""
    captions: bool = False
    """List the captions of its training set."""


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag that is needed before the command line is parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(flag, dest="value")
    try:
        return parser.parse_known_args(arguments)[0].value
    except argparse.ArgumentError:
        return None


class Stop(Exception):
    """Early end of a command, with a message for the user and the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (machine), 2 (input) or 130 (Ctrl-C).

    Raises: SystemExit: by the parser, after --help or an unreadable command line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # Windows gives pipes and files an encoding without arrows: "?" is better than no report.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    widen_terminal()
    try:
        argv = as_text(argv)
        check_environment()
    except ValueError as error:
        return _fail(str(error), BAD_INPUT)
    try:
        parsed = _parsed(argv)
    except ValueError as error:
        return _fail(str(error), BAD_INPUT)
    except BrokenPipeError:
        return _reader_left()
    if parsed is None:
        return 0
    command, run = parsed
    is_training = isinstance(
        command, TrainConfig | TrainAutoencoderConfig | TrainReconstructorConfig
    )
    with _prepared(isinstance(command, DownloadConfig), is_training):
        try:
            run(command, ["spad", *argv])
            # What fails at exit would end in a traceback.
            if sys.stdout is not None:
                sys.stdout.flush()
        except Stop as stop:
            return _fail(str(stop), stop.code, "")
        except KeyboardInterrupt:
            return _fail("stopped by Ctrl-C; nothing was left half-written", STOPPED, "")
        except ValueError as error:
            return _fail(str(error), BAD_INPUT)
        except ModuleNotFoundError as error:
            extra = _extra((error.name or "").split(".")[0], command)
            if extra is None:
                raise
            message = f"this needs {error.name}; install it with: {install_command(extra)}"
            return _fail(message, MACHINE_FAILURE)
        except BrokenPipeError:
            return _reader_left()
        except (OSError, FloatingPointError) as error:
            _settle_output()
            return _fail(str(error) or type(error).__name__, MACHINE_FAILURE)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            is_generation = isinstance(command, GenerateConfig)
            advice = "; try fewer --views, a smaller --image-size or another --device"
            return _fail(f"out of memory{advice if is_generation else ''}", MACHINE_FAILURE)
    return 0


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


def _parsed(argv: Sequence[str]) -> tuple[Any, Callable] | None:
    """The settings that a command line gives, and what runs them; None if it asks for a text.

    Raises: ValueError: it cannot be understood. SystemExit: after the --help of a command.
    """
    groups = commands()
    known = {name: one for group in groups.values() for name, one in group.items()}
    name, *arguments = argv or [""]
    if name in ("-h", "--help"):
        _print(overview({title: {n: c[0] for n, c in g.items()} for title, g in groups.items()}))
        return None
    if name == "--version":
        _print(f"spad {__version__}")
        return None
    if name.startswith("--tyro-"):
        # Scripts for the completion of shells, of all commands.
        kinds = [Annotated[kind, subcommand(name)] for name, (kind, _) in known.items()]
        every: Any = reduce(or_, kinds)
        tyro.cli(every, args=argv, prog="spad", config=CONFIG)
    if name not in known:
        got = f"got {name!r}{closest(name, list(known))}" if name else "got none"
        raise ValueError(f"expected a command, {got}; see: spad --help")
    settings, run = known[name]
    if settings is GenerateConfig and not {"-h", "--help"}.isdisjoint(arguments):
        settings = in_groups(settings, HELP_GROUPS, _defaults_of_model(arguments))
    default = None
    if settings is TrainConfig:
        # The parser refuses unknown presets.
        preset = _value_of("--preset", arguments)
        default = PRESETS[preset if preset in PRESETS else "mini"]
    return parse_command(settings, arguments, f"spad {name}", default), run


def _defaults_of_model(arguments: Sequence[str]) -> dict[str, str]:
    """Defaults of `spad generate` for --help: those of the model that a command line names."""
    from spad.hub.registry import model_info

    model = model_info(_value_of("--model", arguments) or GenerateConfig.model)
    own = model.defaults
    values = {
        "elevation": own.elevation_deg,
        "radius": own.radius,
        "fov_deg": own.fov_deg,
        "guidance_scale": own.guidance_scale,
        "guidance_rescale": own.guidance_rescale,
        "blob_sigma": own.blob_sigma,
        "steps": own.num_inference_steps,
        "scheduler": own.scheduler or "as saved",
        "image_size": model.image_size,
    }
    shown = {k: v if isinstance(v, str) else f"{v:.4g}" for k, v in values.items()}
    texts = {k: f"the model's own ({model.name}: {v})" for k, v in shown.items()}
    start = f"{own.start_azimuth_deg:.4g}"
    return texts | {"azimuth": f"evenly round from the model's start ({model.name}: {start})"}


def _extra(package: str, command: object) -> str | None:
    """Extra that installs an optional package; `mesh` includes what `data` has."""
    extra = _EXTRAS.get(package)
    makes_model = isinstance(command, ReconstructConfig | TextureConfig | DistillConfig)
    makes_model = makes_model or getattr(command, "mesh", False)
    return "mesh" if makes_model and extra == "data" else extra


def _reader_left() -> int:
    """Exit code after the reader of the pipe exited, as `head` does."""
    # Python flushes stdout at exit, which must not fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return MACHINE_FAILURE


def _settle_output() -> None:
    """Write what was printed, or drop it where that fails, so that it does not fail at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        _reader_left()


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
    if plan.settings.consistency > 0:
        from spad.reconstruction.consistent_sampling import ConsistentSampling as agreement
    if plan.settings.best_of > 1:
        from spad.evaluation.best_of import choose_best as choose
    with _resumable(argv) if plan.keeps_parts else nullcontext():
        folder = draw(plan, argv, agreement, choose)
    for name in ("grid.png", "turntable.webp", "transforms.json", "run.json"):
        if (folder / name).exists():
            _print(folder / name)
    is_single = len(plan.prompts) == 1
    _print(f"{folder / ('images' if is_single else '*')}{os.sep}")
    if settings.save_for is not None:
        _print(f"{folder / ('' if is_single else '*') / f'for-{settings.save_for}'}{os.sep}")
    if reconstruct is not None:
        several = sorted(each for each in folder.iterdir() if each.is_dir())
        for one in [folder] if len(plan.prompts) == 1 else several:
            output, turntable = one / "model.glb", one / "model.webp"
            _print_model(*reconstruct(ReconstructConfig(one, output, turntable=turntable)))
    _print(f"{time.monotonic() - started:.1f} s")


def _reconstruct(settings: ReconstructConfig, _argv: list[str]) -> None:
    started = time.monotonic()
    from spad.reconstruction.reconstruct import run_reconstruct

    _print_model(*run_reconstruct(settings))
    _print(f"{time.monotonic() - started:.1f} s")


def _texture(settings: TextureConfig, _argv: list[str]) -> None:
    started = time.monotonic()
    from spad.reconstruction.mesh_texturing import run_texture

    made, files = run_texture(settings)
    _print("\n".join([*made.notes, *map(str, files)]))
    _print(f"{time.monotonic() - started:.1f} s")


def _distill(settings: DistillConfig, argv: list[str]) -> None:
    from spad.reconstruction.distill import distill_model

    with _resumable(argv):
        _print("\n".join(map(str, distill_model(settings))))


def _app(settings: AppConfig, _argv: list[str]) -> None:
    from spad.app.server import run_app

    run_app(settings, lambda address: print(f"{address}  (Ctrl-C ends it)", flush=True))


def _print_model(result: Reconstruction, files: Sequence[Path]) -> None:
    _print("\n".join([*result.notes, str(result.scores), *map(str, files)]))


def _filter(settings: FilterConfig, _argv: list[str]) -> None:
    from spad.curation.filter import filter_objects

    _print(filter_objects(settings))


def _render(settings: RenderConfig, argv: list[str]) -> None:
    from spad.data.render import render_all

    with _resumable(argv):
        summary = render_all(settings)
    _print(summary)
    if not summary.rendered + summary.skipped:
        raise ValueError("expected a model that can be rendered, got none; see the reasons above")
    if settings.pack is not None:
        _pack(PackConfig(settings.output, settings.pack, workers=settings.workers), argv)


def _pack(settings: PackConfig, argv: list[str]) -> None:
    from spad.data.pack import pack

    with _resumable(argv):
        _print(pack(settings))


def _inspect(settings: InspectConfig, _argv: list[str]) -> None:
    from spad.data.inspect import inspect_data

    _print(inspect_data(settings))


def _epipolar(settings: EpipolarConfig, argv: list[str]) -> None:
    from spad.visualize.epipolar import run_epipolar

    report = run_epipolar(settings, argv)
    _print("\n".join([*report.lines, *map(str, report.files)]))


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
    if _is_first_process():
        _print(result)


def _export(settings: ExportConfig, _argv: list[str]) -> None:
    from spad.training.export import export_model

    _print(export_model(settings))


def _evaluate(settings: EvaluateConfig, argv: list[str]) -> None:
    from spad.evaluation.evaluate import evaluate

    with _resumable(argv):
        table, files = evaluate(settings, argv)
    _print("\n".join([table, *map(str, files)]))


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
            _print("  ".join([*cells, row[5]]))
        return
    model = model_info(command.model)
    captions = model.captions()
    if command.captions:
        _print("\n".join(captions))
        return
    _print(f"{model.name}: {model.description}")
    side, step = model.image_size, model.image_multiple
    _print(f"images     {side}x{side}, sides in steps of {step}")
    _print(f"size       {model.size_mb:.1f} MB in {model.path}")
    _print(f"captions   {len(captions)}; list them with --captions")
    for title, text in (("license", model.license), ("author", model.author)):
        if text:
            _print(f"{title:10} {text}")


def _download(settings: DownloadConfig, argv: list[str]) -> None:
    from spad.hub.download import ask_for, describe, find_installed, install

    folder = find_installed(settings)
    if folder is not None:
        _print(f"{settings.model} is installed already: {folder}")
        return
    # Python has no stdin where it was closed.
    is_asked = sys.stdin is not None and sys.stdin.isatty()
    if not settings.yes and not is_asked:
        raise ValueError(f"expected --yes, as there is no terminal to ask: {ask_for(settings)}?")
    _print(describe(settings))
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
    _print(folder)


def _convert(settings: ConvertConfig | InitFromBaseConfig, _argv: list[str]) -> None:
    from spad.hub.base_model import init_from_base
    from spad.hub.convert import convert_checkpoint

    is_release = isinstance(settings, ConvertConfig)
    _print(convert_checkpoint(settings) if is_release else init_from_base(settings))


@contextmanager
def _resumable(argv: list[str]) -> Iterator[None]:
    """Context of a command that resumes: Ctrl-C says how."""
    try:
        yield
    except KeyboardInterrupt:
        message = f"stopped by Ctrl-C; resume with the same command: {shlex.join(argv)}"
        raise Stop(message, STOPPED) from None


def _is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun started, which alone prints."""
    return os.environ.get("RANK", "0") == "0"


def _print(text: object, file: TextIO | None = None) -> None:
    print(visible(str(text)), file=file or sys.stdout)


def _fail(message: str, code: int, kind: str = "error: ") -> int:
    one_line = " ".join(message.split())
    _print(f"spad: {kind}{one_line}", sys.stderr)
    return code


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises a RuntimeError subclass on accelerators and a plain RuntimeError on the CPU.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


class _LineHandler(logging.Handler):
    """Log handler: records as lines of this command on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        _print(f"spad: {kind}{record.getMessage()}", sys.stderr)


@contextmanager
def _prepared(may_fetch: bool, is_training: bool) -> Iterator[None]:
    """Context: send spad's log to stderr, silence other libraries' deprecation warnings, and treat
    SIGTERM as Ctrl-C.

    Without `may_fetch` Hugging Face's libraries are offline.
    """
    variables = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }
    if not may_fetch:
        variables["HF_HUB_OFFLINE"] = "1"
    added = {*variables, WAIT_POLICY} - os.environ.keys()
    # Threads that spin while they wait make everything much slower if other work shares the cores;
    # a training may have them to itself.
    if is_training:
        set_wait_policy(os.environ)
    if not is_training:
        variables[WAIT_POLICY] = "passive"
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    log, handler = logging.getLogger("spad"), _LineHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO if _is_first_process() else logging.ERROR)
    try:
        with quiet_warnings(), termination_as_interrupt():
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        # A program that calls `main` has its environment back.
        for name in added:
            os.environ.pop(name, None)
