"""Many tensors at once, from the host to the device without a wait, and out of PyTorch's files."""

from __future__ import annotations

import pickletools
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    *((SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "?")),
]
"""What training tools leave beside the tensors: numbers of NumPy, under its old and new names."""


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


def read_torch_file(path: Path) -> Any:
    """What a file of `torch.save` holds: tensors, texts, numbers and containers; no code is run.

    Raises ValueError with one line that names the file where it is none, is damaged, or holds an
    object of another kind, which is named.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler raises on what is no pickle
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name := found[1] if found else _first_object(path):
            reason = f"holds {name}, which is neither tensor, text nor number"
        else:
            reason = "not a file of PyTorch, or a damaged one"
        raise ValueError(f"{path}: {reason}") from error


def _first_object(path: Path) -> str | None:
    """Name of the first object in a pickle of protocol 4 or newer, which PyTorch cannot read."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):
                if isinstance(argument, str):
                    texts.append(argument)
                elif operation.name == "STACK_GLOBAL":
                    return re.sub(r"[^\w.]", "?", ".".join(texts[-2:]))
    except (ValueError, MemoryError):  # no pickle, or not all of one
        pass
    return None
