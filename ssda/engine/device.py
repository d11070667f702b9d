"""Where to compute."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """The device for auto | cuda | cpu; ValueError for cuda where there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("runtime.device = 'cuda': no CUDA device here; allowed are auto and cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
