"""What all commands do at the console.

A user's mistake becomes a sentence; what libraries log becomes silence, unless it
matters or `--verbose` asks for it.
"""

import codecs
import contextlib
import errno
import logging
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mtl_keras.errors import UserError

# What TensorFlow logs before it can be told not to, on machines of every kind.
NOISE = re.compile(
    r"All log messages before absl::InitializeLog|cudart_stub|failed call to cuInit"
    r"|oneDNN custom operations|Unable to register cu|computation placer already"
    r"|cuda_(executor|diagnostics|platform)\.cc|TF-TRT Warning"
    r"|optimized to use available CPU instructions|rebuild TensorFlow with"
)
# The extra of packages that not all commands need.
EXTRAS = {"gradio": "app"}
NVIDIA_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")  # a folder for each GPU


def run_command(main: Callable[..., None], *arguments: Any) -> None:
    """Runs `main(*arguments)`; a user's mistake becomes one sentence and exit status 2.

    Such are `UserError`s, packages that are not installed, files that cannot be read or
    written, names that the system's encoding has no characters for, and records that
    turn out damaged. After Ctrl-C or another signal that stops a training, the module's
    `WHEN_INTERRUPTED` says how to go on.
    """
    codecs.register_error("spell_out", _spell_out)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="spell_out")
    try:
        main(*arguments)
    except UserError as error:
        _exit_with(error)
    except ModuleNotFoundError as error:
        name = (error.name or "mtl_keras").partition(".")[0]
        if name == "mtl_keras":
            raise
        extra = EXTRAS.get(name, "tensorflow")
        _exit_with(
            f"The package {name} is not installed; the commands need the extra "
            f"`{extra}` of this package: in the checkout, pip install '.[{extra}]'."
        )
    except UnicodeEncodeError as error:
        _exit_with(
            f"{error.object!r} has characters that the encoding of this environment "
            "lacks; set PYTHONUTF8=1 or a UTF-8 locale."
        )
    except OSError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            where = f" of {error.filename}" if error.filename else ""
            _exit_with(
                f"The disk{where} is full; make room and start again. What was written "
                "whole before is kept."
            )
        if error.filename is None:
            raise
        _exit_with(
            f"{error.filename} cannot be read or written ({error.strerror}); see to "
            "its permissions and to the room on its disk."
        )
    except Exception as error:
        if type(error).__name__ != "DataLossError":  # of TensorFlow
            raise
        _exit_with(
            "The records are damaged; remove the folder of the data set in data/, or "
            "in what --data-dir names, and they are made again."
        )
    except KeyboardInterrupt as error:  # or `StoppedError`
        advice = getattr(sys.modules[main.__module__], "WHEN_INTERRUPTED", "")
        sentence = str(error) or "Interrupted; what is finished is kept."
        print(f"{sentence} {advice}".rstrip(), file=sys.stderr)
        sys.exit(getattr(error, "status", 130))


def choose_command(
    program: str, names: Iterable[str], arguments: Sequence[str]
) -> tuple[str, list[str]]:
    """Splits what a command line names first, one of several commands, from the rest.

    Usage and errors then name the program and the command. Exits with a usage line if
    none is named, and with one sentence and status 2 for an unknown one.

    Args:
        program: str, what comes before the command.
        names: the commands.
        arguments: what comes after the program.
    """
    name, *rest = arguments or ["--help"]
    if name in names:
        sys.argv[0] = f"{program} {name}"
        return name, rest
    is_question = name in ("-h", "--help")
    usage = f"usage: {program} {{{','.join(names)}}} ..."
    print(usage, file=sys.stdout if is_question else sys.stderr)
    if not is_question:
        print(
            f"error: unknown command {name!r}; choose from {', '.join(names)}.",
            file=sys.stderr,
        )
    sys.exit(0 if is_question else 2)


def start_tensorflow(verbose: bool = False) -> None:
    """Imports TensorFlow and Keras, quietly, and says if a GPU goes unused.

    Args:
        verbose: bool. Whether what the libraries log is shown, too.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "2")
    # No file of weights is written while it is read, and some file systems have no
    # locks.
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    if not verbose:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet
        logging.getLogger("absl").setLevel(logging.ERROR)  # of tensorflow-datasets
    with contextlib.nullcontext() if verbose else _without_noise():
        import keras
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")  # looks for the drivers
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if keras.backend.backend() == "tensorflow" and not gpus and not hidden:
        if NVIDIA_DRIVER.is_dir() and any(NVIDIA_DRIVER.iterdir()):
            print(
                "Note: this machine has an NVIDIA GPU that TensorFlow does not see, so "
                "the CPU does the work. To use the GPU: pip install "
                f"'tensorflow[and-cuda]=={tf.__version__}'",
                file=sys.stderr,
            )


@contextlib.contextmanager
def _without_noise():
    """Holds back what is written to the standard error, by C++ code as well, and
    writes it afterwards without the lines that are `NOISE`."""
    sys.stderr.flush()
    try:
        visible = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(visible, 2)
            os.close(visible)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines(True):
                if not NOISE.search(line):
                    sys.stderr.write(line)


def _exit_with(sentence):
    print(f"error: {' '.join(str(sentence).split())}", file=sys.stderr)
    sys.exit(2)


def _spell_out(error):
    """Codec error handler: what a console shows of a character that it lacks."""
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # a byte of a file name: as it came
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return {"±": "+/-", "–": "-"}.get(character, "?"), error.start + 1
