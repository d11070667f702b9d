"""Measuring: what it was measured on, ways in turn, a ratio against a bar."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssda.files import write_json


def describe_machine() -> dict[str, Any]:
    """Processor, cores, GPU and the version of PyTorch."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_mib() -> float:
    """The most memory that this process has held, in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


def interleave(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, sorted, run in turn so that a slow moment of the machine hits all.

    Every way runs once before the clock does.
    """
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: sorted(values) for name, values in seconds.items()}


@dataclass(frozen=True)
class Comparison:
    """A question's answer: the ratio of two ways' medians, and the bar it is held against."""

    question: str
    seconds: dict[str, list[float]]
    ratio_of: tuple[str, str]
    bar: float
    at_most: bool

    @property
    def ratio(self) -> float:
        """Median of the first way over that of the second."""
        first, second = (statistics.median(self.seconds[name]) for name in self.ratio_of)
        return first / second

    @property
    def holds(self) -> bool:
        """Whether the ratio is on the right side of its bar."""
        return self.ratio <= self.bar if self.at_most else self.ratio >= self.bar

    def content(self) -> dict[str, Any]:
        """For the JSON."""
        return {
            "question": self.question,
            "seconds": {n: [round(s, 5) for s in values] for n, values in self.seconds.items()},
            "ratio": {" / ".join(self.ratio_of): round(self.ratio, 3)},
            "bar": self.bar,
            "holds": self.holds,
        }

    def row(self) -> str:
        """A row of a Markdown table."""
        sign = "<=" if self.at_most else ">="
        each = ", ".join(
            f"{name} {statistics.median(values):.4f} s ({values[0]:.4f} to {values[-1]:.4f})"
            for name, values in self.seconds.items()
        )
        verdict = "holds" if self.holds else "falls short"
        return f"| {self.question} | {self.ratio:.2f} | {sign} {self.bar} | {verdict} | {each} |"


def report(comparisons: list[Comparison], path: Path, extra: Mapping[str, Any]) -> None:
    """Print the table, write the JSON."""
    print("| question | ratio | bar | | medians (fastest to slowest) |")
    print("| --- | --- | --- | --- | --- |")
    for comparison in comparisons:
        print(comparison.row())
    answers = [comparison.content() for comparison in comparisons]
    write_json(path, {"machine": describe_machine(), **extra, "answers": answers})
