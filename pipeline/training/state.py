"""A stage that was stopped or killed goes on where it was, at the next start of the same stage.

States lie in .ssda/state of the main repository, below the stage's key. So a state is never taken
for another experiment, and a temporary experiment folder that DVC removes takes none along. A state
stays until dvc.lock has the stage's output (a death between the last step and that loses nothing)
and is removed when a later stage starts.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from pipeline.checks.finished import stage_key
from pipeline.repository import file_md5, recorded_outputs, root
from ssda.files import write_json
from ssda.params import Params

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import AdamW

    from ssda.engine.state import State, StateWriter
    from ssda.engine.training import Progress

STATES = Path(".ssda/state")
FINISHED = "finished.json"
PATIENCE = 60.0
"""Seconds to wait for a trainer whose DVC was killed: it saves and stops by itself."""
KEPT_DAYS = 30
"""A state that nobody has touched for so long is removed."""


@dataclass
class Kept:
    """A stage's state on disk.

    Attributes:
        every: steps between saved states; 0 for none but the last.
        state: what an earlier start left; None at the first.
        writer: saves.
        tensors: copies what is to be saved; `restore` says what that is.
    """

    every: int
    state: State | None
    writer: StateWriter
    tensors: Callable[[], dict[str, Tensor]] = dict

    @property
    def saved(self) -> int:
        """Steps of the newest state on disk."""
        self.writer.is_busy()
        return self.writer.written

    @property
    def first(self) -> int:
        """Steps that an earlier start has done."""
        return self.state.step if self.state else 0

    @property
    def notes(self) -> dict[str, Any]:
        """What was kept beside the tensors; nothing at the first start."""
        return self.state.notes if self.state else {}

    def restore(self, networks: Mapping[str, nn.Module], optimiser: AdamW) -> Progress:
        """Bring networks and optimiser to where an earlier start left them."""
        from ssda.engine.state import copy_tensors, restore
        from ssda.engine.training import Progress
        from ssda.processes import rank, take_over

        self.tensors = partial(copy_tensors, networks, optimiser)
        for network in networks.values():
            take_over(network.state_dict().values())
        if self.state is not None:
            restore(networks, optimiser, self.state.tensors)
            if rank() == 0:
                print(f"going on after step {self.first}", file=sys.stderr)
        return Progress(optimiser, self.first)

    def save_if_due(self, step: int, notes: Callable[[], dict[str, Any]]) -> None:
        """Every so many steps, begin to write a state, unless the last is still being written."""
        if self.every and step % self.every == 0 and not self.writer.is_busy():
            self._start(step, notes())

    def save(self, step: int, notes: dict[str, Any]) -> None:
        """Write a state and wait for it."""
        self.writer.wait()
        if self.saved != step:
            self._start(step, notes)
            self.writer.wait()

    def _start(self, step: int, notes: dict[str, Any]) -> None:
        from ssda.engine.state import State

        self.writer.start(State(step, self.tensors(), notes))


@contextmanager
def kept_state(stage: str, params: Params, out: Path) -> Generator[Kept]:
    """The state of a stage, under a lock: two trainers never share one.

    Args:
        stage: its name in dvc.yaml.
        params: everything.
        out: the output that tells that the stage's result is in dvc.lock.

    Raises:
        ValueError: another process trains on the state.
    """
    from ssda.engine.state import StateWriter, read_newest
    from ssda.processes import rank, wait_for_all

    folder = root() / STATES / f"{stage}-{stage_key(stage, params)}"
    first = rank() == 0
    with _alone(_lock(folder)) if first else nullcontext():
        if first:
            remove_old_states(held=folder)
            state = read_newest(folder, warn)
            wait_for_all()
        else:
            wait_for_all()
            state = read_newest(folder, warn)
        written = state.step if state else 0
        yield Kept(params.runtime.save_every, state, StateWriter(folder, warn, written))
        if not first:
            return
        if "DVC_STAGE" in os.environ:  # which will write dvc.lock
            write_json(folder / FINISHED, {out.as_posix(): file_md5(out)})
        else:
            shutil.rmtree(folder, ignore_errors=True)


def remove_old_states(held: Path | None = None) -> None:
    """Remove states whose result is in dvc.lock, and those that nobody has touched for long.

    Args:
        held: the state whose lock this process has.
    """
    outputs = recorded_outputs(Path())
    for folder in (root() / STATES).glob("*/"):
        finished = folder / FINISHED
        results = json.loads(finished.read_text()) if finished.exists() else {}
        recorded = bool(results) and results.items() <= outputs.items()
        if recorded or time.time() - folder.stat().st_mtime > KEPT_DAYS * 86400:
            lock = nullcontext() if folder == held else FileLock(_lock(folder), timeout=0)
            with suppress(Timeout), lock:
                shutil.rmtree(folder)


def warn(message: str) -> None:
    """A line on stderr, above a progress bar where there is one."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def _lock(folder: Path) -> Path:
    return folder.with_suffix(".lock")


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """Holds a lock for the life of this process; a file beside it says who has it.

    Raises ValueError where another process still has it after `PATIENCE` seconds.
    """
    lock, holder = FileLock(path), path.with_suffix(".holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text() if holder.exists() else "another process"
        told = f"{who} trains on the same state"
        print(f"waiting up to {PATIENCE:.0f} s: {told}", file=sys.stderr)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise ValueError(f"{told}; stop it first (lock: {path})") from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()
