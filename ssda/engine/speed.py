"""How fast training is. Nothing here changes a result, or lets a device wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ssda.engine.device import peak_memory

BatchType = TypeVar("BatchType")
TERA = 1e12
PEAKS = {
    "H100 PCIe": 756 * TERA,
    "H100 NVL": 835 * TERA,
    "H100": 989 * TERA,
    "H200": 989 * TERA,
    "A100": 312 * TERA,
}
"""Dense bfloat16 operations a second by the makers' data sheets; the first part of a name fits."""


@dataclass(frozen=True)
class Cost:
    """What a step took.

    Attributes:
        seconds: from asking for its images to its report, by the clock of the processor. A step
            waits for its device once, so that this is the device's pace too.
        waited: seconds of it until the images were there.
        operations: floating-point operations of its gradients; None where they were not counted.
    """

    seconds: float
    waited: float
    operations: int | None = None


def awaited(batches: Iterable[BatchType]) -> Iterator[tuple[float, float, BatchType]]:
    """When each batch was asked for, how many seconds it came later, and the batch."""
    source = iter(batches)
    while True:
        asked = time.perf_counter()
        try:
            batch = next(source)
        except StopIteration:
            return
        yield asked, time.perf_counter() - asked, batch


@dataclass
class Speed:
    """The steps of a training loop, from its first or from where it went on.

    Attributes:
        images: that a step takes, over all processes.
        device: where it trains.
        costs: of the steps.
        validating: seconds spent on validation.
        shown: steps that `news` has told of.
    """

    images: int
    device: torch.device
    costs: list[Cost] = field(default_factory=list[Cost])
    validating: float = 0.0
    shown: int = 0

    def validated(self, validate: Callable[[], dict[str, float | None]]) -> dict[str, float | None]:
        """What a validation gives, its time noted."""
        started = time.perf_counter()
        scores = validate()
        self.validating += time.perf_counter() - started
        return scores

    def seconds_a_step(self, last: int) -> float:
        """The mean of the last so many steps."""
        return sum(cost.seconds for cost in self.costs[-last:]) / last

    def news(self) -> dict[str, float | None]:
        """The figures of the steps since it was asked last, for a curve."""
        last, self.shown = len(self.costs) - self.shown, len(self.costs)
        return self.figures(last)

    def figures(self, last: int) -> dict[str, float | None]:
        """The mean of the last so many steps; None for what nobody knows."""
        pace = self.seconds_a_step(last)
        waited = sum(cost.waited for cost in self.costs[-last:]) / last
        counted = next((c.operations for c in reversed(self.costs) if c.operations), None)
        peak = peak_rate(self.device)
        return {
            "seconds_a_step": pace,
            "images_a_second": self.images / pace,
            "waiting_percent": 100 * waited / pace,
            "peak_memory_gib": peak_memory(self.device),
            "of_peak_percent": 100 * counted / pace / peak if counted and peak else None,
        }

    def summary(self) -> dict[str, float | None]:
        """The figures of all steps but the first, which starts kernels and loaders."""
        total = sum(cost.seconds for cost in self.costs) + self.validating
        share = {"validation_percent": 100 * self.validating / total}
        return self.figures(max(1, len(self.costs) - 1)) | share


def peak_rate(device: torch.device) -> float | None:
    """Dense bfloat16 operations a second of a card; None of one that `PEAKS` does not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def told(figures: dict[str, float | None]) -> str:
    """A summary in a line."""
    parts = [
        ("{:.3g} s a step", "seconds_a_step"),
        ("{:.3g} images a second", "images_a_second"),
        ("{:.1f} % of it waiting for data", "waiting_percent"),
        ("{:.0f} % of the card's bfloat16 peak", "of_peak_percent"),
        ("validation took {:.0f} % of the time", "validation_percent"),
        ("at most {:.2f} GiB of memory", "peak_memory_gib"),
    ]
    return ", ".join(
        text.format(value) for text, name in parts if (value := figures[name]) is not None
    )
