"""Multi-task learning using uncertainty to weigh losses, in Keras 3."""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "FixedWeighting": "losses",
    "MaskedLoss": "losses",
    "MultiTaskTrainer": "training",
    "UncertaintyWeighting": "losses",
    "build_network": "model",
}
_MODULES = (
    "cityscapes",
    "instances",
    "layers",
    "losses",
    "metrics",
    "model",
    "optimizers",
    "training",
)
__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name):
    # Loaded on first use: the scripts' --help and the renderer's worker
    # processes import the package without waiting for Keras.
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"mtl_keras.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"mtl_keras.{name}")
    raise AttributeError(f"module 'mtl_keras' has no attribute {name!r}")


def __dir__():
    return __all__
