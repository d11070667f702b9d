"""Whose statistics batch normalisation keeps: those of the target, and of nothing else.

The teacher and the evaluation normalise by running statistics. Measured, these decide the result:
statistics that mix domains cost more than any loss brings. Networks without batch normalisation
(transformers) are left as they are by every function here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from ssda.processes import add_up, alone, count

NetworkType = TypeVar("NetworkType", bound=nn.Module)
BatchType = TypeVar("BatchType")


def batch_normalisations(network: nn.Module) -> list[_BatchNorm]:
    """All layers that keep running statistics."""
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]


def synchronised(network: NetworkType) -> NetworkType:
    """The network with statistics over all processes' images, where there are several on CUDA.

    There is no such layer for CPUs: there each process normalises by its own part of the batch.
    """
    on_cuda = any(parameter.is_cuda for parameter in network.parameters())
    convert: Any = convert_sync_batchnorm  # timm's, which knows layers with an activation
    return convert(network) if count() > 1 and on_cuda else network


@contextmanager
def kept_statistics(network: nn.Module) -> Generator[None]:
    """Training passes inside normalise by their own batch and leave running statistics alone."""
    layers = batch_normalisations(network)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@torch.no_grad()
def reestimate_statistics(
    network: nn.Module, batches: Iterable[BatchType], run: Callable[[BatchType], object]
) -> None:
    """Replace the running statistics by the mean over batches; of several processes over all's.

    `run` sends a batch through the network once, as training does, but each process normalises
    its batches by themselves: they may have different numbers of them. No weight changes ("AdaBN",
    Li et al., 2017). The network's mode is the same afterwards.
    """
    layers = batch_normalisations(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    training = network.training
    for layer in layers:
        layer.reset_running_stats()
    network.train()
    seen = 0
    with unsynchronised(layers):
        for seen, batch in enumerate(batches, 1):
            for layer in layers:
                layer.momentum = 1.0 / seen  # a mean: without a momentum CUDA waits in each layer
            run(batch)
    network.train(training)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    if count() > 1:
        _average(layers, seen)


@contextmanager
def unsynchronised(layers: list[_BatchNorm]) -> Generator[None]:
    """Inside, layers that `synchronised` made normalise by what their own process sees."""
    synchronising = [layer for layer in layers if isinstance(layer, nn.SyncBatchNorm)]
    group = alone() if synchronising else None
    for layer in synchronising:
        layer.process_group = group
    yield
    for layer in synchronising:
        layer.process_group = None


def _average(layers: list[_BatchNorm], seen: int) -> None:
    """Average running statistics over processes, each by how many batches it has `seen`."""
    statistics = [
        values
        for layer in layers
        for values in (layer.running_mean, layer.running_var)
        if values is not None
    ]
    total = statistics[0].new_tensor(seen)
    for values in statistics:
        values.mul_(seen)
    add_up([*statistics, total])
    for values in statistics:
        values.div_(total)
    for layer in layers:
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.copy_(total)
