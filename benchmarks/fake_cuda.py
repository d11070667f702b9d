"""A GPU that is not there: tensors on it have a device, a type and a shape, and no numbers.

Tensors on the host are real. So the code for GPUs runs here as it is, in seconds, and what would
fail there (two devices or two types in one operation) fails here, and what would make the host wait
for the GPU is seen: a number that is read, a copy in either direction from memory that is not
pinned, an operator whose result's size depends on values.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from ssda.engine.flops import operations

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tuple(str(ROOT / name) for name in ("ssda", "pipeline"))
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
CASTS = (aten._to_copy, aten.to)
MAKES_NO_KERNEL = {
    aten.view, aten._unsafe_view, aten.detach, aten.t, aten.transpose, aten.permute, aten.slice,
    aten.select, aten.expand, aten.unsqueeze, aten.squeeze, aten.split, aten.split_with_sizes,
    aten.unbind, aten.as_strided, aten.alias, aten.empty, aten.empty_like, aten.empty_strided,
    aten.new_empty, aten.new_empty_strided, aten._reshape_alias, aten.unfold, aten.chunk,
    aten.lift_fresh,
}  # fmt: skip
"""Operators that only look at memory in another way, or reserve it."""
FIRST_OF_EACH = {
    aten._unique2: 3,
    aten.unique_dim: 3,
    aten.nonzero: 1,
    aten.masked_select: 1,
}
"""Operators whose results are as long as values make them, and how many results they have."""
WAITS = {aten._local_scalar_dense, aten.equal, aten.bincount, *FIRST_OF_EACH}
"""Operators for whose results the host waits."""


@dataclass
class Seen:
    """What was asked of the GPU.

    Attributes:
        waits: how often the host waited, by kind and the project's line that made it.
        calls: launched operators, by name.
        casts: copies to another type.
        flops: floating-point operations of products, convolutions and attention.
        largest: bytes of the largest tensor, and its line.
        types: output types of `probe`d modules.
    """

    waits: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    casts: int = 0
    flops: int = 0
    largest: tuple[int, str] = (0, "")


class FakeCuda(TorchDispatchMode):
    """Runs operators on the host for real, and those on the GPU on tensors without numbers.

    Every number that is read off the GPU is 1.

    Attributes:
        seen: so far; may be replaced by a new one.
    """

    def __init__(self) -> None:
        """A GPU of which nothing was asked yet."""
        super().__init__()
        self.seen = Seen()
        self._pinned: dict[int, Tensor] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # of each call; there is nothing to trace here
        return False

    def fake(self, tensor: Tensor) -> Tensor:
        """A tensor of that shape, layout and type on the GPU."""
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, on the host or as if on the GPU, and note what it does."""
        kwargs = dict(kwargs or {})
        kind = getattr(func, "_overloadpacket", func)
        leaves = tree_flatten((args, kwargs))[0]
        if kind == aten._pin_memory:
            with unset_fake_temporarily():
                return self._pin(args[0].clone())
        if kwargs.get("pin_memory"):
            with unset_fake_temporarily():
                made = func(*args, **kwargs | {"pin_memory": False})
            return self._pin(made)
        if kind == aten.is_pinned:
            return self._is_pinned(args[0])
        on_gpu = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        made = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        if not on_gpu and not made:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if self._waits(kind, args, kwargs, leaves):
            self.seen.waits[f"{func} at {project_line()}"] += 1
        if kind == aten._local_scalar_dense:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if kind == aten.equal:
            return True
        if kind in FIRST_OF_EACH:
            made_up = args[0].flatten()[:1]
            return made_up if FIRST_OF_EACH[kind] == 1 else (made_up,) * FIRST_OF_EACH[kind]
        if kind == aten.index and (mask := args[1][0]) is not None and mask.dtype == torch.bool:
            return args[0].flatten(0, mask.dim() - 1)[:1]
        out = func(*args, **kwargs)
        self._note(func, kind, args, kwargs, out)
        return tree_map_only(FakeTensor, self._on_host, out)

    def _waits(
        self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]
    ) -> bool:
        if kind in WAITS:
            return True
        if kind in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            return any(t is not None and (t.dtype == torch.bool or not isinstance(t, FakeTensor)) for t in args[1])
        if kind == aten.repeat_interleave:
            return kwargs.get("output_size") is None
        if kind == aten._to_copy:
            source, target = args[0].device, kwargs.get("device") or args[0].device
            ready = kwargs.get("non_blocking", False) and self._is_pinned(args[0])
        elif kind == aten.copy_:
            source, target = args[1].device, args[0].device
            non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
            ready = non_blocking and (self._is_pinned(args[1]) or self._is_pinned(args[0]))
        else:
            return False
        return source.type != torch.device(target).type and not ready

    def _note(
        self, func: Any, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        seen = self.seen
        if kind not in MAKES_NO_KERNEL:
            seen.calls[str(kind)] += 1
        if kind == aten._to_copy and kwargs.get("dtype") not in (None, args[0].dtype):
            seen.casts += 1
        seen.flops += operations(func, args, kwargs, out)
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, Tensor) and kind not in MAKES_NO_KERNEL:
                size = leaf.numel() * leaf.element_size()
                if size > seen.largest[0]:
                    name = f"{func} {tuple(leaf.shape)} {leaf.dtype} at {project_line()}"
                    seen.largest = (size, name)

    def _on_host(self, out: FakeTensor) -> Tensor:
        """Real numbers where a copy arrives on the host."""
        if out.device.type == "cuda":
            return out
        with unset_fake_temporarily():
            return torch.ones(out.shape, dtype=out.dtype)

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        if isinstance(tensor, FakeTensor):
            return False
        return tensor.untyped_storage().data_ptr() in self._pinned


