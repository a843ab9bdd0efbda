"""A short part of `benchmarks/kills.py`."""

import sys

import pytest

from benchmarks import kills


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills by SIGKILL, as on Linux")
def test_killed_trainings_come_out_the_same(tmp_path):
    """Before a change of a file, and again later or at some other time."""
    case = kills.CASES[0]
    reference = kills.refer(case, tmp_path)
    assert reference.num_changes > 100 and len(reference.found) > 50
    for seed in (0, 1):
        done, different = kills.kill(case, reference, tmp_path / str(seed), seed)
        assert len(done) == 1 + seed and different == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills by SIGKILL, as on Linux")
def test_what_differs_is_found(tmp_path):
    case = kills.CASES[0]
    reference = kills.refer(case, tmp_path)
    other = case._replace(arguments=[*case.arguments, "--seed", "1"])
    _, different = kills.kill(other, reference, tmp_path / "other", 0)
    assert "history.csv" in different
