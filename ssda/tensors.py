"""Many tensors at once, and from the host to the device: without a wait, in few kernels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """The values as a tensor on the device.

    To a GPU by way of pinned memory: only from there is a copy one that nobody waits for.
    """
    host = torch.from_numpy(values)
    if device.type == "cuda":
        host = torch.empty_like(host, pin_memory=True).copy_(host)
    return host.to(device, non_blocking=True)


def of_one_type(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups of one type, in order: an operation on all of such a group is one kernel."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def copy_all(values: list[Tensor], targets: list[Tensor]) -> None:
    """Copy each of the values to its target."""
    torch._foreach_copy_(targets, values)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
