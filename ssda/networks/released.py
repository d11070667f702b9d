"""Networks as MMSegmentation 0.x names their tensors: what DAFormer, HRDA, MIC and SSDA release.

A file of theirs holds networks by prefix: the student, the teacher, a frozen ImageNet encoder; or
one network without prefix. Which one it is can be told from names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ssda.networks.encoders import COARSEST, check_finite
from ssda.networks.heads import LastStage
from ssda.networks.segmenter import Segmenter
from ssda.params import Model, Size
from ssda.sections import validate

Role = Literal["student", "teacher"]
PREFIXES = {"student": "model.", "teacher": "ema_model.", "imagenet": "imnet_model."}
"""What stands before the names of a network's tensors, where a file holds several."""
RESNETS: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "resnet50c", (3, 4, 23, 3): "resnet101c"}
"""Blocks of the four stages -> ResNet with a deep stem (v1c)."""
MIX_TRANSFORMERS: dict[tuple[int, tuple[int, ...]], str] = {
    (32, (2, 2, 2, 2)): "mit_b0",
    (64, (2, 2, 2, 2)): "mit_b1",
    (64, (3, 4, 6, 3)): "mit_b2",
    (64, (3, 4, 18, 3)): "mit_b3",
    (64, (3, 8, 27, 3)): "mit_b4",
    (64, (3, 6, 40, 3)): "mit_b5",
}
"""Channels of the first stage and blocks of the four -> MiT."""
KINDS = "ResNet-50 or 101 (v1c) with DeepLabV2, MiT-B0 to B5 with DAFormer's head"
DETAIL = (512, 512)
"""Windows of HRDA's details, (width, height), which no tensor tells."""
RULES = (
    (r"^encoder\.network\.(network\.)?", "backbone."),
    (r"^backbone\.conv1\.", "backbone.stem."),
    (r"^backbone\.bn1\.", "backbone.stem.7."),
    (r"^attention\.0\.", "decode_head.scale_attention."),
    (r"^attention\.1\.", "decode_head.scale_attention.classifier."),
    (r"^(head\.|(?=classifier\.))", "decode_head.head."),
    (r"\.embeddings\.(\d)\.", r".embed_layers.\1.proj."),
    (r"\.fusion\.pyramid\.", ".fuse_layer.aspp_modules."),
    (r"(\.aspp_modules\.[123])\.0\.", r"\1.depthwise_conv."),
    (r"(\.aspp_modules\.[123])\.1\.", r"\1.pointwise_conv."),
    (r"\.fusion\.", ".fuse_layer."),
    (r"(\.fuse_layer\..*|\.fuse_layer)\.0\.(\w+)$", r"\1.conv.\2"),
    (r"(\.fuse_layer\..*|\.fuse_layer)\.1\.(\w+)$", r"\1.bn.\2"),
)
"""From a name here to the one there, one after the other; then the classifier's, by its head."""


def one_network(state: Mapping[str, Tensor], role: Role | None, place: str) -> dict[str, Tensor]:
    """The tensors of one network of a file, without prefix.

    Args:
        state: all tensors of the file.
        role: which network; None: the student, which the authors score, or the only one.
        place: the file, for messages.

    Raises:
        ValueError: the network is not there, or a tensor belongs to none.
    """
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    prefixes = tuple(PREFIXES.values())
    if not any(name.startswith(prefixes) for name in state):
        if role is not None:
            raise ValueError(f"{place}: holds one network alone, no {role} beside another")
        return dict(state)
    for name in state:
        if not name.startswith(prefixes):
            raise ValueError(f"{place}: {name} belongs to none of {', '.join(prefixes)}")
    role = role or "student"
    prefix = PREFIXES[role]
    chosen = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    if not chosen:
        raise ValueError(f"{place}: holds no {role} (no tensor {prefix}*)")
    return chosen


