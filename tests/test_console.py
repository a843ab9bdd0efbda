"""What the commands show, and what they do not."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from mtl_keras.commands import console

ROOT = pathlib.Path(__file__).parents[1]


def start(code, **environment):
    environment = {**os.environ, **environment}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # the tests set it
    return subprocess.run(
        [sys.executable, "-c", f"from mtl_keras.commands import console\n{code}"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_noise_is_held_back_and_all_else_is_shown(capfd):
    with console._without_noise():
        os.write(2, b"E0000 cuda_platform.cc:52] failed call to cuInit: UNKNOWN\n")
        print("a warning of Python's", file=sys.stderr)
        os.write(2, b"F0000 check failed: out of memory\n")
    os.write(2, b"later: failed call to cuInit\n")
    assert capfd.readouterr().err.splitlines() == [
        "a warning of Python's",
        "F0000 check failed: out of memory",
        "later: failed call to cuInit",
    ]


def test_an_error_shows_what_was_held_back(capfd):
    with pytest.raises(ImportError), console._without_noise():
        os.write(2, b"libtensorflow is broken\n")
        raise ImportError
    assert capfd.readouterr().err == "libtensorflow is broken\n"


@pytest.mark.slow
def test_tensorflow_starts_quietly():
    done = start("console.start_tensorflow()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FAKE_DRIVER = """
import pathlib
console.NVIDIA_DRIVER = pathlib.Path(PLACE)
console.start_tensorflow()
"""


@pytest.mark.slow
def test_a_gpu_that_goes_unused_is_named(tmp_path):
    """There is a driver, and TensorFlow finds no GPU here."""
    code = FAKE_DRIVER.replace("PLACE", repr(str(tmp_path)))
    assert start(code).stderr == ""  # a driver without a GPU
    (tmp_path / "0000:01:00.0").mkdir()
    notice = start(code).stderr
    assert notice.startswith("Note: this machine has an NVIDIA GPU")
    assert "pip install 'tensorflow[and-cuda]==" in notice and notice.count("\n") == 1
    assert start(code, CUDA_VISIBLE_DEVICES="-1").stderr == ""  # as was asked for


def test_a_missing_package_is_one_sentence(capsys):
    def fail():
        raise ModuleNotFoundError("No module named 'cv2'", name="cv2")

    with pytest.raises(SystemExit) as raised:
        console.run_command(fail)
    assert raised.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: The package cv2 is not installed")
    assert "in the checkout, pip install '.[tensorflow]'" in message


def test_a_full_disk_is_one_sentence(capsys):
    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail_in_hdf5():
        raise OSError("Can't write (errno = 28, message = 'No space left on device')")

    for full in (fail, fail_in_hdf5):
        with pytest.raises(SystemExit) as raised:
            console.run_command(full)
        assert raised.value.code == 2
        assert capsys.readouterr().err.startswith("error: The disk is full; make room")


def test_how_to_go_on_is_said_by_the_command(capsys, monkeypatch):
    def fail():
        raise KeyboardInterrupt

    module = sys.modules[__name__]
    monkeypatch.setattr(module, "WHEN_INTERRUPTED", "Start again.", raising=False)
    with pytest.raises(SystemExit) as raised:
        console.run_command(fail)
    assert raised.value.code == 130
    said = "Interrupted; what is finished is kept. Start again.\n"
    assert capsys.readouterr().err == said


def test_the_package_is_a_command():
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "mtl_keras", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    assert "{train,evaluate,predict,app,data}" in call().stdout
    done = call("train", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m mtl_keras")
    assert "{show,write-mtan" in call("data").stdout
    done = call("data", "write-mtan", "--help")
    assert done.stdout.startswith("usage: python -m mtl_keras data write-mtan")
    done = call("data", "serve")
    assert done.returncode == 2 and "unknown command 'serve'" in done.stderr
    done = call("serve")
    assert done.returncode == 2 and "unknown command 'serve'" in done.stderr
    done = call("evaluate", "runs/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no run in runs/nowhere")
