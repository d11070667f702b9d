"""Training that is asked to stop: by a signal, or by the end of what started it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType

import psutil

MARKS = {"DVC_STAGE", "TORCHELASTIC_RUN_ID"}
"""Variables that DVC and torchrun set for the processes that they start."""


class Stop(KeyboardInterrupt):
    """Training was asked to stop, and has saved its state; the message says why and where."""

    def __init__(self, message: str, code: int) -> None:
        """The message and the exit code."""
        super().__init__(message)
        self.code = code

    def after(self, step: int, saved: int) -> Stop:
        """The same with the steps that are done, and saved, in the message."""
        place = f"after step {step}; saved after step {saved}: the same command goes on there"
        return Stop(f"{self} {place}", self.code)


@contextmanager
def stop_requests() -> Generator[Callable[[], Stop | None]]:
    """Inside, SIGTERM, SIGINT and the end of DVC do not end the process: they ask to stop.

    A second signal of the same kind acts as it does outside.
    """
    received: list[signal.Signals] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, previous[received[-1]])

    previous = {n: signal.signal(n, receive) for n in (signal.SIGTERM, signal.SIGINT)}
    masters = _masters()

    def asked() -> Stop | None:
        for number in received:
            return Stop(f"stopped by {number.name}", 128 + number)
        for master in masters:
            if not _is_alive(master):
                return Stop(f"stopped, as process {master.pid}, which started it, is gone", 1)
        return None

    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _masters() -> list[psutil.Process]:
    """The processes that this one works for: up to DVC, or torchrun, if they started it."""
    masters: list[psutil.Process] = []
    environment: Mapping[str, str] = os.environ
    for parent in psutil.Process().parents():
        if not MARKS & environment.keys():
            break
        masters.append(parent)
        try:
            environment = parent.environ()
        except psutil.Error:
            break
    return masters


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
