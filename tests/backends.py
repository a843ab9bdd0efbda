"""Marks for tests that are about one backend; the runs on the others leave them out."""

import keras
import pytest

BACKEND = keras.backend.backend()


def only_on(backend, reason):
    """Skips a test on every backend but one, which `make test` runs as well."""
    return pytest.mark.skipif(BACKEND != backend, reason=f"{backend} only: {reason}")


def not_on(backend, reason):
    """Skips a test on one backend."""
    return pytest.mark.skipif(BACKEND == backend, reason=f"not {backend}: {reason}")
