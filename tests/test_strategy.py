"""Runs on JAX, on one device and on several that share every batch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest

from mtl_keras.errors import UserError
from mtl_keras.experiments import runs, setup
from mtl_keras.experiments.options import TrainOptions

ROOT = Path(__file__).parents[1]
# 500 validation images in batches of 48 leave 20, which three devices cannot share.
DIGITS = (
    *("--recipe", "C/all", "--dataset", "digits", "--batch-size", "48"),
    *("--epochs", "2", "--train-frames", "240", "--export", "none", "--resume"),
)

pytestmark = pytest.mark.slow


def start(*arguments, cwd):
    pytest.importorskip("jax")
    devices = "--xla_force_host_platform_device_count=3"
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments],
        cwd=cwd,
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": devices},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(*arguments, cwd):
    process = start(*arguments, cwd=cwd)
    output, errors = process.communicate()
    return process.returncode, output, errors


def test_three_devices_give_the_scores_of_one(tmp_path):
    for strategy in ("none", "mirrored"):
        status, output, errors = call(
            *DIGITS, "--strategy", strategy, "--output", strategy, cwd=tmp_path
        )
        assert status == 0, errors
    assert "3 devices share every batch" in output
    alone, shared = (
        runs.read_history(tmp_path / name) for name in ("none", "mirrored")
    )
    assert len(alone) == len(shared) == 2
    for rows in zip(alone, shared):
        assert rows[0].keys() == rows[1].keys()
        for key, value in rows[0].items():  # one image may be on either side
            accuracy = 4 / 500 if "accuracy" in key else 1e-6
            assert rows[1][key] == pytest.approx(value, rel=1e-3, abs=accuracy), key


def test_a_run_on_jax_goes_on_the_same(tmp_path):
    status, _, errors = call(*DIGITS, "--output", "whole", cwd=tmp_path)
    assert status == 0, errors
    process = start(*DIGITS, "--output", "stopped", cwd=tmp_path)
    while not (tmp_path / "stopped" / "history.csv").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    status, _, errors = call(*DIGITS, "--output", "stopped", cwd=tmp_path)
    assert status == 0, errors
    for name in ("history.csv", "result.json"):
        found, expected = (tmp_path / run / name for run in ("stopped", "whole"))
        assert found.read_bytes() == expected.read_bytes(), name


def test_batches_that_cannot_be_shared_evenly_are_refused(monkeypatch):
    devices = ["gpu:0", "gpu:1", "gpu:2"]
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: devices)
    with pytest.raises(UserError, match="--batch-size 8.*3 devices.*multiple of 3"):
        setup.distribute(TrainOptions(strategy="mirrored", batch_size=8))
    assert keras.distribution.distribution() is None


def test_other_backends_refuse_to_share_batches():
    with pytest.raises(UserError, match="KERAS_BACKEND=jax.*batch normalization"):
        setup.distribute(TrainOptions(strategy="mirrored"))
    setup.distribute(TrainOptions())
