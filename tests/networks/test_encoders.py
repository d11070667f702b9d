"""Encoders: feature maps, weights, parameter groups, published sizes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import nn

from ssda.networks.encoders import Encoder, load_imagenet_weights
from ssda.networks.normalisation import batch_normalisations
from ssda.networks.positions import take_over_positions
from ssda.networks.segmenter import Segmenter
from ssda.networks.stochastic_depth import draw_factors
from tests.conftest import make_model

RAW = {
    "resnet18d": {"model.head": "deeplabv2"},
    "vit_small_patch16_dinov3": {"model.drop_path": 0.1},
}


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("tf_efficientnet_lite0", [4, 8, 16, 32]),
        ("pvt_v2_b0", [4, 8, 16, 32]),
        ("convnext_atto", [4, 8, 16, 32]),
        ("mit_b0", [4, 8, 16, 32]),
        ("resnet18d", [4, 8, 8, 8]),
        ("vit_tiny_patch16_224", [16, 16, 16, 16]),
        ("vit_small_patch14_dinov2", [16, 16, 16, 16]),
        ("vit_small_patch16_dinov3", [16, 16, 16, 16]),
    ],
)
def test_an_encoder_is_a_name(name: str, strides: list[int]) -> None:
    encoder = Encoder(make_model({"model.encoder": name} | RAW.get(name, {}))).eval()
    assert encoder.strides == strides
    with torch.no_grad():
        features = encoder(torch.rand(1, 3, 64, 96))
    expected = [(c, 64 // s, 96 // s) for c, s in zip(encoder.channels, strides, strict=True)]
    assert [tuple(f.shape[1:]) for f in features] == expected


def test_a_pyramid_of_the_last_map_sees_that_map_alone() -> None:
    torch.manual_seed(0)
    overrides = {"model.encoder": "vit_tiny_patch16_224", "model.channels": 8}
    blocks = Segmenter(make_model(overrides), 3).eval()
    last = Segmenter(make_model(overrides | {"model.pyramid": "last"}), 3).eval()
    last.load_state_dict(blocks.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        wanted, features = blocks.encode(images), last.encode(images)
        embedding = blocks.head(blocks.pyramid([wanted[3]] * 4)) if blocks.pyramid else None
        assert embedding is not None and torch.equal(last.embed(images), embedding)
    assert len(features) == 4 and all(torch.equal(feature, wanted[3]) for feature in features)
    assert not torch.allclose(wanted[0], wanted[3], atol=0.1)
    assert last.encoder.strides == [16] * 4 and last.encoder.stage(16) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.pyramid": "last"}, "pyramid = 'last': .*lite0' has stages of its own; use blocks"),
        ({"model.pyramid": "last", "model.encoder": "mit_b0"}, "'mit_b0' has stages of its own"),
        ({"model.encoder": "no_such_encoder"}, "no_such_encoder"),
        ({"model.encoder": "swin_tiny_patch4_window7_224"}, "channels last"),
        ({"model.encoder": "pvt_v2_b0", "model.head": "deeplabv2"}, "deeplabv2"),
        ({"model.encoder": "mit_b0", "model.head": "deeplabv2"}, "cannot be dilated to stride 8"),
        ({"model.encoder": "mit_b0", "model.checkpointing": True}, "checkpointing = True"),
        ({"model.encoder": "vgg11", "model.drop_path": 0.1}, "vgg11"),
    ],
)
def test_an_encoder_that_cannot_be_is_told(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(make_model(overrides))


def test_rotary_positions_are_those_of_timm_and_compile_as_a_whole() -> None:
    encoder = Encoder(make_model({"model.encoder": "vit_small_patch16_dinov3"}))
    ours = encoder.network.model.rope
    wanted = timm.create_model("vit_small_patch16_dinov3").rope.get_embed(shape=[4, 6])
    assert torch.equal(copy.deepcopy(ours).get_embed(shape=[4, 6]), wanted)
    compiled = torch.compile(ours.get_embed, backend="eager", fullgraph=True)
    assert torch.equal(compiled(shape=[4, 6]), wanted)
    assert not any("rope" in name for name in encoder.state_dict())


def test_rotary_positions_are_never_stretched_at_random() -> None:
    """Sapiens 2 does so while it trains."""
    layers = nn.Sequential(RotaryEmbeddingDinoV3(64, rescale_coords=2.0)).train()
    first, other = (layers[0].get_embed(shape=[4, 6]) for _ in range(2))
    assert not torch.equal(first, other)
    take_over_positions(layers)
    wanted = RotaryEmbeddingDinoV3(64).get_embed(shape=[4, 6])
    assert torch.equal(layers[0].get_embed(shape=[4, 6]), wanted)


def test_published_sizes() -> None:
    """MiT-B5's encoder has 81.4 M parameters (SegFormer, table 6), ResNet-101 v1c 42.5 M without
    its classifier: torchvision's 44.55 M less 2.05 M, and a deep stem."""
    torchvision_resnet, classifier, stem = 44_549_160, 2048 * 1000 + 1000, 7 * 7 * 3 * 64
    deep_stem = 9 * (3 * 32 + 32 * 32 + 32 * 64) + 2 * (32 + 32)
    with torch.device("meta"):
        resnet = Encoder(make_model({"model.encoder": "resnet101c", "model.head": "deeplabv2"}))
    count = sum(p.numel() for p in resnet.network.parameters())
    assert count == torchvision_resnet - classifier - stem + deep_stem
    mit = Encoder(make_model({"model.encoder": "mit_b5"}))
    assert round(sum(p.numel() for p in mit.network.parameters()) / 1e6, 1) == 81.4
    assert mit.channels == [64, 128, 320, 512]


