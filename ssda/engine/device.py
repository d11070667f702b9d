"""Where to compute, and how."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ssda.networks.segmenter import Segmenter
from ssda.params import Compute
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


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The precision of the networks' passes for auto | bf16 | fp32.

    Raises ValueError for bf16 where the device does not compute in it.
    """
    if name == "fp32":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if name == "bf16":
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        raise ValueError(
            f"compute.precision = 'bf16': {place} does not have it; allowed are auto and fp32"
        )
    return torch.float32


def set_up(device: torch.device, compute: Compute) -> None:
    """Make this process compute as it is asked to; ValueError where the device cannot.

    Deterministic, equal input gives equal bits, and an operation that cannot raises; else cuDNN
    takes the convolution that is fastest here.
    """
    pick_precision(compute.precision, device)
    if compute.deterministic:  # read when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(compute.deterministic)
    torch.backends.cudnn.deterministic = compute.deterministic
    torch.backends.cudnn.benchmark = not compute.deterministic
    # Every value is written before it is read: no memory needs to be filled for that.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def place(network: Segmenter, device: torch.device, compute: Compute) -> Segmenter:
    """The network on the device, computing as it is asked to.

    Copies compute in the same precision; they are compiled by themselves. Raises ValueError where
    the device cannot.
    """
    names = [name for name, _ in network.encoder.named_parameters()]
    if (
        compute.deterministic
        and device.type == "cuda"
        and any(n.endswith("pos_embed") for n in names)
    ):
        raise ValueError(
            "compute.deterministic = True: must be False with an encoder that learns its "
            "positions, for CUDA resamples them in no fixed order"
        )
    network.encoder.precision = pick_precision(compute.precision, device)
    if compute.compile:
        network.compile()
    return network.to(device)


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
