"""How much a piece of work computes: operations of matrix products, convolutions and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CONVOLUTION = torch.ops.aten.convolution
CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations inside, forward and backward, on any device.

    A multiplication with its addition is two operations. Counted are matrix products, convolutions
    and attention, as they are executed: what activation checkpointing computes again counts again.
    Code that torch.compile has made runs uncompiled inside. No number is changed. Under
    torch.inference_mode less is seen: count under torch.no_grad.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator; add what it computes."""
        out = func(*args, **(kwargs or {}))
        self.total += operations(func, args, kwargs or {}, out)
        return out


def operations(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Floating-point operations of a call of an operator of PyTorch; 0 of those that do little."""
    kind = getattr(operator, "_overloadpacket", operator)
    if kind == CONVOLUTION:
        return _convolution(args[0], args[1], out, transposed=args[6])
    if kind == CONVOLUTION_BACKWARD:  # PyTorch's formula forgets groups
        needed = sum(args[10][:2])
        return needed * _convolution(args[1], args[2], args[0], transposed=args[7])
    formula = flop_registry.get(kind)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


def _convolution(
    images: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *, transposed: bool
) -> int:
    """A product with the whole weight at each place, of the images where transposed."""
    places = images if transposed else out
    return 2 * len(places) * math.prod(places.shape[2:]) * weight.numel()
