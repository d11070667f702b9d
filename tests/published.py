"""Networks of DAFormer, HRDA, MIC and SSDA in plain PyTorch, by their published structure.

Nothing of this project is in them: names and numbers of their tensors are those of the released
files, so that `state_dict` is what such a file holds.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(x, size=size[-2:], mode="bilinear", align_corners=False)


class ConvBN(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, rate: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = rate * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, 1, padding, rate, groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(
            planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        if inputs != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + shortcut).relu()


class ResNetV1c(nn.Module):
    """Deep stem, stages 3 and 4 dilated by 2 and 4, their first blocks by 1 and 2."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        inputs = 64
        for i, (count, stride, dilation) in enumerate(
            zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        ):
            planes = 64 * 2**i
            stage = [Bottleneck(inputs, planes, stride, max(1, dilation // 2))]
            stage += [Bottleneck(4 * planes, planes, 1, dilation) for _ in range(count - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            inputs = 4 * planes

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [functional.max_pool2d(self.stem(x), 3, 2, 1)]
        for i in range(1, 5):
            maps.append(getattr(self, f"layer{i}")(maps[-1]))
        return maps[1:]


class PatchEmbedding(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(outputs)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, pool: int) -> None:
        super().__init__()
        self.heads, self.pool = heads, pool
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if pool > 1:
            self.sr = nn.Conv2d(width, width, pool, pool)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        count, places, channels = x.shape
        seen = x
        if self.pool > 1:
            seen = self.sr(x.transpose(1, 2).reshape(count, channels, height, width))
            seen = self.norm(seen.flatten(2).transpose(1, 2))
        shape = (count, -1, self.heads, channels // self.heads)
        query = self.q(x).reshape(shape).transpose(1, 2)
        key, value = (part.reshape(shape).transpose(1, 2) for part in self.kv(seen).chunk(2, -1))
        scores = query @ key.transpose(-2, -1) * (channels // self.heads) ** -0.5
        mixed = scores.softmax(-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(count, places, channels))


class DepthwiseConvolution(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)


class Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = DepthwiseConvolution(4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.fc1(x).transpose(1, 2)
        x = self.dwconv.dwconv(x.unflatten(2, (height, width))).flatten(2).transpose(1, 2)
        return self.fc2(functional.gelu(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, pool: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, pool)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron(width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attn(self.norm1(x), height, width)
        return x + self.mlp(self.norm2(x), height, width)


class MixTransformer(nn.Module):
    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = [width, 2 * width, 5 * width, 8 * width]
        for i, (count, inputs, outputs) in enumerate(
            zip(blocks, [3, *self.widths], self.widths, strict=False), 1
        ):
            embedding = PatchEmbedding(inputs, outputs, 7 if i == 1 else 3, 4 if i == 1 else 2)
            setattr(self, f"patch_embed{i}", embedding)
            heads, pool = (1, 2, 5, 8)[i - 1], (8, 4, 2, 1)[i - 1]
            stage = nn.ModuleList(Block(outputs, heads, pool) for _ in range(count))
            setattr(self, f"block{i}", stage)
            setattr(self, f"norm{i}", nn.LayerNorm(outputs, eps=1e-6))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for i in range(1, 5):
            embedding = getattr(self, f"patch_embed{i}")
            x = embedding.proj(x)
            size = (x.shape[2], x.shape[3])
            x = embedding.norm(x.flatten(2).transpose(1, 2))
            for block in getattr(self, f"block{i}"):
                x = block(x, *size)
            x = getattr(self, f"norm{i}")(x).transpose(1, 2).unflatten(2, size)
            maps.append(x)
        return maps


class ConvBias(nn.Module):
    def __init__(self, inputs: int, outputs: int, rate: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)


class DeepLabV2(nn.Module):
    stride = 8

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(ConvBias(2048, classes, rate) for rate in (6, 12))

    def forward(self, maps: list[Tensor]) -> Tensor:
        first, second = cast("list[Any]", self.aspp_modules)
        return first.conv(maps[-1]) + second.conv(maps[-1])


class Embedding(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)


class Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int, rate: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvBN(inputs, inputs, 3, rate, groups=inputs)
        self.pointwise_conv = ConvBN(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class Pyramid(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            [ConvBN(inputs, width, 1), *(Separable(inputs, width, rate) for rate in (6, 12, 18))]
        )
        self.bottleneck = ConvBN(4 * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bottleneck(torch.cat([branch(x) for branch in self.aspp_modules], 1))


class DAFormerHead(nn.Module):
    stride = 4

    def __init__(self, widths: list[int], classes: int, pyramid: bool) -> None:
        super().__init__()
        self.embed_layers = nn.ModuleDict({f"{i}": Embedding(w, 256) for i, w in enumerate(widths)})
        self.fuse_layer = Pyramid(1024, 256) if pyramid else ConvBN(1024, 256, 1)
        self.conv_seg = nn.Conv2d(256, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        stages: list[Tensor] = []
        for layer, x in zip(cast("list[Any]", self.embed_layers.values()), maps, strict=True):
            tokens = layer.proj(x.flatten(2).transpose(1, 2))
            stages.append(resize(tokens.transpose(1, 2).unflatten(2, x.shape[2:]), maps[0].shape))
        return self.conv_seg(self.fuse_layer(torch.cat(stages, 1)))


class TwoResolutions(nn.Module):
    def __init__(self, head: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.head, self.scale_attention = head, attention


class Segmenter(nn.Module):
    """Backbone and head; with a window, HRDA's two resolutions and its sliding details."""

    def __init__(
        self, backbone: nn.Module, head: Callable[[], nn.Module], attention: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stride = int(head().stride)  # pyright: ignore[reportArgumentType]
        self.decode_head = head() if attention is None else TwoResolutions(head(), attention)
        self.window: tuple[int, int] | None = None
        """(height, width) of the windows of details."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 255]."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        x = (images - mean) / std
        if not isinstance(self.decode_head, TwoResolutions):
            return self.decode_head(self.backbone(x))
        assert self.window is not None
        half = functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        context = self.backbone(half)
        low = self.decode_head.head(context)
        attention = self.decode_head.scale_attention(context).sigmoid()
        size = (2 * low.shape[2], 2 * low.shape[3])
        total, counts = torch.zeros(*low.shape[:2], *size), torch.zeros(size)
        height, width = (min(side, x.shape[i]) for i, side in zip((2, 3), self.window, strict=True))
        steps = (height // 2, width // 2)
        for row in range(max(0, -(-(x.shape[2] - height) // steps[0])) + 1):
            for column in range(max(0, -(-(x.shape[3] - width) // steps[1])) + 1):
                top = min(row * steps[0], x.shape[2] - height)
                left = min(column * steps[1], x.shape[3] - width)
                crop = x[..., top : top + height, left : left + width]
                logits = self.decode_head.head(self.backbone(crop))
                y, z = top // self.stride, left // self.stride
                place = (slice(y, y + logits.shape[2]), slice(z, z + logits.shape[3]))
                total[..., place[0], place[1]] += logits
                counts[place] += 1
        attention_up = resize(attention, size)
        return attention_up * total / counts + resize((1 - attention) * low, size)


def deeplab(blocks: tuple[int, ...], classes: int, *, double: bool) -> Segmenter:
    """ResNet v1c with DeepLabV2."""
    attention = DeepLabV2(classes) if double else None
    return Segmenter(ResNetV1c(blocks), lambda: DeepLabV2(classes), attention)


def daformer(width: int, blocks: tuple[int, ...], classes: int, *, double: bool) -> Segmenter:
    """MiT with DAFormer's head; the attention fuses by a 1 x 1 convolution."""
    backbone = MixTransformer(width, blocks)
    attention = DAFormerHead(backbone.widths, classes, pyramid=False) if double else None
    return Segmenter(
        backbone, lambda: DAFormerHead(backbone.widths, classes, pyramid=True), attention
    )


def randomise(network: nn.Module, state: int) -> nn.Module:
    """Random weights of a usual size, and random statistics of batch normalisation."""
    generator = torch.Generator().manual_seed(state)
    for name, value in network.state_dict().items():
        if value.dim() > 1:
            fan = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) / fan**0.5)
        elif name.endswith(("weight", "running_var")):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        else:
            value.fill_(12345)
    return network.eval()
