"""Class mixing (ClassMix, DACS): half of a source image's classes pasted onto a target image."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import rgb_to_grayscale

from ssda.labels import IGNORE
from ssda.params import Augmentation, Masking
from ssda.tensors import on_device


def paste_mask(labels: Tensor, generators: list[np.random.Generator]) -> Tensor:
    """Where source pixels are pasted: half (rounded up) of the classes of each image.

    Only the device knows the classes; so the draw is an order of all there may be, and the first
    half of those present is taken.

    Args:
        labels: (N, H, W) int64 source labels; IGNORE is no class.
        generators: one an image.

    Returns:
        (N, H, W) bool.
    """
    pixels = labels.flatten(1)
    order = on_device(np.stack([rng.permutation(IGNORE) for rng in generators]), labels.device)
    present = torch.zeros(len(pixels), IGNORE + 1, dtype=torch.bool, device=labels.device)
    ordered = present.scatter(1, pixels, True).gather(1, order)
    number = ordered.cumsum(1)
    first_half = ordered & (number <= (number[:, -1:] + 1) // 2)
    return present.scatter(1, order, first_half).gather(1, pixels).view(labels.shape)


def mix(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Source where the mask (N, H, W) is True, else target; both (N, H, W) or (N, 3, H, W)."""
    return torch.where(mask.unsqueeze(1) if source.dim() == 4 else mask, source, target)


def jitter(images: Tensor, settings: Augmentation, generators: list[np.random.Generator]) -> Tensor:
    """Colour jitter of each image with its own draw: brightness, contrast, saturation and hue.

    Args:
        images: (N, 3, H, W) in [0, 1].
        settings: strength and probability.
        generators: one an image.
    """
    strength = settings.jitter_strength
    drawn = np.array([[*rng.uniform(-strength, strength, 4), rng.random()] for rng in generators])
    if not (drawn[:, 4] < settings.jitter_probability).any():
        return images
    factors = on_device(drawn.astype(np.float32), images.device).view(-1, 5, 1, 1, 1)
    brightness, contrast, saturation, hue, chance = factors.unbind(1)
    jittered = (images * (1 + brightness)).clamp(0, 1)
    mean = rgb_to_grayscale(jittered).mean((2, 3), keepdim=True)
    jittered = mean.lerp(jittered, 1 + contrast).clamp(0, 1)
    jittered = rgb_to_grayscale(jittered).lerp(jittered, 1 + saturation).clamp(0, 1)
    return torch.where(chance < settings.jitter_probability, turn_hue(jittered, hue), images)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] with their hues moved along the circle of colours.

    Args:
        images: hue, chroma and value are those of HSV.
        turns: (N, 1, 1, 1), in whole turns.
    """
    red, green, blue = images.split(1, dim=1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    is_red, is_green = value == red, value == green
    slope = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    sixths = slope.div_(chroma.clamp_min(torch.finfo(images.dtype).tiny)).add_(6 * turns)
    sixths.add_(torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0)))
    offsets = torch.arange(3, -2, -2, device=images.device).view(3, 1, 1)
    # How far the hue is from the one at which the channel is smallest, of its chroma without it.
    distance = (sixths + offsets + 2).remainder_(6).sub_(2).abs_()
    return value - chroma * (2 - distance).clamp_(0, 1)


def blur(images: Tensor, settings: Augmentation, generators: list[np.random.Generator]) -> Tensor:
    """Gaussian blur of each image with its own draw.

    Args:
        images: (N, 3, H, W), both sides longer than three times the largest sigma.
        settings: range of sigma in pixels, probability.
        generators: one an image.
    """
    reach = math.ceil(3 * settings.blur_sigma[1])
    offsets = np.arange(-reach, reach + 1)
    sigmas = np.array([rng.uniform(*settings.blur_sigma) for rng in generators])
    chosen = np.array([rng.random() < settings.blur_probability for rng in generators])
    if not chosen.any():
        return images
    bells = np.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    kernels = np.where(chosen[:, None], bells / bells.sum(1, keepdims=True), offsets == 0)
    weights = on_device(kernels.repeat(3, 0).astype(np.float32), images.device)
    planes = functional.pad(images, [reach] * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    for shape in ((-1, 1, 2 * reach + 1, 1), (-1, 1, 1, 2 * reach + 1)):
        planes = functional.conv2d(planes, weights.view(shape), groups=len(weights))
    return planes.view(images.shape)


def transfer_colours(
    images: Tensor, others: Tensor, share: float, generators: list[np.random.Generator]
) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], some with the colours of another (Reinhard et al., 2001).

    Mean and standard deviation of each channel of RGB become those of the other image at the same
    place.

    Args:
        images: to be changed.
        others: (N, 3, h, w), whose colours are taken.
        share: of images that are changed.
        generators: one an image.
    """
    if share == 0:
        return images
    chosen = np.array([rng.random() < share for rng in generators])
    (deviation, mean), (other_deviation, other_mean) = (
        torch.std_mean(values, (2, 3), keepdim=True) for values in (images, others)
    )
    factor = other_deviation / deviation.clamp_min(1e-3)
    changed = ((images - mean) * factor + other_mean).clamp(0, 1)
    return torch.where(on_device(chosen, images.device).view(-1, 1, 1, 1), changed, images)


def augment(
    images: Tensor, settings: Augmentation, generators: list[np.random.Generator]
) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], jittered, then blurred, each by its own draw."""
    return blur(jitter(images, settings, generators), settings, generators)


def mask_blocks(
    images: Tensor, fill: Tensor, settings: Masking, generators: list[np.random.Generator]
) -> Tensor:
    """Images (N, 3, H, W) with random squares replaced by a colour (MIC, Hoyer et al., CVPR 2023).

    Args:
        images: (N, 3, H, W).
        fill: (1, 3, 1, 1), the colour that the network normalises to 0.
        settings: side of the squares, share that is masked.
        generators: one an image.
    """
    height, width = images.shape[-2:]
    block = settings.block
    grid = (-(-height // block), -(-width // block))
    drawn = np.stack([rng.random(grid) < settings.ratio for rng in generators])
    masked = on_device(drawn, images.device)[:, None, :, None, :, None]
    masked = masked.expand(-1, 1, -1, block, -1, block).flatten(4, 5).flatten(2, 3)
    return torch.where(masked[..., :height, :width], fill, images)
