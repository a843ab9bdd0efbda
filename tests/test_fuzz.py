"""A short part of `benchmarks/fuzz.py`; properties of options; what could run code."""

import ast
import pathlib
import pickle
import random

import numpy as np
import pytest

from benchmarks import fuzz
from mtl_keras.errors import UserError
from mtl_keras.experiments import divergence
from mtl_keras.experiments.options import TrainOptions, read_options, write_options

CODE = pathlib.Path(fuzz.__file__).parents[1]


def test_damaged_files_are_refused_or_read_rightly(tmp_path):
    kinds = {fuzz.Trees: 2, fuzz.Archives: 1, fuzz.Arrays: 1, fuzz.Pictures: 1}
    outcomes, failures = fuzz.fuzz(100, 1000, tmp_path, {**kinds, fuzz.Arguments: 2})
    assert failures == []
    assert sum(outcomes.values()) >= 100 and outcomes["Trees", "refused"] > 10


def test_a_reader_of_wrong_data_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(
        fuzz, "read_picture", lambda path: np.zeros((*fuzz.SIZE, 3), np.uint8)
    )
    _, failures = fuzz.fuzz(20, 0, tmp_path, {fuzz.Pictures: 1})
    assert failures and all("WrongData" in failure for failure in failures)


def test_any_options_come_back(tmp_path):
    rng = random.Random(0)
    for _ in range(100):
        options = TrainOptions(
            epochs=rng.randint(1, 10**6),
            learning_rate=rng.uniform(1e-12, 1e3),
            image_size=(rng.randint(32, 9999), rng.randint(32, 9999)),
            task_weights={"depth": rng.random()},
            output="".join(map(chr, rng.choices(range(32, 0x500), k=9))),
            flip=rng.random() < 0.5,
        )
        write_options(options, tmp_path / "options.json")
        assert read_options(TrainOptions, tmp_path / "options.json") == options


class Bomb:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("exploded"),)


def test_nothing_in_a_kept_step_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("diverged.npz", step=np.array([Bomb()], object))
    with pytest.raises(UserError, match="is damaged"):
        divergence.read_batch(tmp_path / "diverged.npz")
    (tmp_path / "diverged.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="is damaged"):
        divergence.read_batch(tmp_path / "diverged.npz")
    assert not pathlib.Path("exploded").exists()


def test_no_loader_of_the_package_runs_code():
    for path in (CODE / "mtl_keras").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in getattr(node, "names", ()) if alias]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert not {"pickle", "joblib", "dill", "shelve"} & {*names}, path
            if not isinstance(node, ast.Call):
                continue
            called, given = (
                ast.unparse(node.func),
                {k.arg: ast.unparse(k.value) for k in node.keywords},
            )
            if called == "np.load":
                assert given.get("allow_pickle") == "False", path
            assert given.get("safe_mode") != "False", path
            assert called.rpartition(".")[2] not in ("Lambda", "eval", "exec"), path
            assert "enable_unsafe_deserialization" not in called, path


def test_servers_listen_on_this_machine_alone():
    from mtl_keras.experiments.options import AppOptions

    assert AppOptions().host == "127.0.0.1"
    for path in (CODE / "mtl_keras").rglob("*.py"):
        assert "0.0.0.0" not in path.read_text(encoding="utf-8"), path
