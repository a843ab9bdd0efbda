"""The benchmarks count right, take turns, and write what they measured."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import flops
from benchmarks.processes import ROOT, Worker, WorkerDied
from benchmarks.variants import Variant, parse_fields, split_fields
from mtl_keras.experiments.recipes import TABLES

# A 3x3 convolution of stride 2 turns 6x10 pixels into 3x5; then comes a product.
IMAGES, KERNEL, MATRIX = (2, 6, 10, 4), (3, 3, 4, 8), (3 * 5 * 8, 3)
CONVOLUTION = 2 * (2 * 3 * 5) * (3 * 3 * 4 * 8)
PRODUCT = 2 * 2 * (3 * 5 * 8) * 3


def test_flops_of_tensorflow_equal_a_count_by_hand():
    tf = pytest.importorskip("tensorflow")

    def forward(images, kernel, matrix):
        x = tf.nn.conv2d(images, kernel, strides=2, padding="SAME")
        return tf.reduce_sum(tf.reshape(x, (2, -1)) @ matrix)

    def train(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = forward(*tensors)
        return value, tape.gradient(value, tensors)

    specs = [tf.TensorSpec(shape) for shape in (IMAGES, KERNEL, MATRIX)]
    for function, passes in ((forward, 1), (train, 3)):
        graph = tf.function(function).get_concrete_function(*specs).graph
        count = sum(flops.count_tensorflow(graph).values())
        assert count == passes * (CONVOLUTION + PRODUCT)


def test_flops_of_jax_equal_a_count_by_hand():
    jax = pytest.importorskip("jax")

    @jax.jit
    def forward(images, kernel, matrix):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "SAME", dimension_numbers=layout
        )
        return (x.reshape(2, -1) @ matrix).sum()

    arrays = [np.ones(shape, "float32") for shape in (IMAGES, KERNEL, MATRIX)]
    train = jax.value_and_grad(forward, argnums=(0, 1, 2))
    for function, passes in ((forward, 1), (train, 3)):
        count = flops.count_jax(jax.make_jaxpr(function)(*arrays).jaxpr)
        assert count == passes * (CONVOLUTION + PRODUCT)


WORKER = """
from benchmarks.processes import serve

class Target:
    def double(self, number):
        print("working")
        return 2 * number

    def fail(self):
        raise SystemExit("out of order")

