"""The model: networks, schedulers, and the pipeline that samples images with them.

Saved folders name this package for its classes, and diffusers looks here for the base classes too.
Names are imported when first used: `import spad.model` loads neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# For editors and type checkers; the same names as in `_HOMES`.
if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    from spad.model.autoencoder import PatchAutoencoder
    from spad.model.pipeline import SPADPipeline
    from spad.model.schedulers import ReleasedDDIMScheduler
    from spad.model.unet import MultiViewUNet

__all__ = [
    "ModelMixin",
    "MultiViewUNet",
    "PatchAutoencoder",
    "ReleasedDDIMScheduler",
    "SPADPipeline",
    "SchedulerMixin",
    "current_class",
]

_HOMES = {
    "ModelMixin": "diffusers.models.modeling_utils",
    "MultiViewUNet": "spad.model.unet",
    "PatchAutoencoder": "spad.model.autoencoder",
    "ReleasedDDIMScheduler": "spad.model.schedulers",
    "SPADPipeline": "spad.model.pipeline",
    "SchedulerMixin": "diffusers.schedulers.scheduling_utils",
}

# Names of classes in folders saved before 0.1.
_FORMER_NAMES = {"OriginalDDIMScheduler": "ReleasedDDIMScheduler"}


def current_class(module: str, name: str) -> tuple[str, str]:
    """Present module and name of a class in a `model_index.json` of any version.

    Folders of other versions, and those for the hub, have classes of this package in other modules.
    """
    name = _FORMER_NAMES.get(name, name)
    is_own = _HOMES.get(name, "").startswith("spad.")
    return ("spad.model" if is_own else module), name


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'spad.model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