def recognise(state: Mapping[str, Tensor], place: str, detail: Size = DETAIL) -> tuple[Model, int]:
    """The kind of a network and its number of classes, from `one_network`'s names and shapes.

    `detail` is (width, height) of the windows of details, if it has two resolutions.

    Raises ValueError that names `place` where it is of no known kind.
    """
    if any(side < COARSEST or side % COARSEST for side in detail):
        raise ValueError(f"detail = {list(detail)}: sides must be multiples of {COARSEST}")
    double = any(name.startswith("decode_head.scale_attention.") for name in state)
    head = "decode_head.head." if double else "decode_head."
    if (stem := _rows(state, "backbone.patch_embed1.proj.weight")) is not None:
        encoder, kind = MIX_TRANSFORMERS.get((stem, _blocks(state, "block"))), "daformer"
        classifier, width = f"{head}conv_seg.weight", f"{head}fuse_layer.bottleneck.conv.weight"
    else:
        deep = "backbone.stem.0.weight" in state
        encoder, kind = RESNETS.get(_blocks(state, "layer")) if deep else None, "deeplabv2"
        classifier = width = f"{head}aspp_modules.0.conv.weight"
    classes, channels = _rows(state, classifier), _rows(state, width)
    if encoder is None or classes is None or channels is None:
        some = next(iter(sorted(state)), "none")
        missing = "no such backbone" if encoder is None else f"no {classifier}"
        raise ValueError(
            f"{place}: not a network of a known kind ({missing}; first tensor: {some}): "
            f"allowed are {KINDS}"
        )
    values = {
        "encoder": encoder,
        "weights": None,
        "head": kind,
        "pyramid": "blocks",
        "channels": channels,
        "dropout": 0.1,
        "drop_path": 0.0,
        "detail": detail if double else None,
        "checkpointing": False,
    }
    return validate(Model, values, place), classes


def from_published(
    state: Mapping[str, Tensor], model: Model, num_classes: int, place: str
) -> Segmenter:
    """The network that the tensors are of, in evaluation mode.

    Raises ValueError that names `place` and the first tensor that is missing, of another shape or
    type, left over or not finite.
    """
    network = Segmenter(model, num_classes)
    for name, value in published_state(network).items():
        given = state.get(name)
        if given is None:
            raise ValueError(f"{place}: has no {name}")
        if given.shape != value.shape or given.dtype != value.dtype:
            raise ValueError(
                f"{place}: {name} is {_described(given)}, needed is {_described(value)}"
            )
    own = network.state_dict()
    names = {name: published_name(name, network) for name in own}
    if rest := sorted(state.keys() - {*names.values()}):
        kind = f"{model.encoder} with {model.head}"
        raise ValueError(f"{place}: {rest[0]} is left over: {kind} has no such tensor")
    check_finite(dict(state), place)
    network.load_state_dict(
        {name: state[theirs].reshape(own[name].shape) for name, theirs in names.items()}
    )
    return network.eval()


def published_state(network: Segmenter) -> dict[str, Tensor]:
    """The tensors of a network by their published names, in the published shapes.

    Raises ValueError for a network that has no published form.
    """
    encoder = network.encoder.name.partition(".")[0]
    known = RESNETS if isinstance(network.head, LastStage) else MIX_TRANSFORMERS
    if encoder not in known.values():
        raise ValueError(f"encoder {encoder!r} with this head has no published form: {KINDS} have")
    published: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        theirs = published_name(name, network)
        linear = ".embed_layers." in theirs and value.dim() > 1  # a 1 x 1 convolution here
        published[theirs] = value.flatten(1) if linear else value
    return published


def published_name(name: str, network: Segmenter) -> str:
    """What a tensor of a network is called there."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    if network.attention is None:
        name = name.replace("decode_head.head.", "decode_head.")
    classifier = r"aspp_modules.\1.conv" if isinstance(network.head, LastStage) else "conv_seg"
    return re.sub(r"classifier\.convolutions\.(\d)", classifier, name)


def _rows(state: Mapping[str, Tensor], name: str) -> int | None:
    """Length of a tensor's first dimension; None where there is none."""
    shape = state[name].shape if name in state else ()
    return shape[0] if shape else None


def _blocks(state: Mapping[str, Tensor], stage: str) -> tuple[int, ...]:
    """Blocks of the backbone's four stages."""
    found = [re.match(rf"backbone\.{stage}(\d)\.(\d+)\.", name) for name in state]
    pairs = {(match[1], match[2]) for match in found if match}
    return tuple(sum(number == str(i) for number, _ in pairs) for i in (1, 2, 3, 4))


def _described(value: Tensor) -> str:
    return f"{[*value.shape]} {str(value.dtype).removeprefix('torch.')}"
