"""Child processes that answer questions in turns and are stopped in between."""

import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
SET_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl


class WorkerDied(Exception):
    """A worker ended before it answered. Tells its last words; `log` has more."""

    def __init__(self, status, log):
        words = log[-1] if log else "no words"
        super().__init__(f"ended with status {status}: {words}")
        self.log = "\n".join(log[-30:])


class Worker:
    """A process that runs a module which calls `serve`.

    Between two questions all its threads are stopped, those of pools included, so
    that the worker whose turn it is has the machine to itself.

    Args:
        module: str, the module to run.
        arguments: list of str, its command line.
        environment: dict of str, added to that of this process.
    """

    def __init__(self, module, arguments=(), environment=None):
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, question, **arguments):
        """Calls the method `question` of what the worker serves.

        Raises:
            WorkerDied: if the worker has ended, or ends without an answer.
        """
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps([question, arguments]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self._process.wait()
            self._log.seek(0)
            raise WorkerDied(status, self._log.read().splitlines())
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def close(self):
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def serve(target):
    """Answers the questions of a `Worker` until it closes.

    A question is the name of a method of `target` and its arguments; the answer is
    what it returns, as JSON. Whatever else the process prints goes to the log.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        question, arguments = json.loads(line)
        answer = getattr(target, question)(**arguments)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def end_with_parent():
    """Lets the kernel kill this process when its parent dies: a stopped process
    would never notice."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
