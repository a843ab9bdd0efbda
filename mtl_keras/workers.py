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
from typing import Any, Self

from mtl_keras.errors import UserError


def count_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerPool:
    """Applies a function to many jobs on all cores; use it in a `with` block.

    The workers start with the first job. They do not rerun the script that started
    them, so it needs no `if __name__ == "__main__"`. Ctrl-C reaches only this process,
    and the workers end with it, however it ends.

    Args:
        num_jobs: int. The number of jobs to expect.
        min_jobs: int. With fewer jobs, starting workers takes longer than it saves,
            and this process does the jobs itself, as it does on a single core.
            Defaults to `32`.
    """

    def __init__(self, num_jobs: int, min_jobs: int = 32) -> None:
        self._workers = count_cores()
        self._executor = None
        if self._workers > 1 and num_jobs >= min_jobs:
            self._context = _Context()
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers, self._context, _end_with_parent
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_class: type[BaseException] | None, *_: Any) -> None:
        if self._executor is None:
            return
        if error_class is not None:  # such as Ctrl-C: do not wait for running jobs
            for process in self._context.started:
                process.terminate()
        self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        """Yields `function(job)` for every job, in order.

        Args:
            function: one of a module, not of the script, since the workers import it.
            jobs: iterable, read only as far ahead as the workers need.

        Raises:
            UserError: if a worker dies. What `function` raises is passed on.
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
                "A worker process ended before its work was done: it crashed, and the "
                "reason is above, or it was killed, for instance because memory ran "
                "out; free some memory and start again."
            ) from error


class _Process(multiprocessing.context.SpawnProcess):
    """A process that neither runs the script that started it nor ends at Ctrl-C."""

    def start(self):
        script = sys.modules["__main__"]
        # The worker does not run a main module that has no file, such as this one.
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            with _interrupts_blocked():
                super().start()
        finally:
            sys.modules["__main__"] = script


@contextlib.contextmanager
def _interrupts_blocked():
    """Blocks Ctrl-C; processes started in the meantime inherit that."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(multiprocessing.context.SpawnContext):
    """Makes the executor's processes and lists them; the executor hides them."""

    # Spawned, since forking is not safe in a process that runs TensorFlow's threads.
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