serve(Target())
"""


def read_state(worker):
    status = Path(f"/proc/{worker._process.pid}/status").read_text(encoding="utf-8")
    return next(line for line in status.splitlines() if line.startswith("State"))


def test_a_learning_rate_is_chosen_for_each_family():
    from benchmarks.search import choose_rates, family_of

    table = TABLES["D"]
    families = {key: family_of(row) for key, row in table.rows.items()}
    assert families["depth"] == "single" and families["tuned"] == "fixed"
    assert families["all"] == families["gls"] == "learned"
    results = {
        ("semantic", 0.1): {"semantic/miou": 0.5},
        ("semantic", 0.2): {"semantic/miou": 0.25},  # half as good
        ("depth", 0.1): {"depth/mean_abs": 1.1},  # a tenth worse
        ("depth", 0.2): {"depth/mean_abs": 1.0},
        ("all", 0.1): {"depth/mean_abs": 3.0},
        ("all", 0.2): {"depth/mean_abs": 2.0},
    }
    chosen, lost = choose_rates(table, results)
    assert chosen == {"single": 0.1, "learned": 0.2}
    assert lost["single"] == pytest.approx({0.1: 0.05, 0.2: 0.25})
    assert lost["learned"] == pytest.approx({0.1: 0.5, 0.2: 0.0})


def test_a_worker_answers_and_is_stopped_in_between(tmp_path):
    (tmp_path / "stub.py").write_text(WORKER)
    with Worker("stub", environment={"PYTHONPATH": str(tmp_path)}) as worker:
        assert [worker.ask("double", number=n) for n in (1, 2)] == [2, 4]
        deadline = time.monotonic() + 10
        while "stopped" not in read_state(worker):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(WorkerDied, match="status 1: out of order"):
            worker.ask("fail")
        with pytest.raises(WorkerDied):
            worker.ask("double", number=1)


def test_variants_are_parsed_and_named():
    variants = [
        Variant(**parse_fields(text))
        for text in ("batch_size=8,image_size=32x64", "batch_size=8,image_size=64x128")
    ]
    agreeing, differing = split_fields(variants)
    assert [variant.in_words(differing) for variant in variants] == ["32x64", "64x128"]
    assert "resnet101, resize_conv, float32, batch 8" in variants[0].in_words(agreeing)
    for text in ("bach_size=8", "precision=float8", "jit=maybe"):
        with pytest.raises(Exception, match=text.split("=")[0]):
            parse_fields(text)


def run_script(name, *arguments):
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process


def count_saved_flops(height, width, channels, filters):
    """What three 3x3 heads of `filters` save an image, forward, by resizing after
    the product with the taps, from an eighth of `height` and `width`."""
    h, w = height // 8, width // 8
    direct = 3 * 2 * height * width * 9 * channels * filters
    direct += 2 * h * width * w * channels + 2 * height * h * width * channels
    taps = 2 * h * w * channels * 9 * filters
    columns = 2 * 3 * h * width * 3 * w * filters
    rows = 2 * height * 3 * h * width * filters
    return direct - 3 * (taps + columns + rows)


@pytest.mark.slow
def test_the_step_is_timed_in_turns(tmp_path):
    pytest.importorskip("tensorflow")
    common = ("--set", "backbone=small,image_size=32x64,batch_size=2", "--rounds", 2)
    common += ("--turn-seconds", 0, "--output", tmp_path)
    variants = ("--variants", "decoder=direct", "decoder=resize_conv")
    run_script("train_step", *variants, *common)
    written = (tmp_path / "train_step.json").read_text()
    ((title, rows),) = json.loads(written)["custom"].items()
    assert title == "tensorflow, mtl, small, float32, batch 2, 32x64"
    direct, resize_conv = rows
    for row in (direct, resize_conv):
        assert row["error"] is None
        assert {len(seconds) for seconds in row["seconds"].values()} == {2}
        assert min(sum(row["seconds"].values(), [])) > 0
        assert row["peak_memory_bytes"] > 2**27
        assert row["first_step_seconds"] > row["seconds"]["train"][0]
        assert row["machine"]["device"] and row["machine"]["packages"]["keras"]
    saved = direct["flops"]["forward"] - resize_conv["flops"]["forward"]
    assert saved == 2 * count_saved_flops(32, 64, 640, 32)
    assert "| resize_conv | training step |" in (tmp_path / "train_step.md").read_text()

    run_script("train_step", *variants, *common, "--resume")
    assert (tmp_path / "train_step.json").read_text() == written

    run_script("train_step", "--variants", "framework=torch,decoder=direct", *common)
    results = json.loads((tmp_path / "train_step.json").read_text())["custom"]
    kept, (failed,) = results.values()
    assert kept == rows
    assert "ended with status 1" in failed["error"]
    assert failed["error"] in (tmp_path / "train_step.md").read_text()


@pytest.mark.slow
def test_the_step_is_broken_down(tmp_path):
    pytest.importorskip("tensorflow")
    fields = "backbone=small,image_size=32x64,batch_size=2"
    run_script("breakdown", "--variant", fields, "--steps", 1, "--output", tmp_path)
    (result,) = json.loads((tmp_path / "breakdown.json").read_text()).values()
    parts = result["parts"]
    assert {"backbone: stage 5", "heads: first layer", "optimizer"} <= set(parts)
    assert "other layers" not in parts
    taps = 3 * 2 * 4 * 8 * 640 * 9 * 32
    assert parts["heads: first layer"]["flops"] > 3 * 2 * taps  # with interpolation
    times = [
        sum(part[d] for d in ("forward", "backward and update"))
        for part in parts.values()
    ]
    assert min(times) > 0
    assert "The largest excess" in (tmp_path / "breakdown.md").read_text()
