"""What a measurement was taken on."""

import datetime
import importlib.metadata
import os
import pathlib
import platform

from mtl_keras.workers import count_cores


def describe(packages=("numpy",)):
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


def _cpu_model():
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.processor()
