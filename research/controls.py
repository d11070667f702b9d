"""Other ways to choose as many seeds: controls that tell what the balance of the seeds is worth."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Literal
from unittest import mock

import torch
from torch import Tensor

from ssda.labels import IGNORE
from ssda.method.subdomains import keep_ratios, select_seeds

Balance = Literal["method", "same", "none"]
"""The method's ratio for each class; the same share of every class; no look at classes."""


@contextmanager
def balanced(balance: Balance) -> Generator[None]:
    """Adaptation inside chooses its seeds in another way; the library has no parameter for it."""
    controls = {
        "same": ("ssda.method.guidance.keep_ratios", same_share),
        "none": ("ssda.method.guidance.select_seeds", most_certain),
    }
    with mock.patch(*controls[balance]) if balance in controls else nullcontext():
        yield


def same_share(class_frequencies: Tensor, *, beta: float) -> Tensor:
    """For every class (C,) the share that `keep_ratios` keeps of all source pixels together."""
    ratios = keep_ratios(class_frequencies, beta=beta)
    shares = class_frequencies.double() / class_frequencies.sum()
    return torch.full_like(ratios, float((shares * ratios).sum()))


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
