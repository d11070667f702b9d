"""How much faster and smaller is the truncated CRF than unfolding every window?

Forward and backward, both ways in turn in one process; peak memory in a process of its own each.

    python -m benchmarks.trucrf
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Comparison, interleave, peak_mib, report
from benchmarks.usual import unfolded_crf_loss
from ssda.method.trucrf import truncated_crf_loss

Shape = tuple[int, int, int, int]
WAYS: dict[str, Callable[..., Tensor]] = {"usual": unfolded_crf_loss, "ours": truncated_crf_loss}
SETTINGS = {"radius": 5, "sigma_xy": 3.0, "sigma_rgb": 0.1}
MEMORY_BAR = 10.0


def problem(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, image and a mask with 40 % seeds."""
    generator = torch.Generator().manual_seed(0)
    count, _, height, width = shape
    probabilities = torch.randn(shape, generator=generator).softmax(1).requires_grad_()
    image = torch.rand(count, 3, height, width, generator=generator)
    return probabilities, image, torch.rand(count, height, width, generator=generator) < 0.4


def gradient(way: str, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Forward and backward."""
    return torch.autograd.grad(WAYS[way](*inputs, **SETTINGS), inputs[0])[0]


def peak_memory(way: str, shape: Shape) -> float:
    """MiB that forward and backward need beyond their inputs, in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (way, shape))


def _grown(way: str, shape: Shape) -> float:
    gradient(way, problem((1, 2, 8, 8)))
    inputs = problem(shape)
    before = peak_mib()
    gradient(way, inputs)
    return peak_mib() - before


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=4, default=[2, 19, 128, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trucrf.json"))
    arguments = parser.parse_args()
    count, classes, height, width = arguments.shape
    shape = (count, classes, height, width)
    inputs = problem(shape)
    usual, ours = (gradient(way, inputs) for way in WAYS)
    difference = float((usual - ours).abs().max() / usual.abs().max())
    seconds = interleave(
        {way: lambda way=way: gradient(way, inputs) for way in WAYS}, arguments.rounds
    )
    memory = {way: round(peak_memory(way, shape), 1) for way in WAYS}
    faster = Comparison(
        f"truncated CRF at {shape}, radius 5, forward and backward",
        seconds,
        ("usual", "ours"),
        bar=30.0,
        at_most=False,
    )
    smaller = memory["usual"] / max(memory["ours"], 1.0)
    extra = {"peak_mib": memory, "largest_relative_difference_of_gradients": difference}
    report([faster], arguments.out, extra)
    print(f"\npeak MiB {memory}: {smaller:.0f} times less (bar {MEMORY_BAR:.0f})")
    print(f"gradients differ by {difference:.1e} of the largest")


if __name__ == "__main__":
    main()
