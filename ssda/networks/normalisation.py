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
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from ssda.processes import count

NetworkType = TypeVar("NetworkType", bound=nn.Module)


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
    network: nn.Module, batches: Iterable[Tensor], run: Callable[[Tensor], object]
) -> None:
    """Replace the running statistics by the mean over batches of images (N, 3, H, W) in [0, 1].

    `run` sends a batch through the network as training does. No weight changes ("AdaBN", Li et
    al., 2017). The network's mode is the same afterwards.
    """
    layers = batch_normalisations(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    training = network.training
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean over the batches
    network.train()
    for images in batches:
        run(images)
    network.train(training)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
