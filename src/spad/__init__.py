"""Multi-view diffusion: text and cameras in, consistent images of one object out.

Names are imported when first used: `import spad` loads neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# For editors and type checkers; the same names as in `_HOMES`.
if TYPE_CHECKING:
    from spad.cameras.cameras import Cameras
    from spad.cameras.formats import load_cameras
    from spad.data.view_sets import set_from_images
    from spad.geometry.epipolar import epipolar_mask
    from spad.geometry.rays import plucker_map
    from spad.hub.registry import load_model
    from spad.model.autoencoder import PatchAutoencoder
    from spad.model.pipeline import SPADPipeline
    from spad.model.unet import MultiViewUNet
    from spad.reconstruction.reconstruct import reconstruct

__version__ = "0.1.0"

__all__ = [
    "Cameras",
    "MultiViewUNet",
    "PatchAutoencoder",
    "SPADPipeline",
    "__version__",
    "epipolar_mask",
    "load_cameras",
    "load_model",
    "plucker_map",
    "reconstruct",
    "set_from_images",
]

_HOMES = {
    "Cameras": "spad.cameras.cameras",
    "MultiViewUNet": "spad.model.unet",
    "PatchAutoencoder": "spad.model.autoencoder",
    "SPADPipeline": "spad.model.pipeline",
    "epipolar_mask": "spad.geometry.epipolar",
    "load_cameras": "spad.cameras.formats",
    "load_model": "spad.hub.registry",
    "plucker_map": "spad.geometry.rays",
    "reconstruct": "spad.reconstruction.reconstruct",
    "set_from_images": "spad.data.view_sets",
}

# What needs an extra.
_EXTRAS = {"reconstruct": "mesh"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'spad' has no attribute {name!r}")
    try:
        home = import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if name not in _EXTRAS:
            raise
        from spad.installation import install_command

        command = install_command(_EXTRAS[name])
        message = f"{name} needs {error.name}; install it with: {command}"
        raise ModuleNotFoundError(message, name=error.name) from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return __all__
