"""DINOv3's rotary positions, without draws and without waiting for the host."""

from __future__ import annotations

import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3, make_coords_dinov3
from torch import Tensor, nn


class RotaryPositions(RotaryEmbeddingDinoV3):
    """Timm's layer, but for how it makes its grid.

    Timm makes it on the host and copies it in every pass, for which the host waits. And while some
    networks train, it stretches the grid by the next random numbers of the process, so that a
    resumed run would go on otherwise. Here it is made where it is used, and never stretched.
    """

    periods: Tensor

    def _create_embed(self, feat_shape: list[int], no_aug: bool = False) -> Tensor:
        """Sines and cosines (h w, 2 D) of a grid of [h, w] cells."""
        grid = make_coords_dinov3(
            *feat_shape,
            normalize_coords=self.normalize_coords,
            grid_indexing=self.grid_indexing,
            grid_offset=self.grid_offset,
            device=self.periods.device,
        )
        return torch.cat(self._get_pos_embed_from_coords(grid), dim=-1)


def take_over_positions(network: nn.Module) -> None:
    """Make the network's layers of DINOv3's positions ours."""
    for layer in network.modules():
        if isinstance(layer, RotaryEmbeddingDinoV3):
            layer.__class__ = RotaryPositions  # it keeps all that it was built with
