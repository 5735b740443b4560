"""The model: networks, schedulers, and the pipeline that draws with them.

Saved folders name this package for its classes, and diffusers looks here for the base classes too.
Names are imported when first used: `import spad.model` loads neither torch nor diffusers.
"""

from importlib import import_module

_HOMES = {
    "ModelMixin": "diffusers",
    "MultiViewUNet": "spad.model.unet",
    "OriginalDDIMScheduler": "spad.model.schedulers",
    "PatchAutoencoder": "spad.model.autoencoder",
    "SPADPipeline": "spad.model.pipeline",
    "SchedulerMixin": "diffusers",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'spad.model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
