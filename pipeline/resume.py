"""A stage that was stopped or killed goes on where it was, at the next start of the same stage.

States lie in .ssda/state of the main repository, below a key: a hash of the stage's params, code
and inputs. So a state is never taken for another experiment, and a temporary experiment folder
that DVC removes takes none along. A state stays until dvc.lock has the stage's output (a death
between the last step and that loses nothing) and is removed when a later stage starts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil
from tqdm import tqdm

from pipeline.repository import (
    dependencies,
    digest,
    file_md5,
    locked,
    recorded_outputs,
    root,
    stages,
)
from pipeline.tracking import Journal, from_json
from ssda.files import write_json
from ssda.params import Params

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW

    from ssda.engine.state import State, StateWriter
    from ssda.engine.training import Progress

CODE = Path(__file__).resolve().parents[1]
STATES = Path(".ssda/state")
FINISHED = "finished.json"
PATIENCE = 60.0
"""Seconds to wait for a trainer whose DVC was killed: it saves and stops by itself."""
KEPT_DAYS = 30
"""A state that nobody has touched for so long is removed."""
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
        return Stop(
            f"{self} after step {step}; saved after step {saved}: the same command goes on there",
            self.code,
        )


@dataclass
class Kept:
    """A stage's state on disk.

    Attributes:
        every: steps between saved states; 0 for none but the last.
        state: what an earlier start left; None at the first.
        writer: saves.
    """

    every: int
    state: State | None
    writer: StateWriter
    networks: Mapping[str, nn.Module]
    optimiser: AdamW | None = None

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
    def notes(self) -> Any:
        """What was kept beside the tensors; None at the first start."""
        return self.state and self.state.notes

    @property
    def journal(self) -> Journal | None:
        """What the stage had logged; None at the first start."""
        return from_json(self.notes["journal"]) if self.notes else None

    def restore(self, networks: Mapping[str, nn.Module], optimiser: AdamW) -> Progress:
        """Bring networks and optimiser to where an earlier start left them."""
        from ssda.engine.state import restore
        from ssda.engine.training import Progress
        from ssda.processes import rank, take_over

        self.networks, self.optimiser = networks, optimiser
        for network in networks.values():
            take_over(network.state_dict().values())
        if self.state is None:
            return Progress(optimiser, 0)
        restore(networks, optimiser, self.state.tensors)
        if rank() == 0:
            print(f"going on after step {self.state.step}", file=sys.stderr)
        return Progress(optimiser, self.state.step)

    def save_if_due(self, step: int, notes: Callable[[], Any]) -> None:
        """Every so many steps, begin to write a state, unless the last is still being written."""
        if self.every and step % self.every == 0 and not self.writer.is_busy():
            self._start(step, notes())

    def save(self, step: int, notes: Any) -> None:
        """Write a state and wait for it."""
        self.writer.wait()
        if self.saved != step:
            self._start(step, notes)
            self.writer.wait()

    def _start(self, step: int, notes: Any) -> None:
        from ssda.engine.state import State, copy_tensors

        assert self.optimiser is not None, "restore comes first"
        self.writer.start(State(step, copy_tensors(self.networks, self.optimiser), notes))


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

    folder = root() / STATES / f"{stage}-{state_key(stage, params)}"
    first = rank() == 0
    lock = locked(folder.with_suffix(".lock"), "trains on the same state", PATIENCE)
    with lock if first else nullcontext():
        if first:
            remove_old_states(held=folder)
            state = read_newest(folder, warn)
            wait_for_all()
        else:
            wait_for_all()
            state = read_newest(folder, warn)
        written = state.step if state else 0
        yield Kept(params.runtime.save_every, state, StateWriter(folder, warn, written), {})
        if not first:
            return
        if "DVC_STAGE" in os.environ:  # which will write dvc.lock
            write_json(folder / FINISHED, {out.as_posix(): file_md5(out)})
        else:
            shutil.rmtree(folder, ignore_errors=True)


def state_key(stage: str, params: Params) -> str:
    """A hash of the stage's params, code and inputs, as dvc.yaml lists them."""
    definition = stages(CODE)[stage]
    sections = {name.split(".")[0] for name in definition["params"]}
    values = params.model_dump_json(include=sections)
    paths = {
        name: (CODE if name.endswith(".py") else Path()) / name for name in dependencies(definition)
    }
    if params.model.weights is not None:
        paths["weights"] = Path(params.model.weights)
    if stage == "adapt" and params.adapt.start is not None:
        paths["start"] = Path(params.adapt.start)
    return digest(values, paths)[:16]


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
            if folder == held:
                shutil.rmtree(folder)
                continue
            with suppress(ValueError), locked(folder.with_suffix(".lock"), patience=0.0):
                shutil.rmtree(folder)


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


def warn(message: str) -> None:
    """A line on stderr, above a progress bar where there is one."""
    tqdm.write(f"warning: {message}", file=sys.stderr)
