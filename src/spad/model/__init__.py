"""The model: networks, schedulers, and the pipeline that draws with them.

Saved folders name this package for its classes, and diffusers looks here for the base classes too.
Names are imported when first used: `import spad.model` loads neither torch nor diffusers.
"""

from importlib import import_module

_HOMES = {
    "ModelMixin": "diffusers",
    "MultiViewUNet": "spad.model.unet",
    "ReleasedDDIMScheduler": "spad.model.schedulers",
    "PatchAutoencoder": "spad.model.autoencoder",
    "SPADPipeline": "spad.model.pipeline",
    "SchedulerMixin": "diffusers",
}

__all__ = [*_HOMES, "current_class"]

# Classes that folders saved before 0.1 name, and what they are called now.
_FORMER_CLASSES = {
    ("spad.autoencoder", "PatchAutoencoder"): ("spad.model", "PatchAutoencoder"),
    ("spad.original_scheduler", "OriginalDDIMScheduler"): ("spad.model", "ReleasedDDIMScheduler"),
}


def current_class(module: str, name: str) -> list[str]:
    """Module and class as `model_index.json` names them now, from any version's."""
    return list(_FORMER_CLASSES.get((module, name), (module, name)))


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'spad.model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
