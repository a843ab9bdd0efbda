"""Builds the wheel and tries it outside the checkout: `python tests/check_wheel.py`.

In a bare environment it brings Keras and NumPy alone, and with JAX the README's example
trains there. In an environment with the extra `tensorflow` the commands run.
"""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import venv

ROOT = pathlib.Path(__file__).parents[1]
MOST_PACKAGES = 25  # 16 when this was written: Keras, NumPy, what they need, and pip
# What only the commands, other backends or the developers need.
NEVER = {"jax", "matplotlib", "pytest", "ruff", "scipy", "tensorflow", "torch", "tqdm"}

LIBRARY = """
import re, sys
import keras, numpy as np

inputs = keras.Input((3,))
model = keras.Model(
    inputs,
    {
        "age": keras.layers.Dense(1, name="age")(inputs),
        "kind": keras.layers.Dense(2, name="kind")(inputs),
    },
)
kind_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
readme = open(sys.argv[1], encoding="utf-8").read()
exec(re.search(r"```python\\n(.*?)```", readme, re.DOTALL).group(1))
x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
y = {"age": x.sum(1, keepdims=True), "kind": (x[:, :1] > 0).astype("int32")}
losses = trainer.fit(x, y, epochs=20, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
trainer.save(sys.argv[2])
keras.models.load_model(sys.argv[2])
import mtl_keras
assert "site-packages" in mtl_keras.__file__, mtl_keras.__file__
print(keras.backend.backend(), sorted(weighting.sigmas()))
"""

TREE = """
from mtl_keras.streets import write_cityscapes_tree
write_cityscapes_tree("tree", {"train": 4, "val": 2}, (64, 128), progress=False)
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        with step("build the wheel"):
            # By way of an sdist: what an earlier build left behind stays out of it.
            run(sys.executable, "-m", "build", "--outdir", place, ROOT)
        (wheel,) = place.glob("*.whl")
        with step("install it bare"):
            python = make_environment(place / "bare")
            run(python, "-m", "pip", "install", "--quiet", wheel)
            check_packages(run(python, "-m", "pip", "list", "--format=freeze"))
        with step("train the README's example on JAX"):
            run(python, "-m", "pip", "install", "--quiet", f"{wheel}[jax]")
            library = ("-c", LIBRARY, ROOT / "README.md", "trainer.keras")
            run(python, *library, cwd=place, KERAS_BACKEND="jax")
        with step("install it with TensorFlow"):
            python = make_environment(place / "full")
            pins = ("--constraint", ROOT / "requirements.txt")
            run(
                python, "-m", "pip", "install", "--quiet", *pins, f"{wheel}[tensorflow]"
            )
        with step("train, evaluate and predict as commands"):
            check_commands(python, place)


@contextlib.contextmanager
def step(title):
    started = time.perf_counter()
    print(f"wheel: {title} ...", end="", flush=True)
    yield
    print(f" {time.perf_counter() - started:.0f} s", flush=True)


def make_environment(path):
    venv.create(path, with_pip=True)
    return path / ("Scripts" if os.name == "nt" else "bin") / "python"


def run(*command, cwd=None, **environment):
    """Runs a command, without the checkout on Python's path; returns what it prints."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        shown = " ".join(map(str, command[1:])).split("\n")[0]
        sys.exit(f"\nerror: {shown} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def check_packages(freeze):
    """Exits unless there are few packages, and none of those in `NEVER`."""
    names = {line.partition("==")[0].lower() for line in freeze.split()}
    print(f" {len(names)} packages: {', '.join(sorted(names))};", end="")
    if surplus := names & NEVER:
        sys.exit(f"\nerror: the wheel alone brings {', '.join(sorted(surplus))}.")
    if len(names) > MOST_PACKAGES:
        sys.exit(f"\nerror: the wheel alone brings more than {MOST_PACKAGES} packages.")


def check_commands(python, place):
    """Trains for two steps, evaluates and predicts, in the working directory; records
    go where `--data-dir` says."""
    work = place / "work"
    work.mkdir()
    run(python, "-c", TREE, cwd=work)
    size = ("--data", "tree", "--image-size", "32x64", "--batch-size", 2, "--steps", 2)
    for folder, where in (("data", ()), ("elsewhere", ("--data-dir", "elsewhere"))):
        output = ("--output", f"runs/{folder}")
        run(python, "-m", "mtl_keras", "train", *size, *output, *where, cwd=work)
        assert any((work / folder).iterdir()), f"no records in {folder}"
        evaluated = run(
            python, "-m", "mtl_keras", "evaluate", output[1], *where, cwd=work
        )
        assert re.search(r"\| constant predictor \|", evaluated), evaluated
        assert (work / "runs" / folder / "metrics.json").exists()
    (picture, *_) = work.glob("tree/leftImg8bit/val/*/*.png")
    run(python, "-m", "mtl_keras", "predict", "runs/data", picture, cwd=work)
    assert (work / "predictions" / f"{picture.stem}.json").exists()


if __name__ == "__main__":
    main()
