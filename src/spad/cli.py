"""The `spad` command: its command line read, and its errors in one line each."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from spad import __version__
from spad.command_line import CONFIG, closest, in_groups, overview, parse_command
from spad.commands import (
    BAD_INPUT,
    MACHINE_FAILURE,
    STOPPED,
    Stop,
    commands,
    is_first_process,
    say,
)
from spad.generation.config import HELP_GROUPS, GenerateConfig
from spad.hub.config import DownloadConfig
from spad.installation import install_command
from spad.reconstruction.config import DistillConfig, ReconstructConfig, TextureConfig
from spad.surroundings import (
    as_text,
    check_environment,
    quiet_warnings,
    termination_as_interrupt,
    widen_terminal,
)
from spad.threads import WAIT_POLICY, set_wait_policy
from spad.training.config import (
    PRESETS,
    TrainAutoencoderConfig,
    TrainConfig,
    TrainReconstructorConfig,
)

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

# Commands whose threads may spin while they wait, if nothing else works; others' sleep.
_COMPUTING = (
    GenerateConfig,
    ReconstructConfig,
    TextureConfig,
    DistillConfig,
    TrainConfig,
    TrainAutoencoderConfig,
    TrainReconstructorConfig,
)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag that is needed before the command line is parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(flag, dest="value")
    try:
        return parser.parse_known_args(arguments)[0].value
    except argparse.ArgumentError:
        return None


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
    with _prepared(isinstance(command, DownloadConfig), isinstance(command, _COMPUTING)):
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


def _parsed(argv: Sequence[str]) -> tuple[Any, Callable] | None:
    """The settings that a command line gives, and what runs them; None if it asks for a text.

    Raises: ValueError: it cannot be understood. SystemExit: after the --help of a command.
    """
    groups = commands()
    known = {name: one for group in groups.values() for name, one in group.items()}
    name, *arguments = argv or [""]
    if name in ("-h", "--help"):
        say(overview({title: {n: c[0] for n, c in g.items()} for title, g in groups.items()}))
        return None
    if name == "--version":
        say(f"spad {__version__}")
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
    """Extra that installs an optional package; `mesh` has the readers of models that `data` has."""
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


def _fail(message: str, code: int, kind: str = "error: ") -> int:
    one_line = " ".join(message.split())
    say(f"spad: {kind}{one_line}", sys.stderr)
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
        say(f"spad: {kind}{record.getMessage()}", sys.stderr)


@contextmanager
def _prepared(may_fetch: bool, may_spin: bool) -> Iterator[None]:
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
    # Threads that spin while they wait make everything much slower if other work shares the cores.
    if not may_spin:
        variables[WAIT_POLICY] = "passive"
    elif "torch" not in sys.modules:
        set_wait_policy(os.environ)
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    log, handler = logging.getLogger("spad"), _LineHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    try:
        with quiet_warnings(), termination_as_interrupt():
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        # A program that calls `main` has its environment back.
        for name in added:
            os.environ.pop(name, None)
