"""The training loop: a plain generator that yields a record a step; the caller logs and saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssda.engine.flops import FlopCounter
from ssda.engine.speed import Cost, awaited
from ssda.networks.normalisation import batch_normalisations
from ssda.networks.segmenter import Segmenter
from ssda.params import Optimiser
from ssda.processes import add_up, averaged, count, summed

BatchType = TypeVar("BatchType")
WARMUP_START = 1e-6
"""Factor of the learning rate at the first step of a warm-up."""
PATIENCE = 10
"""Steps in a row with numbers that are not finite, after which training stops."""


@dataclass(frozen=True)
class Progress:
    """How far training is.

    Attributes:
        optimiser: as `create_optimiser` gives it, with its moments.
        steps: that are done; the next one has this number.
    """

    optimiser: torch.optim.AdamW
    steps: int


@dataclass(frozen=True)
class StepRecord:
    """What a step tells.

    Attributes:
        step: number of the step, from 0.
        learning_rate: the encoder's.
        report: detached tensors, still on the device; `scalars` brings them off it.
        problem: what was not finite, so that the step changed nothing; None in a good step.
        cost: what the step took.
    """

    step: int
    learning_rate: float
    report: dict[str, Tensor]
    problem: str | None
    cost: Cost

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
    *,
    progress: Progress,
    files: Callable[[int], list[Path]],
) -> Iterator[StepRecord]:
    """Train a network, one optimiser step a batch.

    A step in which a loss or a gradient is not finite is left out: weights, buffers and moments
    stay as they were.

    Args:
        network: in training mode.
        settings: of the optimiser.
        iterations: length of the learning-rate schedule.
        batches: one for each step that is still to do.
        add_gradients: adds a batch's gradients to the network's, returns its report.
        after_update: called with the step's number once the weights have changed.
        progress: where to begin.
        files: the images in a step's batch, for messages.

    Raises:
        FloatingPointError: PATIENCE steps in a row were left out; the message names the last step,
            what was not finite and the files.
    """
    optimiser = progress.optimiser
    rates = [group["lr"] for group in optimiser.param_groups]
    left_out = 0
    for step, (asked, waited, batch) in enumerate(awaited(batches), progress.steps):
        factor = learning_rate_factor(step, iterations, settings.warmup)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimiser.zero_grad()
        buffers = [buffer.clone() for buffer in network.buffers()]
        # On a CPU there is no peak to hold it against; the first step may draw a picture.
        counted = network.device.type == "cuda" and step == progress.steps + 1
        with FlopCounter() if counted else nullcontext() as counter:
            report = add_gradients(batch, step)
        report = combine(network, report)
        problem = find_problem(network, report)
        if problem is None:
            left_out = 0
            optimiser.step()
            if after_update is not None:
                after_update(step)
        else:
            left_out += 1
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        operations = counter.total if counter else None
        cost = Cost(time.perf_counter() - asked, waited, operations)
        yield StepRecord(step, settings.learning_rate * factor, report, problem, cost)
        if left_out == PATIENCE:
            raise FloatingPointError(
                f"step {step}: {problem}, the {PATIENCE}th step in a row that is not finite; "
                f"images: {', '.join(map(str, files(step)))}; lower optimiser.learning_rate"
            )


@torch.no_grad()
def combine(network: nn.Module, report: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add up gradients and losses over processes, average running statistics; returns the report.

    Where statistics are synchronised their mean is what all have.
    """
    if count() == 1:
        return report
    add_up(p.grad for p in network.parameters() if p.grad is not None)
    for layer in batch_normalisations(network):
        for values in (layer.running_mean, layer.running_var):
            if values is not None:
                values.copy_(averaged(values))
    losses = {name: summed(value) for name, value in report.items() if name.startswith("loss_")}
    return report | losses


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


def find_problem(network: nn.Module, report: dict[str, Tensor]) -> str | None:
    """What is not finite, such as "loss_mix = nan"; None where all losses and gradients are.

    Reads one number off the device: as all lies on it in one sum, a step waits once.
    """
    losses = {name: value for name, value in report.items() if name.startswith("loss_")}
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if math.isfinite(float(torch.stack([norm, *losses.values()]).sum())):
        return None
    for name, value in {**losses, "norm of the gradient": norm}.items():
        if not math.isfinite(float(value)):
            return f"{name} = {float(value)}"
    return "sum of the losses is not finite"
