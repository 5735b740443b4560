"""Text and cameras in, consistent views of one object out.

Names are imported when first used: `import spad` loads neither torch nor diffusers.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Cameras": "spad.cameras.cameras",
    "load_cameras": "spad.cameras.formats",
    "MultiViewUNet": "spad.model.unet",
    "PatchAutoencoder": "spad.model.autoencoder",
    "SPADPipeline": "spad.model.pipeline",
    "load_model": "spad.hub.registry",
    "epipolar_mask": "spad.geometry.epipolar",
    "plucker_map": "spad.geometry.rays",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'spad' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
