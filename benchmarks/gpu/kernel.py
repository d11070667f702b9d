"""The truncated CRF: which form runs, against float64 and against unfolding, with its time."""

from __future__ import annotations

import torch

from benchmarks.gpu.results import KERNEL, TIMES, guarded, put
from benchmarks.gpu.shared import DEVICE, ON_CARD, SMALL, milliseconds
from benchmarks.trucrf import BANDWIDTHS, gradient, problem
from ssda.method.trucrf import by_offsets, missing_for_kernel, truncated_crf_loss

SHAPES = (
    ((1, 1, 1, 1), 1),
    ((1, 5, 7, 1), 3),
    ((1, 19, 3, 65), 5),
    ((2, 2, 7, 70), 2),
    ((1, 33, 9, 63), 5),
    ((2, 19, 60, 128), 5),
    ((1, 150, 16, 40), 3),
)


def compare() -> None:
    """The largest relative difference of loss and gradient to those in float64, of all shapes."""
    worst = 0.0
    for shape, radius in SHAPES:
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for kind in (torch.float32, torch.float64):
            values, image, mask = problem(shape, device=DEVICE.type)
            values = values.detach().to(kind).requires_grad_()
            loss = truncated_crf_loss(values, image.to(kind), mask, radius=radius, **BANDWIDTHS)
            found.append((loss.detach(), torch.autograd.grad(loss, values)[0]))
        for single, double in zip(*found, strict=True):
            apart = (single.double() - double).abs().max() / double.abs().max().clamp_min(1e-9)
            worst = max(worst, float(apart))
    put("largest relative difference to float64", worst, "", f"{len(SHAPES)} shapes")


def times() -> None:
    """Forward and backward at a step's size, and the ways that it could be done."""
    shape = (2, 19, 16, 16) if SMALL else (2, 19, 256, 256)
    inputs = problem(shape, device=DEVICE.type)
    ours = milliseconds(lambda: gradient("ours", inputs, 5))
    put(KERNEL, ours, "ms", f"here {shape}" if SMALL else "")
    plain = milliseconds(lambda: by_offsets(inputs[0].detach(), *inputs[1:], 5, 3.0, 0.1))
    put("the plain form of it", plain, "ms")
    unfolded = milliseconds(lambda: gradient("usual", inputs, 5), 5)
    put(TIMES, unfolded / ours, "", f"unfolding takes {unfolded:.3g} ms")


def main() -> None:
    """Form, equality, time."""
    missing = missing_for_kernel() if ON_CARD else "no card"
    put("form that runs", "Triton" if missing is None else "plain", "", missing or "")
    guarded("largest relative difference to float64", compare)
    guarded(KERNEL, times)


if __name__ == "__main__":
    guarded("kernel", main)
