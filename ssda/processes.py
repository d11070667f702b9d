"""The processes that train one network together; alone, each function gives back what it gets.

Each holds a part of the global batch. A loss is a process's share of the loss on the whole batch,
so that losses and gradients add up over processes; and over micro-batches, into which a process may
divide its images to see them one after another.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from ssda.tensors import copy_all

PATIENCE = timedelta(hours=1)
"""How long processes wait for one another, such as for the first one to save or draw."""
WHOLE = slice(None)
"""All images of a process, as one part."""


@contextmanager
def joined(device: torch.device) -> Generator[None]:
    """Inside, the processes that torchrun started work together; others work alone."""
    if "RANK" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield
    distributed.destroy_process_group()  # not after an error: the others may be gone


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; the first one logs and saves."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def part(batch_size: int) -> int:
    """How many samples of a global batch each process has.

    Raises ValueError where they cannot be shared out evenly.
    """
    if batch_size % count():
        raise ValueError(f"batch_size = {batch_size}: must be a multiple of {count()} processes")
    return batch_size // count()


def micro_batches(images: int, size: int | None) -> list[slice]:
    """A process's images in parts of that size, the last of what is left; None: in one part."""
    size = size or images
    return [slice(first, first + size) for first in range(0, images, size)]


def alone() -> distributed.ProcessGroup | None:
    """A group of this process alone; all make theirs at the same time. None where there is one."""
    return distributed.new_subgroups(group_size=1)[0] if count() > 1 else None


def wait_for_all() -> None:
    """Return when all processes are here."""
    if count() > 1:
        distributed.barrier()


def summed(values: Tensor) -> Tensor:
    """The sum over processes, without gradient where there are several."""
    if count() == 1:
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total


def divided(values: Tensor) -> Tensor:
    """This process's part of what all have alike or of a mean: the parts add up."""
    return values if count() == 1 else values / count()


def gathered(values: Tensor) -> Tensor:
    """All processes' values (N, ...), in the order of the global batch, (processes x N, ...)."""
    if count() == 1:
        return values
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format)] * count()
    parts = [part.clone() for part in parts]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def own(values: Tensor) -> Tensor:
    """This process's part of what `gathered` gives."""
    return values.chunk(count())[rank()]


def mean_factor(mask: Tensor, part: slice = WHOLE) -> Tensor | float:
    """Factor that makes a mean over the True pixels of a part its share of the mean over all.

    Args:
        mask: (N, ...), of all images of this process.
        part: which of them the mean is of.
    """
    if count() == 1 and len(mask[part]) == len(mask):
        return 1.0
    return mask[part].sum().clamp_min(1) / summed(mask.sum()).clamp_min(1)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return flag if count() == 1 else bool(summed(torch.tensor(float(flag), device=_device())))


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sum over processes, in one message."""
    tensors = list(tensors)
    if count() == 1 or not tensors:
        return
    total = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(total)
    parts = total.split([tensor.numel() for tensor in tensors])
    views = [part.view(tensor.shape) for tensor, part in zip(tensors, parts, strict=True)]
    copy_all(views, tensors)


def take_over(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if count() > 1:
        for tensor in tensors:
            values = tensor.detach().contiguous()
            distributed.broadcast(values, 0)
            tensor.detach().copy_(values)


def _device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"
