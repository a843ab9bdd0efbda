"""Requests to stop a training, by a signal."""

import contextlib
import signal
import sys
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
    former = {number: signal.getsignal(number) for number in numbers}

    def restore():
        for number, handler in former.items():
            signal.signal(number, handler)

    def ask(number, frame):
        request.signal = signal.Signals(number)
        restore()
        print(
            f"\n{request.signal.name}: stopping after this step; the signal once more "
            "ends at once.",
            file=sys.stderr,
        )

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
