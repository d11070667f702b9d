"""How much faster and smaller is the truncated CRF than unfolding every window?

Forward and backward, both ways in turn in one process; medians of several rounds; peak memory in a
process of its own for each way.

    python -m benchmarks.trucrf
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe_machine
from benchmarks.usual import unfolded_crf_loss
from ssda.files import write_json
from ssda.method.trucrf import truncated_crf_loss

WAYS: dict[str, Callable[..., Tensor]] = {"ours": truncated_crf_loss, "usual": unfolded_crf_loss}
SETTINGS = {"radius": 5, "sigma_xy": 3.0, "sigma_rgb": 0.1}


def problem(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, image and a mask with 40 % seeds."""
    generator = torch.Generator().manual_seed(0)
    count, _, height, width = shape
    probabilities = torch.randn(shape, generator=generator).softmax(1).requires_grad_()
    image = torch.rand(count, 3, height, width, generator=generator)
    return probabilities, image, torch.rand(count, height, width, generator=generator) < 0.4


def once(way: str, shape: tuple[int, int, int, int]) -> tuple[float, float, Tensor]:
    """Seconds of a forward and backward pass, the loss, its gradient."""
    probabilities, image, seeds = problem(shape)
    started = time.perf_counter()
    loss = WAYS[way](probabilities, image, seeds, **SETTINGS)
    (gradient,) = torch.autograd.grad(loss, probabilities)
    return time.perf_counter() - started, float(loss), gradient


def peak_memory(way: str, shape: tuple[int, int, int, int]) -> float:
    """MiB that one pass needs beyond its inputs, in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (way, shape))


def _grown(way: str, shape: tuple[int, int, int, int]) -> float:
    once(way, (1, 2, 8, 8))
    problem(shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    once(way, shape)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=4, default=[2, 19, 128, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trucrf.json"))
    arguments = parser.parse_args()
    count, classes, height, width = arguments.shape
    shape = (count, classes, height, width)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:
        once(way, shape)  # warm-up
    results: dict[str, tuple[float, float, Tensor]] = {}
    for _ in range(arguments.rounds):
        for way in WAYS:
            results[way] = once(way, shape)
            seconds[way].append(results[way][0])
    difference = (results["ours"][2] - results["usual"][2]).abs().max()
    relative = float(difference / results["usual"][2].abs().max())
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    memory = {way: peak_memory(way, shape) for way in WAYS}
    content: dict[str, Any] = {
        "question": "truncated CRF, forward and backward, against unfolding every window",
        "machine": describe_machine(),
        "shape": shape,
        **SETTINGS,
        "seconds": {way: sorted(round(s, 4) for s in values) for way, values in seconds.items()},
        "faster": round(medians["usual"] / medians["ours"], 1),
        "peak_mib": {way: round(value, 1) for way, value in memory.items()},
        "less_memory": round(memory["usual"] / max(memory["ours"], 1.0), 1),
        "largest_relative_difference_of_gradients": relative,
    }
    write_json(arguments.out, content)
    print("| way | median s | fastest to slowest | peak MiB |\n| --- | --- | --- | --- |")
    for way, values in content["seconds"].items():
        spread = f"{values[0]} to {values[-1]}"
        print(f"| {way} | {medians[way]:.4f} | {spread} | {content['peak_mib'][way]} |")
    print(
        f"\n{content['faster']} times faster (bar 30), {content['less_memory']} times less memory "
        f"(bar 10), gradients differ by {relative:.1e} of the largest"
    )


if __name__ == "__main__":
    main()
