"""Worker processes: one per core, for many jobs of one function.

This module runs in worker processes, so it imports nothing heavy.
"""

import collections
import concurrent.futures
import contextlib
import multiprocessing.connection
import multiprocessing.context
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mtl_keras.errors import UserError


def count_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerPool:
    """Computes a function of many jobs on all cores; use it in a `with` block.

    The workers start with the first job and do not run the script again that started
    them, so it needs no `if __name__ == "__main__"`. Ctrl-C reaches this process
    alone, and they end with it, however it ends.

    Args:
        num_jobs: int. How many jobs are to be expected.
        min_jobs: int. For fewer jobs the workers are not worth their start; this
            process does them itself then, and on a single core. Defaults to `32`.
    """

    def __init__(self, num_jobs: int, min_jobs: int = 32) -> None:
        self._workers = count_cores()
        self._executor = None
        if self._workers > 1 and num_jobs >= min_jobs:
            self._context = _Context()
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers, self._context, _end_with_parent
            )

    def __enter__(self):
        return self

    def __exit__(self, error_class, *_):
        if self._executor is None:
            return
        if error_class is not None:  # as after Ctrl-C: don't wait for what they do
            for process in self._context.started:
                process.terminate()
        self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        """Yields `function(job)` of all jobs, in order.

        Args:
            function: one that can be imported: of a module, not of the script.
            jobs: iterable, read no further than the workers need.

        Raises:
            UserError: if a worker dies; else what `function` raises.
        """
        if self._executor is None:
            yield from map(function, jobs)
            return
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for job in jobs:
                waiting.append(self._executor.submit(function, job))
                if len(waiting) > 8 * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except concurrent.futures.BrokenExecutor as error:
            raise UserError(
                "A worker process ended before its work was done: it crashed, and says "
                "why above, or was killed, as when memory runs out; free some memory "
                "and start again."
            ) from error


class _Process(multiprocessing.context.SpawnProcess):
    """A process that leaves the script alone that started it, and Ctrl-C to it."""

    def start(self):
        script = sys.modules["__main__"]
        # A script that is not in a file, like this one, is not run by the worker.
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            with _interrupts_blocked():
                super().start()
        finally:
            sys.modules["__main__"] = script


@contextlib.contextmanager
def _interrupts_blocked():
    """Blocks Ctrl-C, which a process that is started meanwhile inherits."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(multiprocessing.context.SpawnContext):
    """How the executor makes processes, which it does not let one see."""

    # Not forked: that is not safe in a process that runs TensorFlow's threads.
    def __init__(self):
        self.started = []

    def Process(self, **settings):
        self.started.append(_Process(**settings))
        return self.started[-1]


def _end_with_parent():
    parent = multiprocessing.parent_process().sentinel

    def watch():
        multiprocessing.connection.wait([parent])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