def project_line() -> str:
    """The innermost line of the project that is being run, such as "ssda/labels.py:3"."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PROJECT):
            return f"{path[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def backward(tensors: Tensor, *_: object, **__: object) -> None:
    """Backward from one scalar, node by node: PyTorch's engine would ask the GPU's driver."""
    root: Any = tensors.grad_fn
    waiting: Counter[Any] = Counter()
    met, todo = {root}, [root]
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in met:
                    met.add(node)
                    todo.append(node)
    gradients: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(tensors)}}
    ready = [root]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            inputs = gradients.pop(node, {})
            run = node.apply if isinstance(node, BackwardCFunction) else node
            places = range(max(len(node._input_metadata), 1))
            outputs = run(*(inputs.get(i) for i in places)) if inputs else ()
            if not isinstance(outputs, tuple):
                outputs = (outputs,)
            for i, (follower, place) in enumerate(node.next_functions):
                if follower is None:
                    continue
                given = outputs[i] if i < len(outputs) else None
                if given is not None:
                    wanted = follower._input_metadata[place]
                    given = given.sum_to_size(wanted.shape).to(wanted.dtype)
                    before = gradients.setdefault(follower, {}).get(place)
                    gradients[follower][place] = given if before is None else before + given
                waiting[follower] -= 1
                if waiting[follower] == 0:
                    ready.append(follower)


def move(network: nn.Module, gpu: FakeCuda) -> None:
    """Put a network made on the device "meta" onto the GPU that is not there."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(gpu.fake(value), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = gpu.fake(value)


@contextmanager
def fake_cuda() -> Generator[FakeCuda]:
    """Inside, the device "cuda" has a GPU that is not there."""
    gpu = FakeCuda()
    with ExitStack() as stack:
        def replace(target: str, value: Callable[..., Any]) -> None:
            stack.enter_context(patch(target, value))

        replace("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        replace("torch.cuda.is_bf16_supported", lambda *_, **__: True)
        replace("torch.Tensor.backward", backward)
        replace("torch.autograd.backward", backward)
        replace("torch._C._current_graph_task_id", lambda: 0)  # one recomputation a block
        replace("ssda.method.trucrf.missing_for_kernel", lambda: None)
        replace("ssda.method.trucrf_cuda._gather.run", lambda *_, **__: None)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(gpu)
        yield gpu
