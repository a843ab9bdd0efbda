"""What a run or a measurement was made on.

This module imports nothing heavy.
"""

import datetime
import functools
import importlib.metadata
import json
import operator
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

from mtl_keras.experiments.files import write_whole
from mtl_keras.workers import count_cores


def describe(packages: Sequence[str] = ("numpy",)) -> dict[str, Any]:
    """The machine, Python, the versions of `packages` and the date, as a dict."""
    return {
        "cpu": _cpu_model(),
        "cores": count_cores(),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
    }


def write_environment(directory: pathlib.Path) -> None:
    """Keeps what a run is trained with in `environment.json` of its directory; where it
    goes on with something else, that as well, in `resumed_with`."""
    import keras

    import mtl_keras

    names = ("keras", keras.backend.backend(), "numpy")
    found = describe([name for name in names if _is_installed(name)])
    found["packages"] = {"mtl_keras": mtl_keras.__version__, **found["packages"]}
    found["devices"] = ", ".join(keras.distribution.list_devices())
    path = directory / "environment.json"
    if first := _read(path):
        resumed = first.get("resumed_with", [])
        last = functools.reduce(operator.or_, resumed, first)
        same = ("cpu", "packages", "devices")
        changed = {key: found[key] for key in same if found[key] != last.get(key)}
        if not changed:
            return
        found = {**first, "resumed_with": [*resumed, changed]}
    write_whole(path, json.dumps(found, indent=2) + "\n")


def _read(path):
    """What is kept already, empty if it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _is_installed(name):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cpu_model():
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.processor()