def test_images_are_normalised_inside() -> None:
    encoder = Encoder(make_model()).eval()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(encoder(images)[0], encoder.network((images - 0.5) / 0.5)[0])


def test_imagenet_weights_are_in_the_encoder() -> None:
    model = make_model()
    encoder = Encoder(model)
    before = encoder.network.conv_stem.weight.clone()
    load_imagenet_weights(encoder, model)
    assert not torch.equal(before, encoder.network.conv_stem.weight)
    assert encoder.network.bn1.running_mean.abs().sum() > 0
    assert isinstance(encoder.network.bn1, nn.BatchNorm2d)


def check_all_are_of(state: dict[str, torch.Tensor], encoder: Encoder) -> None:
    """Every tensor of the encoder is one of a file's, whatever its name there."""
    known = {value.contiguous().double().sum().item() for value in state.values()}
    for key, value in encoder.network.state_dict().items():
        assert value.contiguous().double().sum().item() in known, key


@pytest.mark.parametrize("name", ["pvt_v2_b0", "convnext_atto", "vit_tiny_patch16_224", "mit_b0"])
def test_weights_of_a_file_are_in_the_encoder(tmp_path: Path, name: str) -> None:
    """Every family keeps other names; the file holds the whole network, classifier included."""
    path = tmp_path / "weights.safetensors"
    if name == "mit_b0":
        state = Encoder(make_model({"model.encoder": name})).network.network.state_dict()
        state |= {"head.weight": torch.zeros(1), "head.bias": torch.zeros(1)}
    else:
        state = timm.create_model(name, pretrained=False).state_dict()
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    model = make_model({"model.encoder": name, "model.weights": str(path)})
    encoder = Encoder(model)
    load_imagenet_weights(encoder, model)
    check_all_are_of(state, encoder)


def test_patches_of_14_pixels_are_resampled(tmp_path: Path) -> None:
    name, path = "vit_small_patch14_dinov2", tmp_path / "weights.pth"
    whole = timm.create_model(name, pretrained=False)
    nn.init.ones_(whole.patch_embed.proj.weight)
    torch.save(whole.state_dict(), path)
    model = make_model({"model.encoder": name, "model.weights": str(path)})
    encoder = Encoder(model)
    load_imagenet_weights(encoder, model)
    patches = encoder.network.model.patch_embed.proj.weight
    assert patches.shape[-2:] == (16, 16)
    torch.testing.assert_close(
        patches.sum((1, 2, 3)), torch.full((384,), 3 * 14.0**2), rtol=0.05, atol=0
    )
    block = encoder.network.model.blocks[11].mlp.fc1.weight
    assert torch.equal(block, whole.blocks[11].mlp.fc1.weight)


State = dict[str, Any]
WRAPPED: dict[str, Callable[[State], object]] = {
    "another classifier": lambda state: state | {"head.weight": torch.zeros(21, 3)},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "teacher": lambda state: {
        "student": {"w": torch.zeros(1)},
        "teacher": {f"module.backbone.{key}": value for key, value in state.items()},
    },
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "segmentation": lambda state: {
        "state_dict": {f"backbone.{key}": value for key, value in state.items()}
        | {"decode_head.conv.weight": torch.zeros(1), "backbone.fc.weight": torch.zeros(7)},
        "meta": {"CLASSES": ["road"]},
    },
    "student, teacher and ImageNet encoder": lambda state: {
        "state_dict": {
            f"module.{network}.backbone.{key}": value + (network != "imnet_model")
            for network in ("model", "ema_model", "imnet_model")
            for key, value in state.items()
        }
    },
    "encoder.": lambda state: (
        {f"encoder.{key}": value for key, value in state.items()}
        | {"decoder.weight": torch.zeros(1)}
    ),
}


