"""Windows of an image: the detail crops of two resolutions (HRDA) and sliding evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssda.networks.heads import enlarge

Corner = tuple[int, int]
"""(y, x) of a window's upper left pixel."""


def draw_corners(
    size: tuple[int, ...], window: tuple[int, int], grid: int, generators: list[np.random.Generator]
) -> list[Corner]:
    """A random window (height, width) inside each image of `size`, at multiples of `grid` px."""
    ranges = [(side - part) // grid + 1 for side, part in zip(size, window, strict=True)]
    return [
        (grid * int(r.integers(ranges[0])), grid * int(r.integers(ranges[1]))) for r in generators
    ]


def cut(values: Tensor, corners: list[Corner], window: tuple[int, int]) -> Tensor:
    """The window (height, width) of each of (N, ..., H, W) at its corner, (N, ..., *window)."""
    height, width = window
    return torch.stack(
        [
            value[..., y : y + height, x : x + width]
            for value, (y, x) in zip(values, corners, strict=True)
        ]
    )


def window_corners(
    size: tuple[int, ...], window: tuple[int, int], step: tuple[int, int]
) -> list[Corner]:
    """Corners of windows that cover an image of `size`; the last ones end at its rims."""
    starts = [
        [*range(0, side - part, stride), side - part]
        for side, part, stride in zip(size, window, step, strict=True)
    ]
    return [(y, x) for y in starts[0] for x in starts[1]]


def slide(
    images: Tensor,
    window: tuple[int, int],
    step: tuple[int, int],
    per_pass: int,
    see: Callable[[Tensor], Tensor],
) -> Tensor:
    """Predictions of overlapping windows, averaged where they overlap.

    Args:
        images: (N, 3, H, W).
        window: (height, width) of a window, no larger than the image.
        step: pixels from window to window, (down, across).
        per_pass: windows of each image in one call of `see`.
        see: (P N, 3, *window) to (K, P N, C, h, w), window after window.

    Returns:
        (K, N, C, H / s, W / s), with the stride s of the predictions.
    """
    corners = window_corners(images.shape[-2:], window, step)
    total = counts = torch.zeros(())
    for start in range(0, len(corners), per_pass):
        some = corners[start : start + per_pass]
        parts = [images[..., y : y + window[0], x : x + window[1]] for y, x in some]
        predictions = see(torch.cat(parts)).chunk(len(some), dim=1)
        stride = window[0] // predictions[0].shape[-2]
        if start == 0:
            size = [side // stride for side in images.shape[-2:]]
            total = predictions[0].new_zeros(*predictions[0].shape[:-2], *size)
            counts = predictions[0].new_zeros(size)
        for (y, x), prediction in zip(some, predictions, strict=True):
            place = (
                ...,
                slice(y // stride, y // stride + prediction.shape[-2]),
                slice(x // stride, x // stride + prediction.shape[-1]),
            )
            total[place] += prediction
            counts[place] += 1
    return total.div_(counts)


def fuse(
    low: Tensor, high: Tensor, attention: Tensor, corners: list[Corner] | None = None
) -> Tensor:
    """Logits of two resolutions as one: up((1 - A) low) + up(A) high (HRDA, equation 7 on).

    Args:
        low: (K, N, C, h, w) of the context, K passes.
        high: of the details: (K, N, C, 2h, 2w), or those of one crop for each image.
        attention: (N, C, h, w) in [0, 1], A: how much the details count.
        corners: of the crops, in cells of the fine grid and even; outside of its crop A is 0.

    Returns:
        (K, N, C, 2h, 2w).
    """
    fine = (2 * low.shape[-2], 2 * low.shape[-1])
    if corners is not None:
        height, width = high.shape[-2:]
        inside = torch.zeros_like(attention[:, 0])
        placed = high.new_zeros(*high.shape[:-2], *fine)
        for i, (y, x) in enumerate(corners):
            inside[i, y // 2 : (y + height) // 2, x // 2 : (x + width) // 2] = 1
            placed[:, i, :, y : y + height, x : x + width] = high[:, i]
        attention, high = attention * inside.unsqueeze(1), placed
    context = enlarge(((1 - attention) * low).flatten(0, 1), fine).view(high.shape)
    return context + enlarge(attention, fine) * high


def halve(images: Tensor) -> Tensor:
    """Images (N, C, H, W) at half their size: the mean of every 2 x 2 pixels."""
    return functional.avg_pool2d(images, 2)


def pad_to(images: Tensor, multiple: int, least: int) -> Tensor:
    """Images (N, C, H, W) continued at the right and the bottom.

    Until both sides are multiples, and no smaller than `least`, which is one as well.
    """
    bottom, right = (max(-side % multiple, least - side) for side in images.shape[-2:])
    if right == bottom == 0:
        return images
    return functional.pad(images, (0, right, 0, bottom), mode="replicate")
