"""A GPU that is not there: tensors on it have a device, a type and a shape, and no numbers.

Tensors on the host are real. So the code for GPUs runs anywhere as it is, in seconds: what would
fail there (two devices or two types in one operation) fails here, and what would make the host wait
for the GPU is counted: a number that is read, a copy from or to memory that is not pinned, an
operator whose result is as long as values make it.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ssda.engine import flops

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tuple(str(ROOT / name) for name in ("ssda", "pipeline"))
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
LOOKS = {
    torch.ops.prim.device,
    *(aten.view, aten._unsafe_view, aten._reshape_alias, aten.as_strided, aten.alias, aten.detach),
    *(aten.t, aten.transpose, aten.permute, aten.unfold, aten.slice, aten.select, aten.expand),
    *(aten.unsqueeze, aten.squeeze, aten.split, aten.split_with_sizes, aten.unbind),
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided),
}
"""Operators that launch nothing: they look at memory in another way, or reserve it."""
VALUES_MAKE_LENGTH = {aten._unique2: 3, aten.unique_dim: 3, aten.nonzero: 1, aten.masked_select: 1}
"""Operators whose results are as long as values make them, and how many results they have."""
WAITS = {aten._local_scalar_dense, aten.equal, aten.bincount, *VALUES_MAKE_LENGTH}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


@dataclass
class Seen:
    """What was asked of the GPU.

    Attributes:
        waits: how often the host waited, by operator and the project's line.
        calls: operators launched, by name.
        casts: copies to another type.
        flops: operations of products, convolutions and attention, by the type of what goes in.
        largest: bytes of the largest tensor, and where it is made.
    """

    waits: Counter[str] = field(default_factory=Counter[str])
    calls: Counter[str] = field(default_factory=Counter[str])
    casts: int = 0
    flops: Counter[str] = field(default_factory=Counter[str])
    largest: tuple[int, str] = (0, "")

    def share(self, dtype: torch.dtype) -> float:
        """Share of the floating-point operations that are computed in a type."""
        return self.flops[str(dtype)] / max(1, self.flops.total())


class FakeCuda(TorchDispatchMode):
    """Runs operators on the host for real, and those on the GPU on tensors without numbers.

    Every number that comes from the GPU is 0.

    Attributes:
        seen: so far; may be replaced by a new one.
    """

    def __init__(self) -> None:
        """A GPU of which nothing was asked yet."""
        super().__init__()
        self.seen = Seen()
        self._pinned: dict[int, Tensor] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # nothing is compiled here; asking takes time
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, on the host or as if on the GPU, and note what it asks for.

        Raises:
            TypeError: a product or a convolution of two types, which a GPU refuses.
        """
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled() and func.namespace == "aten" and func._can_decompose():
            with self:  # as PyTorch does itself outside of inference mode
                return func.decompose(*args, **kwargs)
        kind = getattr(func, "_overloadpacket", func)
        leaves = tree_leaves((args, kwargs))
        on_gpu = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        to_gpu = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        if not on_gpu and not to_gpu:
            return self._on_host(func, kind, args, kwargs)
        if self._waits(kind, args, kwargs):
            self.seen.waits[f"{kind} at {project_line()}"] += 1
        if kind == aten._local_scalar_dense:
            return 0.0 if args[0].dtype.is_floating_point else 0
        if kind == aten.equal:
            return True
        if kind == aten.is_pinned:
            return False
        if kind == aten.nonzero:
            return args[0].new_empty((0, args[0].dim()), dtype=torch.int64)
        if kind in VALUES_MAKE_LENGTH:
            some, count = args[0].flatten()[:1], VALUES_MAKE_LENGTH[kind]
            return some if count == 1 else (some,) * count
        if kind == aten.index and args[1][0] is not None and args[1][0].dtype == torch.bool:
            return args[0].flatten(0, args[1][0].dim() - 1)[:1]
        out = func(*args, **kwargs)
        self._note(func, kind, args, kwargs, out)
        return tree_map_only(FakeTensor, _arrived, out)

    def _on_host(self, func: Any, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kind == aten.is_pinned:
            return self._is_pinned(args[0])
        if kind == aten.linspace:  # a network on "meta" is built by such numbers
            kwargs["device"] = torch.device("cpu")
        pins = kind == aten._pin_memory or kwargs.pop("pin_memory", False)
        with unset_fake_temporarily():
            out = args[0].clone() if kind == aten._pin_memory else func(*args, **kwargs)
        if pins:
            self._pinned[out.untyped_storage().data_ptr()] = out
        return out

    def _waits(self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if kind in INDEXING:
            return any(
                where is not None and (where.dtype == torch.bool or where.device.type == "cpu")
                for where in args[1]
            )
        if kind == aten.repeat_interleave:
            return kwargs.get("output_size") is None
        if kind == aten._to_copy:
            source, target = args[0], kwargs.get("device") or args[0].device
            ready = kwargs.get("non_blocking", False) and self._is_pinned(source)
            return source.device.type != target.type and not ready
        if kind == aten.copy_:
            target, source, *non_blocking = args
            ready = any(non_blocking) and (self._is_pinned(source) or self._is_pinned(target))
            return source.device.type != target.device.type and not ready
        return kind in WAITS

    def _is_pinned(self, tensor: Tensor) -> bool:
        on_gpu = isinstance(tensor, FakeTensor)
        return not on_gpu and tensor.untyped_storage().data_ptr() in self._pinned

    def _note(
        self, func: Any, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        if kind in LOOKS:
            return
        seen = self.seen
        seen.calls[str(kind)] += 1
        if kind == aten._to_copy and kwargs.get("dtype") not in (None, args[0].dtype):
            seen.casts += 1
        computed = flops.operations(func, args, kwargs, out)
        if computed:
            given = [a.dtype for a in args if isinstance(a, Tensor) and a.dtype.is_floating_point]
            if len(set(given)) > 1:
                raise TypeError(f"{kind} of {given} at {project_line()}")
            seen.flops[str(given[0])] += computed
        for leaf in tree_leaves(out):
            size = leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0
            if size > seen.largest[0]:
                name = f"{kind} {tuple(leaf.shape)} {leaf.dtype} at {project_line()}"
                seen.largest = (size, name)


def _arrived(out: FakeTensor) -> Tensor:
    """What an operator gave; made up where it is a copy on the host."""
    if out.device.type == "cuda":
        return out
    with unset_fake_temporarily():
        return torch.zeros(out.shape, dtype=out.dtype)


def project_line() -> str:
    """The innermost line of the project that is being run, such as "ssda/labels.py:3"."""
    frame = inspect.currentframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PROJECT) and path != flops.__file__:
            return f"{path[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def backward(loss: Tensor, *_: object, **__: object) -> None:
    """Add a scalar's gradients to its leaves, node by node.

    PyTorch's own engine asks the driver of the GPU, which is not there.
    """
    root: Any = loss.grad_fn
    open_inputs: Counter[Any] = Counter()
    todo, met = [root], {root}
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                open_inputs[node] += 1
                if node not in met:
                    met.add(node)
                    todo.append(node)
    gradients: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    ready = [root]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            for (follower, place), gradient in zip(
                node.next_functions, _gradients(node, gradients.pop(node, {})), strict=False
            ):
                if follower is None:
                    continue
                if gradient is not None:
                    wanted = follower._input_metadata[place]
                    gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
                    sums = gradients.setdefault(follower, {})
                    sums[place] = sums[place] + gradient if place in sums else gradient
                open_inputs[follower] -= 1
                if open_inputs[follower] == 0:
                    ready.append(follower)


def _gradients(node: Any, given: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Those of a node's inputs, of those of its outputs."""
    if not given:
        return (None,) * len(node.next_functions)
    run = getattr(node, "apply", node)  # of a Python function, and of PyTorch's own
    found = run(*(given.get(place) for place in range(len(node._input_metadata))))
    return found if isinstance(found, tuple) else (found,)


def move(module: nn.Module) -> None:
    """Put a module made on the device "meta" onto the GPU; inside `fake_cuda`."""

    def fake(value: Tensor) -> Tensor:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CUDA)

    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(fake(value), value.requires_grad))
        for name, value in list(part.named_buffers(recurse=False)):
            setattr(part, name, fake(value))


@contextmanager
def fake_cuda() -> Generator[FakeCuda]:
    """Inside, the device "cuda" is a GPU that is not there."""

    def ratios(class_frequencies: Tensor, *, beta: float) -> Tensor:
        return torch.ones_like(class_frequencies)  # the function looks at the numbers

    replaced: dict[str, Callable[..., Any]] = {
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.accelerator.is_available": lambda: True,  # so that batches are pinned
        "torch.random.fork_rng": lambda *_, **__: nullcontext(),  # it asks for the GPU's state
        "torch.Tensor.backward": backward,
        "torch.autograd.backward": backward,
        "torch._C._current_graph_task_id": lambda: 0,  # checkpoints are computed again once
        "ssda.method.guidance.keep_ratios": ratios,
        "ssda.method.trucrf.missing_for_kernel": lambda: None,
        "ssda.method.trucrf_cuda._gather.run": lambda *_, **__: None,
    }
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(patch(name, function))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(FakeCuda())
