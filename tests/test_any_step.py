"""A training that is stopped after any step goes on as if it had not been."""

import errno
import json
import os
import signal

import h5py
import keras
import numpy as np
import pytest

from mtl_keras.commands import train
from mtl_keras.errors import StoppedError, UserError
from mtl_keras.experiments import callbacks, checkpoints, interruption, runs
from mtl_keras.experiments.options import TrainOptions

STEPS = 3  # per epoch
DIGITS = {
    "dataset": "digits",
    "tasks": ("class", "reconstruction"),
    "likelihoods": {"class": "softmax", "reconstruction": "laplace"},
    "train_frames": 96,
    "batch_size": 32,
    "epochs": 4,
    "learning_rate": 0.01,
    "jit": "off",
}


class Ask(keras.callbacks.Callback):
    """Sends this process a signal after a step, or after a batch of a validation.

    Both are counted from 1 over the whole training; validations by their epoch.
    """

    def __init__(self, step=0, validation=0, number=signal.SIGTERM):
        super().__init__()
        self.step, self.validation, self.number = step, validation, number

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.done = (epoch + 1) * STEPS - self.params["steps"]

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == self.step:
            os.kill(os.getpid(), self.number)

    def on_test_batch_end(self, batch, logs=None):
        if self.epoch + 1 == self.validation:
            os.kill(os.getpid(), self.number)


def run(monkeypatch, output, *asks, **changed):
    """Trains to the end, stopped by each of `asks` in turn; returns what came of it."""
    options = TrainOptions(
        **{**DIGITS, **changed}, output=str(output), resume=True, checkpoint_minutes=0
    )
    make_callbacks = callbacks.make_callbacks
    for ask in asks:
        with monkeypatch.context() as patch, pytest.raises(StoppedError) as stopped:
            patch.setattr(
                callbacks, "make_callbacks", lambda *args: [ask, *make_callbacks(*args)]
            )
            train.train(options, export=False)
        assert stopped.value.status == 128 + ask.number
    train.train(options, export=False)
    found = {
        name: (output / name).read_bytes() for name in ("history.csv", "result.json")
    }
    for path in ("last/latest.weights.h5", "best.weights.h5"):
        with h5py.File(output / "checkpoints" / path) as file:
            file.visititems(
                lambda name, item, path=path: (
                    found.update({f"{path}/{name}": item[()].tobytes()})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    return found


STOPS = {
    "steps": [Ask(step=1, number=signal.SIGINT), Ask(step=6, number=signal.SIGUSR1)],
    "validations": [Ask(validation=2), Ask(validation=4)],
    "both": [Ask(step=4), Ask(step=5), Ask(validation=2), Ask(step=7)],
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weighting": "dwa"},
        {"weighting": "rlw"},
        {"schedule": "plateau"},
        {"schedule": "cosine"},
    ],
    ids=str,
)
def test_nothing_differs_after_a_stop(monkeypatch, tmp_path, settings):
    if settings.get("weighting"):
        settings = {**settings, "likelihoods": {}}
    if settings.get("schedule") == "plateau":
        plateau = {"factor": 0.5, "patience": 1, "min_delta": 1e9}
        monkeypatch.setattr(callbacks, "PLATEAU", plateau)
    expected = run(monkeypatch, tmp_path / "whole", **settings)
    stops = STOPS if not settings else {"both": STOPS["both"]}
    for name, asks in stops.items():
        found = run(monkeypatch, tmp_path / name, *asks, **settings)
        different = [key for key in expected if found[key] != expected[key]]
        assert found.keys() == expected.keys() and not different, (name, different)
    rows = runs.read_history(tmp_path / "both")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    clock = runs.read_history(tmp_path / "both", "epochs.csv")
    assert [row["epoch"] for row in clock] == [0, 1, 2, 3]


def test_crops_of_street_scenes_go_on_the_same(monkeypatch, tmp_path, street_tree):
    settings = {
        **{"dataset": "scenes", "tasks": ("semantic", "instance", "depth")},
        **{"data": str(street_tree), "data_dir": str(tmp_path / "data")},
        **{"backbone": "small", "image_size": (32, 64), "crop": (48, 48)},
        **{"scales": (0.5, 2.0), "jitter": 0.3, "records": "source"},
        **{"batch_size": 1, "steps": 2 * STEPS, "epoch_steps": STEPS},
        **{"likelihoods": TrainOptions().likelihoods, "train_frames": 0},
        **{"schedule": "poly", "optimizer": "sgd", "learning_rate": 1e-3},
    }
    expected = run(monkeypatch, tmp_path / "whole", **settings)

    def ask_in_validation(self, batch, logs=None):
        if self._epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        watch(self, batch, logs)

    watch = checkpoints.Checkpoints.on_test_batch_end
    with monkeypatch.context() as patch:  # that of whole frames, apart from Keras's
        patch.setattr(checkpoints.Checkpoints, "on_test_batch_end", ask_in_validation)
        with pytest.raises(StoppedError, match="after the steps of epoch 1"):
            run(monkeypatch, tmp_path / "stopped", **settings)
    found = run(monkeypatch, tmp_path / "stopped", Ask(step=4), **settings)
    assert [key for key in expected if found[key] != expected[key]] == []


def test_where_a_stop_leaves_the_run(monkeypatch, tmp_path):
    options = TrainOptions(**DIGITS, output=str(tmp_path / "run"))
    make_callbacks = callbacks.make_callbacks
    monkeypatch.setattr(
        callbacks, "make_callbacks", lambda *args: [Ask(5), *make_callbacks(*args)]
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="Stopped by SIGTERM after step 5."):
        train.train(options)
    assert signal.getsignal(signal.SIGTERM) is before
    directory = tmp_path / "run" / "checkpoints"
    assert checkpoints.read_position(directory) == (1, 2)
    assert checkpoints.find_damage(directory / "last") == ""
    assert checkpoints.read_position(directory).epoch == 1
    with pytest.raises(UserError, match="unfinished run; go on with --resume"):
        train.train(options)
    (directory / "last" / "metrics.npz").write_bytes(b"")
    with runs.claim_directory(
        TrainOptions(**DIGITS, output=options.output, resume=True), 4
    ):
        assert checkpoints.read_position(directory) == (1, 0)


def test_checkpoints_within_an_epoch_are_made_by_the_clock(monkeypatch, tmp_path):
    saved = []
    save = checkpoints.Checkpoints._save

    def note(self, position, *args):
        saved.append(tuple(position))
        save(self, position, *args)

    monkeypatch.setattr(checkpoints.Checkpoints, "_save", note)
    options = TrainOptions(
        **{**DIGITS, "epochs": 2}, output=str(tmp_path / "run"), checkpoint_minutes=1e-9
    )
    train.train(options, export=False)
    assert saved == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]


