"""Other ways to choose as many seeds: controls that tell what the balance of the seeds is worth."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Literal
from unittest import mock

import torch
from torch import Tensor

from ssda.labels import IGNORE
from ssda.method.subdomains import keep_ratios, select_seeds

Balance = Literal["method", "same", "none", "source"]
"""The method's ratio r_c for each class; the same share of every class; no look at classes; r_c
corrected for classes that are predicted more or less often than the source shows them."""
MOMENTUM = 0.95
"""Of the running share of each class among the pseudo labels."""


@contextmanager
def balanced(balance: Balance, class_frequencies: Tensor) -> Generator[None]:
    """Adaptation inside chooses its seeds in another way; the library has no parameter for it."""
    controls = {
        "same": ("ssda.engine.adapting.keep_ratios", same_share),
        "none": ("ssda.method.guidance.select_seeds", most_certain),
        "source": ("ssda.method.guidance.select_seeds", as_the_source(class_frequencies)),
    }
    with mock.patch(*controls[balance]) if balance in controls else nullcontext():
        yield


def same_share(class_frequencies: Tensor, *, beta: float) -> Tensor:
    """For every class (C,) the share that `keep_ratios` keeps of all source pixels together."""
    ratios = keep_ratios(class_frequencies, beta=beta)
    shares = class_frequencies.double() / class_frequencies.sum()
    return torch.full_like(ratios, float((shares * ratios).sum()))


def as_the_source(class_frequencies: Tensor) -> Callable[..., Tensor]:
    """A `select_seeds` whose ratio is r_c w_c / p_c, at most 1.

    w_c is the source's share of a class, p_c its running share among the pseudo labels. Of every
    class there are then, over time, r_c w_c of all pixels as seeds, however often the teacher
    predicts it: a class that spreads over its neighbours gets no more seeds by it.
    """
    shares = class_frequencies.double() / class_frequencies.sum()
    running = torch.zeros_like(shares)
    seen = 0

    def select(
        labels: Tensor, uncertainty: Tensor, confidence: Tensor, ratios: Tensor, *, min_pixels: int
    ) -> Tensor:
        nonlocal running, seen
        known = labels[labels != IGNORE].flatten()
        predicted = torch.bincount(known, minlength=len(shares)).double() / max(1, len(known))
        momentum = min(MOMENTUM, seen / (seen + 1))
        running = momentum * running + (1 - momentum) * predicted
        seen += 1
        corrected = (ratios * shares / running.clamp_min(1e-6)).clamp_max(1.0)
        return select_seeds(labels, uncertainty, confidence, corrected, min_pixels=min_pixels)

    return select


def most_certain(
    labels: Tensor, uncertainty: Tensor, confidence: Tensor, ratios: Tensor, *, min_pixels: int
) -> Tensor:
    """As many seeds (N, H, W) as `select_seeds` gives, the most certain pixels of any class."""
    count = select_seeds(labels, uncertainty, confidence, ratios, min_pixels=min_pixels).sum()
    one_class = torch.where(labels == IGNORE, IGNORE, 0)
    share = count.double() / (one_class == 0).sum().clamp_min(1)
    return select_seeds(
        one_class, uncertainty, confidence, share.unsqueeze(0), min_pixels=min_pixels
    )
