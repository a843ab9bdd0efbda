"""Requests to stop a training, by a signal."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, schedulers, Slurm's --signal


class StopRequest:
    """Whether the process has been asked to stop.

    Attributes:
        signal: the `signal.Signals` that asked, `None` as long as none has.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextlib.contextmanager
def listen() -> Iterator[StopRequest]:
    """Turns the first of the signals `NAMES` into a request, which it yields; a second
    one does what it did before. Signals reach the main thread alone."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    former = {n: signal.getsignal(n) or signal.SIG_DFL for n in numbers}

    def restore():
        for number, handler in former.items():
            signal.signal(number, handler)

    def ask(number, frame):
        request.signal = signal.Signals(number)
        restore()
        sentence = (
            f"\n{request.signal.name}: stopping after this step; the signal once more "
            "ends at once.\n"
        )
        # Not `print`: the signal may have come while something is printed.
        with contextlib.suppress(OSError):
            os.write(2, sentence.encode())

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