def test_a_second_signal_does_what_it_did_before():
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interruption.listen() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert request.signal == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize("what", [checkpoints.Checkpoints, checkpoints.BestWeights])
def test_a_full_disk_is_found_before_hdf5_meets_it(tmp_path, monkeypatch, what):
    """HDF5 ends the process where it cannot write."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    settings = {"monitor": "loss", "mode": "min"}
    settings = settings if what is checkpoints.BestWeights else {"steps_per_epoch": 1}
    saver = what(tmp_path, **settings)
    saver.set_model(model)
    saver.on_train_begin()
    saver.on_epoch_end(0, {"loss": 2.0})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def fail(descriptor, start, size):
        assert size > 100
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="No space left on device: .*weights.h5"):
        saver.on_epoch_end(1, {"loss": 1.0})
    assert {p: p.read_bytes() for p in before} == before


def test_best_weights_are_whole_for_whoever_reads_them(tmp_path):
    layer = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((1,)), layer])
    saver = checkpoints.BestWeights(tmp_path, monitor="loss", mode="min")
    saver.set_model(model)
    saver.on_train_begin()
    best = tmp_path / "best.weights.h5"
    for loss in (3.0, 2.0):
        layer.set_weights([np.array([[loss]]), np.zeros(1)])
        saver.on_epoch_end(0, {"loss": loss})
        with h5py.File(best) as file:  # held open while the next one is written
            layer.set_weights([np.array([[1.0]]), np.zeros(1)])
            saver.on_epoch_end(1, {"loss": loss - 0.5})
            assert file.id.valid
        checkpoints.check_best(tmp_path)
    saver.on_epoch_end(2, {"loss": 9.0})
    model.load_weights(best)
    assert layer.get_weights()[0] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.json",
        best.name,
    ]
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    with pytest.raises(UserError, match="best.weights.h5 is damaged"):
        checkpoints.check_best(tmp_path)


@pytest.mark.parametrize("killed_at", range(4))
def test_a_kill_while_the_best_weights_are_saved(tmp_path, monkeypatch, killed_at):
    layer = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((1,)), layer])
    saver = checkpoints.BestWeights(tmp_path, monitor="loss", mode="min")
    saver.set_model(model)
    saver.on_train_begin()
    saver.on_epoch_end(0, {"loss": 3.0})
    calls = iter(range(10))
    replace = type(tmp_path).replace

    class Killed(BaseException):
        pass

    def until_killed(*args):
        if next(calls) == killed_at:
            raise Killed
        return replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", until_killed)
        try:
            saver.on_epoch_end(1, {"loss": 2.0})
        except Killed:
            pass
        else:
            assert killed_at == 3
    checkpoints.check_best(tmp_path)
    saver.on_train_begin()
    saver.on_epoch_end(1, {"loss": 1.0})
    checkpoints.check_best(tmp_path)
    assert len(json.loads((tmp_path / "best.json").read_text())["sha256"]) == 1
