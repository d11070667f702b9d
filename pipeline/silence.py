"""What native code writes past sys.stdout and sys.stderr can be kept from a person."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def silenced(descriptor: int) -> Generator[None]:
    """Inside, what is written to a file descriptor is lost; 1 is standard output, 2 errors."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    before = os.dup(descriptor)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)
    try:
        yield
    finally:
        os.dup2(before, descriptor)
        os.close(before)
