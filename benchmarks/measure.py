"""Measuring: what it was measured on, ways in turn, an answer held against a bar."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from ssda.engine.device import peak_memory
from ssda.files import write_json
from ssda.sections import parse_json

Result = TypeVar("Result")
RESULTS = Path(__file__).parent / "results"
HEADER = (
    "| question | answer | bar | | medians (fastest to slowest) |\n| --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True)
class Answer:
    """What was measured, and the bar that it is held against.

    Attributes:
        question: what is asked, with the sizes.
        value: the answer.
        unit: of the value.
        bar: where there is one.
        at_most: whether the value must not be above the bar (else: not below).
        note: what limits it, where it falls short.
        details: other figures, for the JSON.
        seconds: of each way that was run, sorted.
    """

    question: str
    value: float
    unit: str
    bar: float | None = None
    at_most: bool = True
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seconds: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])

    @property
    def holds(self) -> bool | None:
        """Whether the value is on the right side of its bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def content(self) -> dict[str, Any]:
        """For the JSON."""
        seconds = {name: [round(s, 6) for s in values] for name, values in self.seconds.items()}
        rounded = {"value": float(f"{self.value:.4g}"), "holds": self.holds, "seconds": seconds}
        return asdict(self) | rounded


def ratio(
    question: str,
    seconds: Mapping[str, list[float]],
    of: tuple[str, str],
    unit: str,
    bar: float | None,
    *,
    at_most: bool,
    note: str = "",
    details: Mapping[str, Any] | None = None,
) -> Answer:
    """The median seconds of one way over those of another."""
    first, second = (statistics.median(seconds[name]) for name in of)
    return Answer(question, first / second, unit, bar, at_most, note, details or {}, seconds)


def pick_clock() -> Callable[[], float]:
    """Processor time where one thread does all, so that other processes do not count; else time."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


def interleave(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each way, sorted, run in turn so that a slow moment of the machine hits all.

    Every way runs once before the clock does.
    """
    clock = clock or pick_clock()
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = clock()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
    return {name: sorted(values) for name, values in seconds.items()}


def peak_gib(device: torch.device | None = None) -> float:
    """The most memory, in GiB, that tensors have held on a GPU, or this process on Linux."""
    peak = peak_memory(device or torch.device("cpu"))
    if peak is None:
        raise OSError("the system does not tell the most memory that a process has held")
    return peak


def apart(work: Callable[..., Result], *arguments: object) -> Result:
    """What a function of a module gives in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # it may start others, as loading
        return pool.submit(work, *arguments).result()


def describe_machine() -> dict[str, Any]:
    """Processor, cores, GPU, how busy it is, and the version of PyTorch."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": pick_clock().__name__,
        "load_before": round(os.getloadavg()[0], 1),
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


def results_so_far(path: Path) -> dict[str, Any]:
    """What a file of results holds, so that one question asked anew keeps the others' answers."""
    return parse_json(path.read_bytes(), str(path)) if path.is_file() else {}


def report(name: str, machine: Mapping[str, Any], answers: list[Answer]) -> None:
    """Write results/<name>.json and print its table."""
    content = {"machine": machine, "answers": [answer.content() for answer in answers]}
    write_json(RESULTS / f"{name}.json", content)
    print(HEADER, *rows(name), sep="\n")


def rows(name: str) -> list[str]:
    """The rows of results/<name>.json, in Markdown."""
    return [
        _row(answer) for answer in json.loads((RESULTS / f"{name}.json").read_text())["answers"]
    ]


def _row(answer: Mapping[str, Any]) -> str:
    sign = "<=" if answer["at_most"] else ">="
    bar = "" if answer["bar"] is None else f"{sign} {answer['bar']:g}"
    verdict = {None: "", True: "holds", False: f"falls short: {answer['note']}"}[answer["holds"]]
    each = ", ".join(
        f"{name} {statistics.median(values):.3g} s ({values[0]:.3g} to {values[-1]:.3g})"
        for name, values in answer["seconds"].items()
    )
    return (
        f"| {answer['question']} | {answer['value']:.3g} {answer['unit']} | {bar} "
        f"| {verdict} | {each} |"
    )


def command(
    name: str, text: str | None, answers: Callable[..., list[Answer]], **options: int
) -> None:
    """A command line: whole numbers as options, with their defaults, that the answers take."""
    parser = argparse.ArgumentParser(description=(text or "").split("\n")[0])
    for option, default in options.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    arguments = parser.parse_args()
    machine = describe_machine()
    report(name, machine, answers(**vars(arguments)))
