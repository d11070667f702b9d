"""Class mixing (ClassMix, DACS): half of a source image's classes pasted onto a target image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ssda.labels import IGNORE
from ssda.params import Augmentation, Masking


def paste_mask(labels: Tensor, generators: list[np.random.Generator]) -> Tensor:
    """Where source pixels are pasted: half (rounded up) of the classes of each image.

    Args:
        labels: (N, H, W) int64 source labels; IGNORE is no class.
        generators: one an image.

    Returns:
        (N, H, W) bool.
    """
    masks: list[Tensor] = []
    for label, rng in zip(labels, generators, strict=True):
        classes = torch.unique(label)
        classes = classes[classes != IGNORE].cpu().numpy()
        chosen = rng.choice(classes, size=(len(classes) + 1) // 2, replace=False)
        masks.append(torch.isin(label, torch.from_numpy(chosen).to(label.device)))
    return torch.stack(masks)


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
    jittered: list[Tensor] = []
    for image, rng in zip(images, generators, strict=True):
        strength = settings.jitter_strength
        brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
        hue = rng.uniform(-strength, strength)
        if rng.random() < settings.jitter_probability:
            image = transforms.adjust_brightness(image, float(brightness))
            image = transforms.adjust_contrast(image, float(contrast))
            image = transforms.adjust_saturation(image, float(saturation))
            image = transforms.adjust_hue(image, float(hue))
        jittered.append(image)
    return torch.stack(jittered)


def blur(images: Tensor, settings: Augmentation, generators: list[np.random.Generator]) -> Tensor:
    """Gaussian blur of each image with its own draw; images (N, 3, H, W)."""
    blurred: list[Tensor] = []
    for image, rng in zip(images, generators, strict=True):
        sigma = float(rng.uniform(*settings.blur_sigma))
        if rng.random() < settings.blur_probability:
            kernel = 2 * int(np.ceil(3 * sigma)) + 1
            image = transforms.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
        blurred.append(image)
    return torch.stack(blurred)


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
    masked = torch.from_numpy(drawn).repeat_interleave(block, 1).repeat_interleave(block, 2)
    return torch.where(masked[:, None, :height, :width].to(images.device), fill, images)
