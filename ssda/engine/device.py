"""Where to compute."""

from __future__ import annotations

import os

import torch


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
