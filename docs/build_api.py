"""Builds the API reference from the docstrings: `python -m docs.build_api FOLDER`."""

import pathlib
import pkgutil
import sys
import warnings

import pdoc

import mtl_keras
from mtl_keras import instances, streets


def name_modules(package):
    """Puts all modules of a package in its `__all__`, which pdoc goes by."""
    names = [
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if module.name != "__main__"
    ]
    package.__all__ = [*dict.fromkeys([*getattr(package, "__all__", ()), *names])]


if __name__ == "__main__":
    for name in mtl_keras.__all__:  # what is loaded on first use, pdoc does not see
        setattr(mtl_keras, name, getattr(mtl_keras, name))
    for package in (mtl_keras, instances, streets):
        name_modules(package)
    warnings.filterwarnings("ignore", message=".*tensorflow_datasets.*|.*FramesConfig")
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("mtl_keras", output_directory=pathlib.Path(sys.argv[1]))
