"""The training loop: a plain generator that yields a record a step; the caller logs and saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ssda.networks.segmenter import Segmenter
from ssda.params import Optimiser

BatchType = TypeVar("BatchType")
WARMUP_START = 1e-6
"""Factor of the learning rate at the first step of a warm-up."""


@dataclass(frozen=True)
class StepRecord:
    """What a step tells.

    Attributes:
        step: number of the step, from 0.
        learning_rate: the encoder's.
        report: detached tensors, still on the device; `scalars` brings them off it.
    """

    step: int
    learning_rate: float
    report: dict[str, Tensor]

    def scalars(self) -> dict[str, float]:
        """The report's scalars as numbers."""
        return {name: float(value) for name, value in self.report.items() if value.dim() == 0}


def train(
    network: Segmenter,
    settings: Optimiser,
    iterations: int,
    batches: Iterable[BatchType],
    add_gradients: Callable[[BatchType, int], dict[str, Tensor]],
    after_update: Callable[[int], None] | None = None,
) -> Iterator[StepRecord]:
    """Train a network, one optimiser step a batch.

    Args:
        network: in training mode.
        settings: of the optimiser.
        iterations: length of the learning-rate schedule, and of `batches`.
        batches: one a step.
        add_gradients: adds a batch's gradients to the network's, returns its report.
        after_update: called with the step's number once the weights have changed.

    Raises:
        FloatingPointError: a loss is not finite; the message names step and loss.
    """
    optimiser = create_optimiser(network, settings)
    rates = [group["lr"] for group in optimiser.param_groups]
    for step, batch in enumerate(batches):
        factor = learning_rate_factor(step, iterations, settings.warmup)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimiser.zero_grad()
        report = add_gradients(batch, step)
        check_finite(report, step)
        optimiser.step()
        if after_update is not None:
            after_update(step)
        yield StepRecord(step, settings.learning_rate * factor, report)


def create_optimiser(network: Segmenter, settings: Optimiser) -> torch.optim.AdamW:
    """AdamW with a higher rate for all but the encoder; ValueError for a wrong layer_decay."""
    encoder = [
        {
            "params": values,
            "lr": settings.learning_rate * factor,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for factor, decays, values in network.encoder.parameter_groups(settings.layer_decay)
    ]
    head = [v for name, v in network.named_parameters() if not name.startswith("encoder.")]
    return torch.optim.AdamW(
        [*encoder, {"params": head, "lr": settings.learning_rate * settings.head_factor}],
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.999),
        foreach=True,
    )


def learning_rate_factor(step: int, iterations: int, warmup: int) -> float:
    """Linear decay from step 0 to 0 at `iterations`, times a linear warm-up from 1e-6 to 1."""
    decay = 1.0 - step / iterations
    if step >= warmup:
        return decay
    return decay * (1.0 - (1.0 - step / warmup) * (1.0 - WARMUP_START))


def check_finite(report: dict[str, Tensor], step: int) -> None:
    """FloatingPointError that names the first loss that is not finite."""
    losses = {name: value for name, value in report.items() if name.startswith("loss_")}
    total = torch.stack(list(losses.values())).sum() if losses else torch.zeros(())
    if math.isfinite(float(total)):
        return
    name, value = next((n, v) for n, v in losses.items() if not math.isfinite(float(v)))
    raise FloatingPointError(f"step {step}: {name} = {float(value)}; lower optimiser.learning_rate")
