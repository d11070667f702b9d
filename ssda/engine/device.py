"""Where to compute."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ssda.processes import count


def pick_device(name: str) -> torch.device:
    """The device for auto | cuda | cpu, of several processes each has one.

    Raises ValueError for cuda where there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("runtime.device = 'cuda': no CUDA device here; allowed are auto and cpu")
    if not available or name == "cpu":
        return torch.device("cpu")
    number = os.environ.get("LOCAL_RANK")
    return torch.device("cuda" if number is None else f"cuda:{number}")


def describe(device: torch.device) -> str:
    """For a person, such as "NVIDIA H100" or "4 processes, each on 2 threads of the CPU"."""
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        place = f"{threads} thread{'s' if threads > 1 else ''} of the CPU"
    return place if count() == 1 else f"{count()} processes, each on {place}"


def peak_memory(device: torch.device) -> float | None:
    """The most memory, in GiB, that tensors have held on a GPU, or this process on a CPU.

    None where the system does not tell; Linux does.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    return None
