"""One part of a step: a pass over images, its losses, their gradients; and what a step tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from ssda.networks.normalisation import kept_statistics
from ssda.networks.segmenter import Segmenter, Views
from ssda.processes import micro_batches


@dataclass(frozen=True)
class Loss:
    """A term of a step's loss.

    Attributes:
        weight: 0 for a term that is off: it is not computed.
        of: the unweighted scalar of a pass, with gradient; its share of the whole batch's.
    """

    weight: float
    of: Callable[[Views], Tensor]


@dataclass(frozen=True)
class Report:
    """What a step tells: detached tensors on the device; of several processes they add up.

    Attributes:
        losses: unweighted scalars, of the terms that are on.
        scalars: label-free indicators.
        by_class: the same of each class, (C,).
        images: for a person to look at, as `look` gives them; each process has its own.
    """

    losses: dict[str, Tensor]
    scalars: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    by_class: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    images: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def learn(
    student: Segmenter,
    images: Tensor,
    generators: list[np.random.Generator],
    losses: Mapping[str, Loss],
    *,
    passes: int = 1,
    at_once: int | None = None,
    fills_statistics: bool = False,
) -> dict[str, Tensor]:
    """Add the gradient of the weighted losses of one pass to the student's, and free its graph.

    In micro-batches, one after another, it holds the graph of one of them: the sum of their
    gradients is that of the whole, except that batch normalisation normalises each by itself.

    All gradients of training are made here. Running statistics of batch normalisation change in
    the forward pass alone, and only where the pass is to fill them: not when activations are
    computed a second time for the gradient. A pass without any loss is left out, or, where it
    fills statistics, runs without gradient.

    Args:
        student: in training mode.
        images: (N, 3, H, W) in [0, 1].
        generators: one an image, for the pass's draws.
        losses: the terms, by name.
        passes: stochastic passes that follow the one trunk.
        at_once: images of a micro-batch, at most; None: all.
        fills_statistics: whether these images are what the running statistics are of.

    Returns:
        The losses that are on, detached and unweighted.
    """
    terms = {name: loss for name, loss in losses.items() if loss.weight > 0}
    if not terms and not fills_statistics:
        return {}
    drawn = student.draw(images.shape[-2:], passes, generators)
    told: list[dict[str, Tensor]] = []
    for part in micro_batches(len(images), at_once):
        with ExitStack() as kept:
            if not fills_statistics:
                kept.enter_context(kept_statistics(student))
            with torch.set_grad_enabled(bool(terms)):
                views = student.observe(images, *drawn, part)
                values = {name: loss.of(views) for name, loss in terms.items()}
            if fills_statistics and student.encoder.checkpointing:  # passes run again for gradients
                kept.enter_context(kept_statistics(student))
            if terms:
                reduce(torch.add, (terms[name].weight * values[name] for name in terms)).backward()
        told.append({name: value.detach() for name, value in values.items()})
    return {name: reduce(torch.add, (each[name] for each in told)) for name in terms}
