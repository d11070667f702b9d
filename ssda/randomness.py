"""Addressed randomness: a draw depends on (random_state, purpose, position) and nothing else.

So a sample or a step is the same in whichever order, process or session it is computed.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(random_state: int, purpose: str, *position: int) -> np.random.Generator:
    """The random generator at an address, such as (0, "mixing", sample)."""
    return np.random.default_rng([random_state, zlib.crc32(purpose.encode()), *position])
