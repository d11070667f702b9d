"""Training state on disk, from which a killed run goes on exactly where it was.

A state is a safetensors file behind its checksum, written whole or not at all; the last two are
kept. Data and random draws are addressed by the step, so that networks, optimiser and the number of
steps done are all there is to keep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ssda.files import write_atomically

KEPT = 2
"""How many states are kept: the newest, and the one before in case it is damaged."""
NOTES = "notes"
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class State:
    """Training after a number of steps.

    Attributes:
        step: steps done.
        tensors: all that training changes, on the CPU.
        notes: what the caller keeps beside it, as JSON.
    """

    step: int
    tensors: dict[str, Tensor]
    notes: Any


def copy_tensors(
    networks: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Copies on the CPU of weights, buffers and the optimiser's moments."""
    tensors = {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    for number, parameter in enumerate(_parameters(optimiser)):
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{number}.{key}"] = value
    # Contiguous, as the file has them; `restore` brings back the layout in memory.
    return {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }


@torch.no_grad()
def restore(
    networks: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
) -> None:
    """Put what `copy_tensors` took back in its place.

    Raises ValueError where the tensors belong to other networks.
    """
    for name, network in networks.items():
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"the saved state does not fit the {name}") from error
    for number, parameter in enumerate(_parameters(optimiser)):
        prefix = f"optimiser.{number}."
        moments = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for key, value in moments.items():  # laid out as the parameter, so that bits agree
            same = value.shape == parameter.shape
            moments[key] = (
                torch.empty_like(parameter).copy_(value) if same else value.to(parameter.device)
            )
        optimiser.state[parameter] = moments


def write_state(folder: Path, state: State) -> None:
    """Write a state and remove all but the newest two; raises OSError."""
    notes = bytearray(json.dumps(state.notes, allow_nan=False).encode())
    content = save(state.tensors | {NOTES: torch.frombuffer(notes, dtype=torch.uint8)})

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)

    write_atomically(folder / f"{state.step:09d}.state", write)
    for path in _newest_first(folder)[KEPT:]:
        path.unlink()


def read_newest(folder: Path, warn: Callable[[str], None]) -> State | None:
    """The newest state that is whole, None where there is none; damaged ones are removed.

    Args:
        folder: where `write_state` wrote.
        warn: is told of a damaged state.
    """
    for path in folder.glob("*.partial.state"):
        path.unlink()
    for path in _newest_first(folder):
        content = path.read_bytes()
        digest, payload = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == digest:
            tensors = load(payload)
            notes = json.loads(tensors.pop(NOTES).numpy().tobytes())
            return State(int(path.stem), tensors, notes)
        warn(f"{path}: damaged, removed; training goes on from the state before it")
        path.unlink()
    return None


@dataclass
class StateWriter:
    """Writes states in a thread, so that training does not wait for the disk.

    Attributes:
        folder: where states go.
        warn: is told where a state could not be written; the ones before stay.
        written: steps of the newest state on disk; 0 without one.
    """

    folder: Path
    warn: Callable[[str], None]
    written: int = 0
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "state"))
    _writing: tuple[int, Future[None]] | None = None

    def is_busy(self) -> bool:
        """Whether a state is being written; notes those that are done."""
        if self._writing is None:
            return False
        step, future = self._writing
        if not future.done():
            return True
        self._writing = None
        if isinstance(error := future.exception(), OSError):
            self.warn(f"state of step {step} not saved: {error}; training goes on")
        elif error is not None:
            raise error
        else:
            self.written = step
        return False

    def start(self, state: State) -> None:
        """Begin to write a state; not while another is being written."""
        assert self._writing is None, "busy"
        self._writing = (state.step, self._thread.submit(write_state, self.folder, state))

    def wait(self) -> None:
        """Wait for the disk; `written` tells whether it worked."""
        if self._writing is not None:
            self._writing[1].exception()
        self.is_busy()


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("*.state") if p.stem.isdigit()), reverse=True)