@pytest.mark.parametrize(
    ("name", "classifier", "wrapper"),
    [
        *(("test_resnet", "fc.", wrapper) for wrapper in WRAPPED),
        ("vit_tiny_patch16_224", "head.", "segmentation"),
        ("mit_b0", "head.", "segmentation"),
    ],
)
def test_the_backbone_is_taken_whatever_is_around_it(
    tmp_path: Path, name: str, classifier: str, wrapper: str
) -> None:
    if name == "mit_b0":
        whole = Encoder(make_model({"model.encoder": name})).network.network.state_dict()
    else:
        whole = timm.create_model(name).state_dict()
    state = {key: value for key, value in whole.items() if not key.startswith(classifier)}
    path = tmp_path / "weights.pth"
    torch.save(WRAPPED[wrapper](state), path)
    model = make_model({"model.encoder": name, "model.weights": str(path)})
    encoder = Encoder(model)
    load_imagenet_weights(encoder, model)
    check_all_are_of(state, encoder)


def test_a_classifier_of_another_size_is_left_out(tmp_path: Path) -> None:
    """Of dinov3, too, which timm builds without one."""
    path = tmp_path / "weights.safetensors"
    for name in ("test_resnet", "vit_small_patch16_dinov3"):
        state = timm.create_model(name, num_classes=7).state_dict()
        save_file({key: value.clone() for key, value in state.items()}, path)
        model = make_model({"model.encoder": name, "model.weights": str(path)})
        encoder = Encoder(model)
        load_imagenet_weights(encoder, model)
        check_all_are_of(state, encoder)


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    model = make_model({"model.weights": str(path)})
    encoder = Encoder(model)
    with pytest.raises(ValueError, match="no such file"):
        load_imagenet_weights(encoder, model)
    save_file({"conv_stem.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not fit encoder 'tf_efficientnet_lite0'"):
        load_imagenet_weights(encoder, model)
    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    clones = {key: value.clone() for key, value in state.items()}
    save_file(clones | {"bn1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"does not fit encoder .*bn1\.weight"):
        load_imagenet_weights(encoder, model)
    del clones["bn1.running_var"]
    save_file(clones, path)
    with pytest.raises(ValueError, match=r"does not fit encoder .*: holds no bn1\.running_var"):
        load_imagenet_weights(encoder, model)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        load_imagenet_weights(encoder, model)


def test_a_wrapper_that_nobody_knows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"ours": {"conv1.weight": torch.zeros(1)}, "epoch": 3}, path)
    model = make_model({"model.weights": str(path)})
    with pytest.raises(ValueError, match="no tensors by name in 'ours', 'epoch'; allowed as keys"):
        load_imagenet_weights(Encoder(model), model)


def test_a_folder_of_timm_gives_architecture_normalisation_and_weights(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet", num_classes=3)
    save_file({k: v.clone() for k, v in whole.state_dict().items()}, tmp_path / "model.safetensors")
    said = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "classifier": "fc"}
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = make_model({"model.encoder": f"local-dir:{tmp_path}"})
    encoder = Encoder(model)
    assert encoder.name == "test_resnet"
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    load_imagenet_weights(encoder, model)
    assert torch.equal(encoder.network.layer4[0].conv2.weight, whole.layer4[0].conv2.weight)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": {"in_chans": 1}}))
    with pytest.raises(ValueError, match="changes test_resnet; allowed is what timm has built in"):
        Encoder(model)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="not an encoder that timm can cut"):
        Encoder(model)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "mit_b0"])
