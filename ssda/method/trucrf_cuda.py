"""The truncated CRF on CUDA, in Triton: a program a tile of pixels, each gathering its window.

No atomic operation is needed, so that results are the same from run to run.
"""

# Triton's own types are not complete.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
"""Neighbouring pixels of a row that one program computes."""
BLOCK = 32
"""Classes that one program computes, at most: with more of them registers run out."""


def by_pixels(
    probabilities: Tensor,
    image: Tensor,
    seed_mask: Tensor,
    radius: int,
    sigma_xy: float,
    sigma_rgb: float,
) -> tuple[Tensor, Tensor]:
    """As ssda.method.trucrf.by_offsets, for float32."""
    count, classes, height, width = probabilities.shape
    spread = torch.empty_like(probabilities, memory_format=torch.contiguous_format)
    channels = min(BLOCK, triton.next_power_of_2(classes))
    blocks = triton.cdiv(classes, channels)
    grid = (triton.cdiv(width, TILE), height, count * blocks)
    energies = probabilities.new_empty(grid)
    _gather[grid](
        probabilities.contiguous(),
        image.contiguous(),
        seed_mask.contiguous().view(torch.uint8),
        spread,
        energies,
        height,
        width,
        1 / (2 * sigma_xy**2),
        1 / (2 * sigma_rgb**2),
        RADIUS=radius,
        CLASSES=classes,
        CHANNELS=channels,
        TILE=TILE,
    )
    return energies.sum(), spread


@triton.jit(do_not_specialize=["height", "width"])
def _gather(
    probabilities,
    image,
    seeds,
    spread,
    energies,
    height,
    width,
    by_distance,
    by_colour,
    RADIUS: tl.constexpr,
    CLASSES: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Half of each pixel's energy, summed over a tile, and S p; of a block of classes."""
    tile, y, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks = tl.cdiv(CLASSES, CHANNELS)
    n = block // blocks
    first = block % blocks * CHANNELS
    size = (height * width).to(tl.int64)
    x = tile * TILE + tl.arange(0, TILE)
    inside = x < width
    c = first + tl.arange(0, CHANNELS)[:, None]
    here = y * width + x
    colours = image + n * 3 * size
    red = tl.load(colours + here, inside, 0.0)
    green = tl.load(colours + size + here, inside, 0.0)
    blue = tl.load(colours + 2 * size + here, inside, 0.0)
    seed = tl.load(seeds + n * size + here, inside, 0)
    total = tl.zeros((TILE,), tl.float32)
    gathered = tl.zeros((CHANNELS, TILE), tl.float32)
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            there = here + dy * width + dx
            valid = inside & (x + dx >= 0) & (x + dx < width) & (y + dy >= 0) & (y + dy < height)
            # Exactly one of a pair is a seed; so a pixel is no neighbour of its own.
            valid &= tl.load(seeds + n * size + there, valid, 0) != seed
            to_red = red - tl.load(colours + there, valid, 0.0)
            to_green = green - tl.load(colours + size + there, valid, 0.0)
            to_blue = blue - tl.load(colours + 2 * size + there, valid, 0.0)
            colour = to_red * to_red + to_green * to_green + to_blue * to_blue
            weight = tl.exp(-colour * by_colour - (dx * dx + dy * dy) * by_distance)
            weight = tl.where(valid, weight, 0.0)
            values = tl.load(
                probabilities + (n * CLASSES + c) * size + there[None, :],
                (c < CLASSES) & valid[None, :],
                0.0,
            )
            total += weight
            gathered += weight[None, :] * values
    place = (n * CLASSES + c) * size + here[None, :]
    wanted = (c < CLASSES) & inside[None, :]
    own = tl.load(probabilities + place, wanted, 0.0)
    tl.store(spread + place, gathered, wanted)
    pairs = tl.where(first == 0, tl.sum(total), 0.0)
    energy = 0.5 * (pairs - tl.sum(own * gathered))
    tl.store(energies + (tile * height + y) * tl.num_programs(2) + block, energy)
