"""The training loop: a plain generator that yields a record a step; the caller logs and saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssda.engine.flops import FlopCounter
from ssda.engine.speed import Cost, awaited
from ssda.method.learning import Report
from ssda.networks.normalisation import batch_normalisations
from ssda.networks.segmenter import Segmenter
from ssda.params import Optimiser
from ssda.processes import add_up, count
from ssda.tensors import copy_all, of_one_type

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
        report: still on the device; `scalars` brings its scalars off it.
        problem: what was not finite, so that the step changed nothing; None in a good step.
        cost: what the step took.
    """

    step: int
    learning_rate: float
    report: Report
    problem: str | None
    cost: Cost

    def scalars(self) -> dict[str, float]:
        """Losses (`loss_...`) and scalars of the report as numbers; one wait for the device."""
        scalars = _named(self.report.losses) | self.report.scalars
        values = torch.stack([value.double() for value in scalars.values()]).tolist()
        return dict(zip(scalars, values, strict=True))


def train(
    network: Segmenter,
    settings: Optimiser,
    iterations: int,
    batches: Iterable[BatchType],
    add_gradients: Callable[[BatchType, int], Report],
    after_update: Callable[[int, Report], None] | None = None,
    *,
    progress: Progress,
    files: Callable[[int], list[Path]],
    compiled: bool = False,
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
        after_update: called with the step's number and report once the weights have changed.
        progress: where to begin.
        files: the images in a step's batch, for messages.
        compiled: whether the network is; its operations are not counted then.

    Raises:
        FloatingPointError: PATIENCE steps in a row were left out; the message names the last step,
            what was not finite and the files.
    """
    optimiser = progress.optimiser
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    statistics = own_statistics(network)
    buffers = of_one_type(network.buffers())
    kept = [[buffer.clone() for buffer in group] for group in buffers]
    rates = [group["lr"] for group in optimiser.param_groups]
    left_out = 0
    for step, (asked, waited, batch) in enumerate(awaited(batches), progress.steps):
        factor = learning_rate_factor(step, iterations, settings.warmup)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimiser.zero_grad()
        for values, before in zip(buffers, kept, strict=True):
            copy_all(values, before)
        # Where there is a peak to hold it against. The first step may draw a picture. Counted code
        # runs uncompiled, and so might round in another way.
        on_card = network.device.type == "cuda" and not compiled
        counted = on_card and step == progress.steps + 1
        # Around all passes of a step, so that autocast casts each weight once for all of them. The
        # first must have gradients: autocast keeps what it cast, with or without.
        once = torch.autocast(network.device.type, enabled=False)
        with once, FlopCounter() if counted else nullcontext() as counter:
            report = add_gradients(batch, step)
        gradients = [p.grad for p in parameters if p.grad is not None]
        combine(gradients, statistics, report)
        problem = find_problem(gradients, report.losses)
        if problem is None:
            left_out = 0
            optimiser.step()
            if after_update is not None:
                after_update(step, report)
        else:
            left_out += 1
            for values, before in zip(buffers, kept, strict=True):
                copy_all(before, values)
        operations = counter.total if counter else None
        cost = Cost(time.perf_counter() - asked, waited, operations)
        yield StepRecord(step, settings.learning_rate * factor, report, problem, cost)
        if left_out == PATIENCE:
            raise FloatingPointError(
                f"step {step}: {problem}, the {PATIENCE}th step in a row that is not finite; "
                f"images: {', '.join(map(str, files(step)))}; lower optimiser.learning_rate"
            )


@torch.no_grad()
def combine(gradients: list[Tensor], statistics: list[Tensor], report: Report) -> None:
    """Over processes add up gradients and report, average statistics; in place, in two messages."""
    if count() == 1:
        return
    for values in statistics:
        values.div_(count())
    add_up([*gradients, *statistics])
    add_up(
        chain.from_iterable(d.values() for d in (report.losses, report.scalars, report.by_class))
    )


def own_statistics(network: nn.Module) -> list[Tensor]:
    """The running statistics that each process has of its own images; synchronised ones are not."""
    return [
        values
        for layer in batch_normalisations(network)
        if not isinstance(layer, nn.SyncBatchNorm)
        for values in (layer.running_mean, layer.running_var)
        if values is not None
    ]


def create_optimiser(
    network: Segmenter, settings: Optimiser, beside: nn.Module | None = None
) -> torch.optim.AdamW:
    """AdamW with a higher rate for all but the encoder; ValueError for a wrong layer_decay.

    Args:
        network: whose parameters learn.
        settings: rates and decay.
        beside: another module that learns as the network's head does.
    """
    encoder = [
        {
            "params": values,
            "lr": settings.learning_rate * factor,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for factor, decays, values in network.encoder.parameter_groups(settings.layer_decay)
    ]
    head = [v for name, v in network.named_parameters() if not name.startswith("encoder.")]
    head += [] if beside is None else beside.parameters()
    return torch.optim.AdamW(
        [*encoder, {"params": head, "lr": settings.learning_rate * settings.head_factor}],
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.999),
        fused=True,
    )


def learning_rate_factor(step: int, iterations: int, warmup: int) -> float:
    """Linear decay from step 0 to 0 at `iterations`, times a linear warm-up from 1e-6 to 1."""
    decay = 1.0 - step / iterations
    if step >= warmup:
        return decay
    return decay * (1.0 - (1.0 - step / warmup) * (1.0 - WARMUP_START))


def find_problem(gradients: list[Tensor], losses: dict[str, Tensor]) -> str | None:
    """What is not finite, such as "loss_mix = nan"; None where all losses and gradients are.

    Reads one number off the device: as all lies on it in one sum, a step waits once.
    """
    norm = nn.utils.get_total_norm(gradients)
    if math.isfinite(float(torch.stack([norm, *losses.values()]).sum())):
        return None
    for name, value in (_named(losses) | {"norm of the gradient": norm}).items():
        if not math.isfinite(float(value)):
            return f"{name} = {float(value)}"
    return "sum of the losses is not finite"


def _named(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"loss_{name}": value for name, value in losses.items()}