def test_weights_that_cannot_be_downloaded_are_told(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model({"model.encoder": name})
    encoder = Encoder(model)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", fail)
    with pytest.raises(ValueError, match=rf"'{name}': .*no route.* path into model\.weights"):
        load_imagenet_weights(encoder, model)


def test_layers_learn_slower_the_deeper_and_position_terms_do_not_decay() -> None:
    encoder = Encoder(make_model({"model.encoder": "vit_tiny_patch16_224"}))
    names = {id(value): name for name, value in encoder.named_parameters()}
    seen: dict[str, tuple[float, bool]] = {}
    for factor, decays, values in encoder.parameter_groups(0.9):
        seen |= {
            names[id(value)].removeprefix("network.model."): (factor, decays) for value in values
        }
    assert len(seen) == len(names)
    assert seen["blocks.11.mlp.fc1.weight"] == (1.0, True)
    assert seen["blocks.10.mlp.fc1.weight"] == (0.9, True)
    assert seen["blocks.0.norm1.weight"] == (pytest.approx(0.9**11), False)
    assert seen["patch_embed.proj.weight"] == (pytest.approx(0.9**12), True)
    assert seen["pos_embed"] == seen["cls_token"] == (pytest.approx(0.9**12), False)


def test_networks_with_batch_normalisation_decay_as_a_whole() -> None:
    encoder = Encoder(make_model())
    [(factor, decays, values)] = encoder.parameter_groups(1.0)
    assert (factor, decays, len(values)) == (1.0, True, len(list(encoder.parameters())))
    with pytest.raises(ValueError, match=r"layer_decay = 0\.9: must be 1"):
        encoder.parameter_groups(0.9)


def test_checkpointing_changes_no_gradient() -> None:
    gradients: list[torch.Tensor] = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        overrides = {"model.encoder": "vit_tiny_patch16_224", "model.checkpointing": checkpointing}
        encoder = Encoder(make_model(overrides)).train()
        encoder(torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32))[-1].square().mean().backward()
        gradients.append(encoder.network.model.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_mixed_transformers_are_those_of_their_package() -> None:
    """Features and gradients, whatever the attention keeps."""
    from segmentation_models_pytorch.encoders import get_encoder

    torch.manual_seed(0)
    plain = get_encoder("mit_b0", weights=None).train()
    plain.reset_drop_path(0.0)
    encoder = Encoder(make_model({"model.encoder": "mit_b0"})).train()
    ours = encoder.network.network
    ours.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 96)
    for network in (plain, ours):
        sum(features.square().mean() for features in network(images)[-4:]).backward()
    for given, wanted in zip(ours(images)[-4:], plain(images)[-4:], strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    gradients = dict(plain.named_parameters())
    for name, values in ours.named_parameters():
        torch.testing.assert_close(
            values.grad, gradients[name].grad, rtol=1e-4, atol=1e-5, msg=name
        )


@pytest.mark.parametrize(
    "name",
    ["tf_efficientnet_lite0", "resnet18d", "convnext_atto", "vit_tiny_patch16_224", "mit_b0"],
)
def test_stochastic_depth_is_that_of_the_sample(name: str) -> None:
    """No draw but the given ones, and a sample's features do not depend on who is beside it."""
    torch.manual_seed(0)
    encoder = Encoder(make_model({"model.encoder": name, "model.drop_path": 0.5})).train()
    for layer in batch_normalisations(encoder):
        torch.nn.init.ones_(layer.eval().weight)  # some branches begin as 0
    images = torch.rand(2, 3, 64, 64)
    whole = encoder(images)[-1]
    state = torch.get_rng_state()
    draws = [np.random.default_rng(i) for i in range(2)]
    factors = torch.from_numpy(draw_factors(encoder.depths, draws))
    assert factors.min() == 0 and factors.max() > 1
    encoder.skip(factors)
    both = encoder(images)[-1]
    encoder.skip(factors[:, 1:])
    torch.testing.assert_close(encoder(images[1:])[-1], both[1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both, whole)
    assert torch.equal(torch.get_rng_state(), state)
    encoder.skip(None)
    torch.testing.assert_close(encoder(images)[-1], whole)


def test_the_attention_and_the_perceptron_of_a_block_are_skipped_apart() -> None:
    encoder = Encoder(make_model({"model.encoder": "mit_b0", "model.drop_path": 0.3}))
    rates = [depth.rate for depth in encoder.depths]
    assert len(rates) == 2 * 7 and rates[::2] == rates[1::2]  # of 8 blocks the first is never
    assert rates[-1] == pytest.approx(0.3) and rates == sorted(rates)


def test_crops_that_patches_do_not_fill_are_told() -> None:
    encoder = Encoder(make_model({"model.encoder": "vit_tiny_patch16_224"}))
    encoder.check_crop((96, 160))
    with pytest.raises(ValueError, match=r"images\.crop = \[96, 100\]: .* multiples of 16"):
        encoder.check_crop((96, 100))
    Encoder(make_model({"model.encoder": "resnet18d"})).check_crop((97, 101))
