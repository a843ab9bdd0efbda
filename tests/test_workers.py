import itertools
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from mtl_keras import workers
from mtl_keras.errors import UserError
from mtl_keras.workers import WorkerPool, count_cores


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(workers, "count_cores", lambda: 2)


def test_results_come_in_the_order_of_the_jobs():
    with WorkerPool(100) as pool:
        results = [*pool.map(math.sqrt, (k * k for k in range(100)))]
        assert results == [*range(100)]
        assert [*pool.map(abs, [-1, 2])] == [1, 2]  # as often as one likes
        assert [*pool.map(abs, [])] == []


def test_few_jobs_are_done_without_workers():
    with WorkerPool(31) as pool:
        assert {*pool.map(own_process, range(31))} == {os.getpid()}
    with WorkerPool(3, min_jobs=3) as pool:
        assert os.getpid() not in {*pool.map(own_process, range(3))}


def own_process(_):
    return os.getpid()


def test_jobs_are_read_as_they_are_needed():
    read = itertools.count()
    with WorkerPool(1000) as pool:
        results = pool.map(abs, (next(read) for _ in range(1000)))
        next(results)
        assert next(read) < 100
        results.close()


def test_an_error_of_a_job_is_raised():
    with pytest.raises(ValueError, match="math domain error|nonnegative"):
        with WorkerPool(50) as pool:
            [*pool.map(math.sqrt, [1] * 40 + [-1] + [1] * 9)]


def kill_process(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", [kill_process, os._exit], ids=["killed", "ended"])
def test_the_death_of_a_worker_is_told(end):
    with pytest.raises(UserError, match="worker process ended.*memory"):
        with WorkerPool(50) as pool:
            [*pool.map(end, range(50))]


SLEEPERS = """
import time
from mtl_keras import workers
workers.count_cores = lambda: 2
print("begun", flush=True)
with workers.WorkerPool(50) as pool:
    [*pool.map(time.sleep, [0.001] * 10 + [60] * 40)]
"""


def start(script, cwd):
    (cwd / "script.py").write_text(script, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def count_processes(group):
    """Processes of a group that are at work, not counting those that are over."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True)
    rows = [line.split() for line in listed.stdout.decode().splitlines()]
    return sum(row[0] == str(group) and row[1][0] != "Z" for row in rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["^C", "kill"])
def test_workers_end_with_their_parent(tmp_path, number):
    process = start(SLEEPERS, tmp_path)
    assert process.stdout.readline() == "begun\n"
    deadline = time.monotonic() + 30
    while count_processes(process.pid) < 4:  # and the one that tracks semaphores
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)
    if number == signal.SIGINT:  # as a console sends it: to all of the group
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -number
    assert errors.count("KeyboardInterrupt") == (number == signal.SIGINT), errors
    while count_processes(process.pid):
        assert time.monotonic() < deadline + 10
        time.sleep(0.1)


def test_the_script_is_not_run_again(tmp_path):
    """It needs no `if __name__ == "__main__"`."""
    process = start(SLEEPERS.replace("60", "0"), tmp_path)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "begun\n", "")


def test_cores_of_systems_without_affinity(monkeypatch):
    assert count_cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert count_cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores() == 1
