"""Released networks: equal logits, recognised by their tensors, bit for bit there and back."""

import pytest
import torch
from torch import Tensor

from ssda.networks.released import (
    MIX_TRANSFORMERS,
    RESNETS,
    from_published,
    one_network,
    published_state,
    recognise,
)
from ssda.networks.segmenter import Segmenter
from tests import published
from tests.conftest import make_model


def published_network(kind: str, *, double: bool, classes: int = 19) -> published.Segmenter:
    """A small one of a kind, with random weights."""
    if kind == "deeplabv2":
        network = published.deeplab((3, 4, 6, 3), classes, double=double)
    else:
        network = published.daformer(32, (2, 2, 2, 2), classes, double=double)
    published.randomise(network, 0)
    return network


def import_state(state: dict[str, Tensor], detail: tuple[int, int] = (512, 512)) -> Segmenter:
    model, classes = recognise(state, "file", detail)
    return from_published(state, model, classes, "file")


@pytest.mark.parametrize("kind", ["deeplabv2", "daformer"])
@pytest.mark.parametrize("size", [(64, 96), (45, 77)])
@torch.inference_mode()
def test_one_resolution_gives_the_published_logits(kind: str, size: tuple[int, int]) -> None:
    theirs = published_network(kind, double=False)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = theirs(255 * images)
    found = import_state(theirs.state_dict()).predict(images).logits
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["deeplabv2", "daformer"])
@pytest.mark.parametrize("size", [(64, 128), (80, 176)])
@torch.inference_mode()
def test_two_resolutions_give_the_published_logits(kind: str, size: tuple[int, int]) -> None:
    """Windows of details of 64 x 96, slid by half; sizes of no whole number of windows."""
    theirs = published_network(kind, double=True)
    theirs.window = (64, 96)
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = theirs(255 * images)
    found = import_state(theirs.state_dict(), (96, 64)).predict(images)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    assert found.context is not None
    assert (found.logits - expected.mean()).std() > 0.1


@pytest.mark.parametrize("kind", ["deeplabv2", "daformer"])
@pytest.mark.parametrize("double", [False, True])
def test_there_and_back_is_bit_for_bit(kind: str, double: bool) -> None:
    state = published_network(kind, double=double, classes=5).state_dict()
    again = published_state(import_state(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    assert any(value.dtype == torch.int64 and int(value) == 12345 for value in again.values())


@pytest.mark.parametrize(("facts", "name"), MIX_TRANSFORMERS.items())
def test_every_mit_is_recognised_by_names_and_shapes(
    facts: tuple[int, tuple[int, ...]], name: str
) -> None:
    width, blocks = facts
    shapes = {
        "backbone.patch_embed1.proj.weight": (width, 3, 7, 7),
        "decode_head.head.conv_seg.weight": (7, 256, 1, 1),
        "decode_head.head.fuse_layer.bottleneck.conv.weight": (256, 1024, 3, 3),
        "decode_head.scale_attention.conv_seg.weight": (7, 256, 1, 1),
    }
    for i, count in enumerate(blocks, 1):
        shapes |= {f"backbone.block{i}.{j}.norm1.weight": (width,) for j in range(count)}
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    model, classes = recognise(state, "file", (128, 64))
    assert (model.encoder, model.head, model.detail) == (name, "daformer", (128, 64))
    assert (model.channels, classes) == (256, 7)


def test_resnet_101_is_told_from_resnet_50() -> None:
    for blocks, name in RESNETS.items():
        with torch.device("meta"):
            state = published.deeplab(blocks, 19, double=False).state_dict()
        assert recognise(state, "file")[0].encoder == name


def test_student_and_teacher_are_told_apart() -> None:
    value = {name: torch.tensor(float(i)) for i, name in enumerate("abc")}
    several = {
        f"module.{prefix}backbone.x": value[letter]
        for prefix, letter in zip(("ema_model.", "model.", "imnet_model."), "abc", strict=True)
    }
    assert one_network(several, None, "file") == {"backbone.x": value["b"]}
    assert one_network(several, "student", "file") == {"backbone.x": value["b"]}
    assert one_network(several, "teacher", "file") == {"backbone.x": value["a"]}
    assert one_network({"backbone.x": value["c"]}, None, "file") == {"backbone.x": value["c"]}


def test_a_network_that_is_not_there_is_one_line() -> None:
    value = torch.zeros(1)
    with pytest.raises(ValueError, match=r"^file: holds one network alone, no teacher beside"):
        one_network({"backbone.x": value}, "teacher", "file")
    with pytest.raises(ValueError, match=r"^file: holds no teacher \(no tensor ema_model\.\*\)$"):
        one_network({"model.backbone.x": value}, "teacher", "file")
    with pytest.raises(ValueError, match=r"^file: other\.x belongs to none of model\., ema_model"):
        one_network({"model.backbone.x": value, "other.x": value}, None, "file")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("backbone.norm3.bias", None, "has no backbone.norm3.bias"),
        ("backbone.extra", torch.zeros(2), "backbone.extra is left over: mit_b0 with daformer has"),
        (
            "decode_head.embed_layers.1.proj.weight",
            torch.zeros(256, 65),
            r"decode_head.embed_layers.1.proj.weight is \[256, 65\] float32, needed is \[256, 64\]",
        ),
        (
            "backbone.norm1.bias",
            torch.zeros(32, dtype=torch.float16),
            r"backbone.norm1.bias is \[32\] float16, needed is \[32\] float32",
        ),
        ("backbone.norm1.bias", torch.full((32,), torch.inf), "backbone.norm1.bias holds numbers"),
        ("backbone.norm1.bias", torch.ones(32).to_sparse(), "backbone.norm1.bias is no plain"),
        ("backbone.norm1.bias", torch.ones(32, device="meta"), "backbone.norm1.bias is no plain"),
        ("decode_head.conv_seg.weight", None, "not a network of a known kind .*: allowed are"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, value: Tensor | None, message: str) -> None:
    state = {**published_network("daformer", double=False).state_dict()}
    state.pop(name, None)
    if value is not None:
        state[name] = value
    with pytest.raises(ValueError, match=f"^file: {message}") as caught:
        import_state(state)
    assert "\n" not in str(caught.value)


def test_a_network_without_published_form_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder 'tf_efficientnet_lite0' with this head has no"):
        published_state(Segmenter(make_model(), 19))
    with pytest.raises(ValueError, match="encoder 'resnet50c' with this head has no published"):
        published_state(Segmenter(make_model({"model.encoder": "resnet50c"}), 19))
