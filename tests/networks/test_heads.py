"""Heads: shapes, published sizes, stochastic passes against dropping what is classified."""

import pytest
import torch
from torch.nn import functional

from ssda.networks.heads import (
    AtrousPyramid,
    Classifier,
    Pyramid,
    StageFusion,
    convolution,
    enlarge,
)

MIT_B5 = [64, 128, 320, 512]


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_daformer_head_has_the_published_size() -> None:
    """3.7 M parameters on MiT-B5 with 256 channels, classifier included (DAFormer, table 6)."""
    head = StageFusion(MIT_B5, 256, AtrousPyramid)
    count = parameters(head) + parameters(Classifier(256, 19))
    fused, channels, norm = 1024, 256, 2
    by_hand = sum(c * channels + channels for c in MIT_B5)
    by_hand += fused * channels + norm * channels
    by_hand += 3 * (9 * fused + norm * fused + fused * channels + norm * channels)
    by_hand += 9 * fused * channels + norm * channels + 19 * channels + 19
    assert count == by_hand
    assert round(count / 1e6, 1) == 3.7


def test_deeplabv2_head_has_the_size_of_its_description() -> None:
    """Two 3x3 convolutions with bias from 2048 channels to 19 classes."""
    assert parameters(Classifier(2048, 19, 3, (6, 12))) == 2 * (9 * 2048 * 19 + 19)


def test_fusion_enlarges_to_the_finest_stage() -> None:
    features = [
        torch.rand(2, c, 32 // s, 48 // s) for c, s in zip(MIT_B5, (4, 8, 16, 32), strict=True)
    ]
    assert StageFusion(MIT_B5, 8, convolution)(features).shape == (2, 8, 8, 12)


def test_pyramid_of_equal_maps() -> None:
    pyramid = Pyramid([16] * 4)
    levels = pyramid([torch.rand(2, 16, 4, 6) for _ in range(4)])
    assert [tuple(level.shape) for level in levels] == [
        (2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize(("kernel", "dilations"), [(1, (1,)), (3, (1, 2))])
def test_stochastic_passes_equal_dropping_the_embedding(
    kernel: int, dilations: tuple[int, ...], passes: int
) -> None:
    torch.manual_seed(0)
    classifier = Classifier(16, 5, kernel, dilations)
    torch.nn.init.normal_(classifier.convolutions[0].bias)
    embedding = torch.rand(2, 16, 6, 7, requires_grad=True)
    masks = torch.bernoulli(torch.full((passes, 2, 16), 0.5)) * 2
    logits = classifier.stochastic(embedding, masks)
    together = classifier.stochastic(embedding, masks.repeat(2, 1, 1))[:passes]
    torch.testing.assert_close(logits, together, rtol=1e-5, atol=1e-5)
    for k in range(passes):
        dropped = classifier(embedding * masks[k].view(2, 16, 1, 1))
        torch.testing.assert_close(logits[k], dropped)
    assert not torch.allclose(logits[:, 0], classifier(embedding)[0])
    assert passes == 1 or not torch.allclose(logits[0], logits[1])
    (gradient,) = torch.autograd.grad(logits.square().sum(), embedding)
    assert gradient.abs().sum() > 0


def test_atrous_classifier_is_a_sum_over_rates() -> None:
    """Written out tap by tap."""
    classifier = Classifier(4, 3, 3, (2, 3))
    image = torch.rand(1, 4, 9, 9)
    padded = torch.nn.functional.pad(image, (3, 3, 3, 3))
    expected = sum(c.bias for c in classifier.convolutions).view(1, 3, 1, 1)
    for layer, rate in zip(classifier.convolutions, (2, 3), strict=True):
        for i in range(3):
            for j in range(3):
                y, x = 3 + (i - 1) * rate, 3 + (j - 1) * rate
                part = padded[..., y : y + 9, x : x + 9]
                expected = expected + torch.einsum("ndhw,cd->nchw", part, layer.weight[..., i, j])
    torch.testing.assert_close(classifier(image), expected)


@pytest.mark.parametrize(("kernel", "dilations"), [(1, (1,)), (3, (1, 2))])
def test_classes_are_those_of_float32_logits_also_under_autocast(
    kernel: int, dilations: tuple[int, ...]
) -> None:
    """Of logits in bfloat16 some maxima are others."""
    torch.manual_seed(0)
    classifier = Classifier(16, 19, kernel, dilations)
    embedding = torch.randn(2, 16, 48, 48).bfloat16()
    exact = sum(layer(embedding.float()) for layer in classifier.convolutions).argmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sum(layer(embedding) for layer in classifier.convolutions).argmax(1)
        said = classifier(embedding).argmax(1)
        drawn = classifier.stochastic(embedding, torch.ones(2, 2, 16)).argmax(2)
    assert torch.equal(said, exact) and not torch.equal(rounded, exact)
    assert (drawn == exact).float().mean() > 0.9999  # summed in another order


SIZES = [((8, 16), (32, 64)), ((13, 20), (50, 77)), ((1, 5), (3, 40)), ((9, 7), (4, 7))]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_enlarging_and_its_gradient_are_the_usual_ones(
    small: tuple[int, int], large: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 3, *small).contiguous(memory_format=layout).requires_grad_()
    weights = torch.rand(2, 3, *large).contiguous(memory_format=layout)
    found: list[torch.Tensor] = []
    for enlarged in (
        enlarge(values, large),
        functional.interpolate(values, large, mode="bilinear", align_corners=False),
    ):
        found += [enlarged, *torch.autograd.grad((enlarged * weights).sum(), values)]
    torch.testing.assert_close(found[0], found[2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], found[3], rtol=1e-6, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(enlarge(values, large), found[2])


def test_the_gradient_of_enlarging_has_no_sum_in_any_order() -> None:
    """PyTorch's own, here told by its name, raises on CUDA where bits are to be equal."""
    values = torch.randn(2, 3, 4, 6, requires_grad=True)
    with torch.profiler.profile() as seen:
        enlarge(values, (16, 24)).square().sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::upsample_bilinear2d" in names
    assert not {name for name in names if "upsample" in name and "backward" in name}


def test_a_head_stays_in_bfloat16_under_autocast() -> None:
    """Maps that are enlarged in float32 would make what is concatenated float32, twice as large."""
    features = [
        torch.rand(2, c, 32 // s, 48 // s) for c, s in zip(MIT_B5, (4, 8, 16, 32), strict=True)
    ]
    seen: list[torch.dtype] = []
    head = StageFusion(MIT_B5, 8, convolution)
    head.fusion.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        head(features).sum().backward()
    assert seen == [torch.bfloat16]
