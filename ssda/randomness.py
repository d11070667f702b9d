"""Addressed randomness: a draw depends on (random_state, purpose, position) and nothing else.

So a sample or a step is the same in whichever order, process or session it is computed.
"""

from __future__ import annotations

import zlib

import numpy as np

from ssda.processes import count as count_processes
from ssda.processes import rank


def generator(random_state: int, purpose: str, *position: int) -> np.random.Generator:
    """The random generator at an address, such as (0, "mixing", sample)."""
    return np.random.default_rng([random_state, zlib.crc32(purpose.encode()), *position])


def generators(random_state: int, purpose: str, step: int, count: int) -> list[np.random.Generator]:
    """One generator for each of this process's `count` samples of a step.

    Sample numbers run over the global batch and over steps.
    """
    first = (step * count_processes() + rank()) * count
    return [generator(random_state, purpose, first + i) for i in range(count)]
