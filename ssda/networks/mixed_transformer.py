"""Mixed transformers (MiT; SegFormer, Xie et al., NeurIPS 2021) of segmentation-models-pytorch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssda.networks.stochastic_depth import StochasticDepth
from ssda.params import Model


class MixedTransformer(nn.Module):
    """The network, with attention that holds no map of all pairs and depth drawn by sample.

    Attributes:
        channels: channels of the four maps.
    """

    def __init__(self, model: Model) -> None:
        """A network without weights; ValueError where the package is missing."""
        super().__init__()
        if find_spec("segmentation_models_pytorch") is None:
            raise ValueError(
                f"model.encoder = {model.encoder!r}: needs segmentation-models-pytorch; "
                "pip install '.[mit]'"
            )
        from segmentation_models_pytorch.encoders import get_encoder

        with torch.device("cpu"):  # its rates are read off a tensor, which has none on meta
            self.network: Any = get_encoder(model.encoder, weights=None)
            self.network.reset_drop_path(model.drop_path)
        self.channels: list[int] = self.network.out_channels[-4:]
        for stage in ("block1", "block2", "block3", "block4"):
            blocks = [Block(block) for block in getattr(self.network, stage)]
            setattr(self.network, stage, nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of strides 4, 8, 16 and 32 of normalised images (N, 3, H, W)."""
        return self.network(images)[-4:]


class Block(nn.Module):
    """A transformer's block made of the layers of another, under their names."""

    def __init__(self, plain: Any) -> None:
        """A block with the layers and rates of `plain`."""
        super().__init__()
        self.norm1 = plain.norm1
        self.attn = Attention(plain.attn)
        self.norm2 = plain.norm2
        self.mlp = plain.mlp
        # One each: a sample may skip the attention and not the perceptron.
        self.depth1, self.depth2 = (_depth(plain.drop_path.drop_prob) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) of (N, C, H, W)."""
        size = (maps.shape[-2], maps.shape[-1])
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = tokens + self.depth1(self.attn(self.norm1(tokens), *size))
        tokens = tokens + self.depth2(self.mlp(self.norm2(tokens), *size))
        return tokens.transpose(1, 2).reshape(maps.shape)


class Attention(nn.Module):
    """Attention of all places to fewer, pooled by a convolution, made of another's layers."""

    def __init__(self, plain: Any) -> None:
        """An attention with the layers and rates of `plain`."""
        super().__init__()
        self.heads: int = plain.num_heads
        self.scale: float = plain.scale
        self.pools: bool = plain.sr_ratio > 1
        self.q, self.kv, self.proj = plain.q, plain.kv, plain.proj
        self.sr, self.norm = plain.sr, plain.norm
        self.attn_drop, self.proj_drop = plain.attn_drop, plain.proj_drop

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(N, H W, C) of (N, H W, C)."""
        seen = tokens
        if self.pools:
            pooled = self.sr(tokens.transpose(1, 2).unflatten(2, (height, width)))
            seen = self.norm(pooled.flatten(2).transpose(1, 2))
        query = self.q(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(seen).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            scale=self.scale,
        )
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


def _depth(rate: float) -> nn.Module:
    return StochasticDepth(rate) if rate > 0 else nn.Identity()
