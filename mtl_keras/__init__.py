"""Multi-task learning using uncertainty to weigh losses, in Keras 3."""

import importlib
import importlib.machinery
import sys
from typing import Any

__version__ = "0.2.0.dev0"

_PUBLIC = {
    "DynamicWeightAverage": "weightings",
    "FixedWeighting": "weighting",
    "GeometricMean": "weightings",
    "LogSum": "weightings",
    "MaskedLoss": "losses",
    "MultiTaskTrainer": "training",
    "RandomWeighting": "weightings",
    "SoftOptimalWeighting": "weightings",
    "UncertaintyWeighting": "weighting",
    "build_network": "model",
}
# The modules that need Keras and NumPy; the other two do without Keras.
_ON_KERAS = (
    "layers",
    "losses",
    "metrics",
    "model",
    "optimizers",
    "training",
    "weighting",
    "weightings",
)
_MODULES = ("cityscapes", "instances", *_ON_KERAS)
__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the scripts' --help and the renderer's worker
    # processes import the package without waiting for Keras.
    if name in _PUBLIC or name in _MODULES:
        if name not in ("cityscapes", "instances"):
            importlib.import_module("keras")  # and with it the modules
        module = importlib.import_module(f"mtl_keras.{_PUBLIC.get(name, name)}")
        return getattr(module, name) if name in _PUBLIC else module
    raise AttributeError(f"module 'mtl_keras' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _import_modules():
    """Makes the classes known to `keras.models.load_model`."""
    for name in _ON_KERAS:
        importlib.import_module(f"mtl_keras.{name}")


class _AfterKeras(importlib.machinery.PathFinder):
    """Imports the modules right after Keras, unless one of them is importing it."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        spec = (
            super().find_spec(fullname, path, target) if fullname == "keras" else None
        )
        if spec is None:
            return None
        load = spec.loader.exec_module

        def load_and_import(module):
            sys.meta_path.remove(cls)
            load(module)
            if not any(f"mtl_keras.{name}" in sys.modules for name in _ON_KERAS):
                _import_modules()

        spec.loader.exec_module = load_and_import
        return spec


if "keras" in sys.modules:
    _import_modules()
else:
    sys.meta_path.insert(0, _AfterKeras)
