"""How much faster and smaller is the truncated CRF than unfolding every window?

Forward and backward, both ways in turn in one process; peak memory in a process of its own each.

    python -m benchmarks.trucrf
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import Answer, apart, describe_machine, interleave, peak_gib, ratio, report
from benchmarks.usual import unfolded_crf_loss
from ssda.method.trucrf import truncated_crf_loss

Shape = tuple[int, int, int, int]
Inputs = tuple[Tensor, Tensor, Tensor]
WAYS: dict[str, Callable[..., Tensor]] = {"usual": unfolded_crf_loss, "ours": truncated_crf_loss}
BANDWIDTHS = {"sigma_xy": 3.0, "sigma_rgb": 0.1}


def problem(shape: Shape, seeds: float = 0.4, device: str = "cpu") -> Inputs:
    """Probabilities, image and a mask with a share of seeds."""
    generator = torch.Generator().manual_seed(0)
    count, _, height, width = shape
    probabilities = torch.randn(shape, generator=generator).softmax(1).to(device).requires_grad_()
    image = torch.rand(count, 3, height, width, generator=generator).to(device)
    mask = torch.rand(count, height, width, generator=generator) < seeds
    return probabilities, image, mask.to(device)


def gradient(way: str, inputs: Inputs, radius: int) -> Tensor:
    """Forward and backward."""
    loss = WAYS[way](*inputs, radius=radius, **BANDWIDTHS)
    return torch.autograd.grad(loss, inputs[0])[0]


def compare_time(
    shape: Shape,
    radius: int,
    seeds: float,
    rounds: int,
    device: str = "cpu",
    bar: float | None = None,
) -> Answer:
    """Seconds of both ways, and how far their gradients are apart."""
    inputs = problem(shape, seeds, device)
    usual, ours = (gradient(way, inputs, radius) for way in WAYS)
    difference = float((usual - ours).abs().max() / usual.abs().max())
    seconds = interleave(
        {way: lambda way=way: gradient(way, inputs, radius) for way in WAYS}, rounds
    )
    return ratio(
        f"truncated CRF on {device}, {' x '.join(map(str, shape))}, radius {radius}, "
        f"{seeds:.0%} seeds, forward and backward",
        seconds,
        ("usual", "ours"),
        "times as fast",
        bar,
        at_most=False,
        details={"largest_relative_difference_of_gradients": difference},
    )


def compare_memory(shape: Shape, radius: int) -> Answer:
    """MiB that forward and backward need beyond their inputs, in a fresh process each."""
    peak = {way: apart(grown_mib, way, shape, radius) for way in WAYS}
    return Answer(
        f"memory of the truncated CRF, {' x '.join(map(str, shape))}, radius {radius}",
        peak["usual"] / max(peak["ours"], 1.0),
        "times less",
        bar=10.0,
        at_most=False,
        details={"mib": {way: round(value, 1) for way, value in peak.items()}},
    )


def grown_mib(way: str, shape: Shape, radius: int) -> float:
    """What this process needs beyond the inputs."""
    gradient(way, problem((1, 2, 8, 8)), radius)
    inputs = problem(shape)
    before = peak_gib()
    gradient(way, inputs, radius)
    return 1024 * (peak_gib() - before)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=4, default=[2, 19, 128, 256])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    machine = describe_machine()
    count, classes, height, width = arguments.shape
    shape = (count, classes, height, width)
    cases = {(5, 0.4): 30.0, (5, 0.25): 30.0, (5, 0.5): 30.0}
    cases |= {(1, 0.4): None, (3, 0.4): None, (7, 0.4): None}
    answers = [compare_time(shape, *case, arguments.rounds, bar=bar) for case, bar in cases.items()]
    answers.append(compare_memory(shape, 5))
    if torch.cuda.is_available():
        answers.append(compare_time(shape, 5, 0.4, 4 * arguments.rounds, "cuda", bar=10.0))
    report("trucrf", machine, answers)


if __name__ == "__main__":
    main()
