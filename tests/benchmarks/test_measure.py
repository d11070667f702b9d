"""A part that is measured in a process of its own may start others, as loading does."""

import os

from benchmarks.measure import apart


def test_a_process_apart_may_start_one() -> None:
    assert apart(apart, os.getpid) != os.getpid()
