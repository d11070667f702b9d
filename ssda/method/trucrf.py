"""Structural adaptation (StrIA): seeds spread to like-coloured neighbours, within a window.

For a pixel a that is no seed and a seed b with |dx|, |dy| <= R and a != b:

    G(a, b) = exp(-|xy_a - xy_b|^2 / (2 sigma_xy^2) - |rgb_a - rgb_b|^2 / (2 sigma_rgb^2))
    L = sum_{a, b} (1 - m_a) m_b G(a, b) (1 - p_a . p_b) / max(1, sum_a (1 - m_a))

Truncating the field to a window makes it linear in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from subprocess import CalledProcessError
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TRITON_CAPABILITY = (8, 0)
"""Of a GPU, from which on Triton compiles for it."""


def truncated_crf_loss(
    probabilities: Tensor,
    image: Tensor,
    seed_mask: Tensor,
    *,
    radius: int,
    sigma_xy: float,
    sigma_rgb: float,
) -> Tensor:
    """The truncated conditional random field's energy with Potts compatibility.

    Args:
        probabilities: (N, C, H, W), a distribution over C for each pixel; gets the gradient.
        image: (N, 3, H, W) in [0, 1], at the size of the probabilities.
        seed_mask: (N, H, W) bool, m.
        radius: half width R of the window, >= 1.
        sigma_xy: spatial bandwidth in pixels.
        sigma_rgb: colour bandwidth on [0, 1].

    Returns:
        A scalar, >= 0.

    Raises:
        ValueError: shapes that do not agree.
    """
    count, _, height, width = probabilities.shape
    if image.shape != (count, 3, height, width) or seed_mask.shape != (count, height, width):
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} need an image {(count, 3, height, width)} "
            f"and a seed mask {(count, height, width)}, "
            f"not {tuple(image.shape)} and {tuple(seed_mask.shape)}"
        )
    loss: Any = _TruncatedCRF.apply(probabilities, image, seed_mask, radius, sigma_xy, sigma_rgb)
    return loss


class _TruncatedCRF(torch.autograd.Function):
    """Energy and closed-form gradient, from one pass.

    With the symmetric pair weights S = W + W^T, L = 1/2 sum_a (sum_b S_ab - p_a . (S p)_a) and
    dL/dp_a = -(S p)_a, so S p is all that is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        probabilities: Tensor,
        image: Tensor,
        seed_mask: Tensor,
        radius: int,
        sigma_xy: float,
        sigma_rgb: float,
    ) -> Tensor:
        precise = torch.promote_types(probabilities.dtype, torch.float32)
        form = by_offsets
        if probabilities.is_cuda and precise == torch.float32 and missing_for_kernel() is None:
            from ssda.method.trucrf_cuda import by_pixels as form
        energy, spread = form(
            probabilities.to(precise), image.to(precise), seed_mask, radius, sigma_xy, sigma_rgb
        )
        others = (~seed_mask).sum().clamp_min(1)
        ctx.save_for_backward(spread, others)
        ctx.dtype = probabilities.dtype
        return energy / others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        spread, others = ctx.saved_tensors
        return (-spread * (gradient / others)).to(ctx.dtype), None, None, None, None, None


def by_offsets(
    probabilities: Tensor,
    image: Tensor,
    seed_mask: Tensor,
    radius: int,
    sigma_xy: float,
    sigma_rgb: float,
) -> tuple[Tensor, Tensor]:
    """Energy sum_ab W_ab (1 - p_a . p_b) and S p (N, C, H, W): all pairs of one offset at a time.

    Every pair is met once, in half of the window. Arguments as `truncated_crf_loss`, of one type.
    """
    spread = torch.zeros_like(probabilities)
    total = probabilities.new_zeros(())  # sum W
    for here, there, distance in _half_window(probabilities.shape[-2:], radius):
        colour = (image[here] - image[there]).square().sum(1)
        weight = torch.exp(
            -colour / (2 * sigma_rgb**2) - distance / (2 * sigma_xy**2)
        ) * torch.logical_xor(seed_mask[here], seed_mask[there])
        total += weight.sum()
        spread[here].addcmul_(weight.unsqueeze(1), probabilities[there])
        spread[there].addcmul_(weight.unsqueeze(1), probabilities[here])
    return total - 0.5 * (probabilities * spread).sum(), spread


@cache
def missing_for_kernel() -> str | None:
    """What the Triton kernel lacks on this machine's GPU; None where it runs.

    It takes Triton, a card that Triton compiles for, and a C compiler, with which Triton builds
    what starts a kernel. A fault of the kernel itself is none of these: it is raised where it runs.
    """
    try:
        from triton.runtime import driver
    except ImportError:
        return "Triton is not installed"
    capability = torch.cuda.get_device_capability()
    if capability < TRITON_CAPABILITY:
        major, minor = capability
        return f"Triton takes a GPU of compute capability 8.0, this one has {major}.{minor}"
    try:
        driver.active  # noqa: B018 - builds it
    # No compiler, one that fails or is not there, no libcuda.so.
    except (RuntimeError, CalledProcessError, OSError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        return f"Triton cannot be started: {reason}"
    return None


def describe_form(device: torch.device) -> str:
    """Which form computes the loss on a device, and why, for a person."""
    if device.type != "cuda":
        return "plain form"
    missing = missing_for_kernel()
    return "Triton kernel" if missing is None else f"slower plain form ({missing})"


Region = tuple[EllipsisType, slice, slice]


def _half_window(size: torch.Size, radius: int) -> Iterator[tuple[Region, Region, float]]:
    """Every unordered pair of positions once: overlapping regions and their squared distance."""
    height, width = size
    for dy in range(min(radius, height - 1) + 1):
        for dx in range(-radius, radius + 1):
            if (dy == 0 and dx <= 0) or abs(dx) >= width:
                continue
            left, right = max(0, -dx), width - max(0, dx)
            here = (..., slice(0, height - dy), slice(left, right))
            there = (..., slice(dy, height), slice(left + dx, right + dx))
            yield here, there, float(dx * dx + dy * dy)
