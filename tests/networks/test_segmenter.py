import copy

import numpy as np
import pytest
import torch

from ssda.networks.segmenter import Segmenter
from ssda.networks.windows import halve
from tests.conftest import make_model


@pytest.fixture(scope="module")
def network() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(make_model({"model.channels": 16, "model.dropout": 0.5}), 19).eval()


def test_logits_have_a_quarter_of_the_size(network: Segmenter) -> None:
    assert network(torch.rand(2, 3, 64, 96)).shape == (2, 19, 16, 24)


def test_logits_of_any_size_are_those_of_the_continued_image(network: Segmenter) -> None:
    images = torch.rand(1, 3, 50, 77)
    with torch.no_grad():
        logits = network(images)
        assert logits.shape == (1, 19, 13, 20)
        whole = network(torch.nn.functional.pad(images, (0, 19, 0, 14), mode="replicate"))
    torch.testing.assert_close(logits, whole[..., :13, :20])


def test_masks_drop_the_given_share_and_keep_the_mean(network: Segmenter) -> None:
    masks = network.draw_masks(500, [np.random.default_rng(0)])
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    assert masks.mean().item() == pytest.approx(1.0, abs=0.05)


def test_masks_depend_on_the_sample_alone(network: Segmenter) -> None:
    alone = network.draw_masks(2, [np.random.default_rng(7)])
    among = network.draw_masks(2, [np.random.default_rng(i) for i in (3, 7)])
    assert torch.equal(alone[:, 0], among[:, 1])


@pytest.fixture(scope="module")
def double() -> Segmenter:
    """Two resolutions, crops of 128 x 128."""
    torch.manual_seed(0)
    network = Segmenter(make_model(DOUBLE), 5)
    torch.nn.init.normal_(network.classifier.convolutions[0].weight, std=1.0)
    return network.eval()


DOUBLE = {
    "model.channels": 16,
    "model.dropout": 0.5,
    "model.detail": [64, 64],
    "images.crop": [128, 128],
}


def test_two_resolutions_see_what_each_view_says_alone(double: Segmenter) -> None:
    images = torch.rand(2, 3, 128, 128)
    masks = double.draw_masks(2, [np.random.default_rng(i) for i in range(2)])
    corners = [(0, 16), (64, 40)]
    with torch.no_grad():
        views = double.observe(images, masks, corners)
        assert views.detail is not None and views.logits.shape == (2, 2, 5, 32, 32)
        for i, (y, x) in enumerate(corners):
            crop = images[i : i + 1, :, y : y + 64, x : x + 64]
            alone = double.classifier.stochastic(double.embed(crop), masks[:, i : i + 1])
            torch.testing.assert_close(views.detail[:, i : i + 1], alone)
        context = double.encode(halve(images))
        torch.testing.assert_close(views.features[3], context[3])
        low = double.classifier.stochastic(double.embed(halve(images)), masks)
        outside = torch.nn.functional.interpolate(low[0], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(views.logits[0, 0, :, 20:], outside[0, :, 20:])
    assert not torch.allclose(views.logits[0, 0, :, :16, 4:20], outside[0, :, :16, 4:20])


def test_prediction_slides_the_detail_by_half(double: Segmenter) -> None:
    """Written out window by window, one image at a time, one window a pass."""
    images = torch.rand(2, 3, 128, 192)
    masks = double.draw_masks(2, [np.random.default_rng(i) for i in range(2)])
    with torch.no_grad():
        prediction = double.predict(images, masks)
        assert prediction.detail is not None
        total, count = torch.zeros(2, 5, 32, 48), torch.zeros(32, 48)
        for y in range(0, 65, 32):
            for x in range(0, 129, 32):
                crop = double.classifier(double.embed(images[..., y : y + 64, x : x + 64]))
                total[..., y // 4 : y // 4 + 16, x // 4 : x // 4 + 16] += crop
                count[y // 4 : y // 4 + 16, x // 4 : x // 4 + 16] += 1
        torch.testing.assert_close(prediction.detail, total / count, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prediction.logits, double(images), rtol=1e-4, atol=1e-4)
    assert prediction.members.shape == (2, 2, 5, 32, 48)
    assert not torch.allclose(prediction.members[0], prediction.members[1])
    assert prediction.context is not None and prediction.context.shape == (2, 5, 16, 24)


def test_a_training_crop_takes_two_passes_and_no_image_takes_more_than_nine_windows_in_one(
    double: Segmenter,
) -> None:
    seen: list[tuple[int, ...]] = []
    handle = double.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    with torch.no_grad():
        double(torch.rand(2, 3, 128, 128))
        double(torch.rand(1, 3, 128, 256))
    handle.remove()
    assert [shape[0] for shape in seen[:2]] == [2, 2 * 9]
    assert [shape[0] for shape in seen[2:]] == [1, 9, 9, 3]


def test_both_views_of_a_sample_skip_the_same_branches() -> None:
    model = make_model(DOUBLE | {"model.drop_path": 0.5})
    network = Segmenter(model, 5).train()
    draws = [np.random.default_rng(i) for i in range(2)]
    depth = network.draw_depth(draws)
    assert depth is not None
    images, corners = torch.rand(2, 3, 128, 128), [(0, 16), (64, 40)]
    network.observe(images, network.draw_masks(1, draws), corners, depth)
    for layer, factors in zip(network.encoder.depths, depth, strict=True):
        assert layer.factors is not None
        assert torch.equal(layer.factors, torch.cat([factors, factors]))
    network.observe(images, network.draw_masks(1, draws), corners)
    assert all(layer.factors is None for layer in network.encoder.depths)


def test_two_resolutions_label_images_of_any_size(double: Segmenter) -> None:
    with torch.no_grad():
        assert double(torch.rand(1, 3, 50, 150)).shape == (1, 5, 13, 38)


def test_both_views_are_normalised_as_one_batch(double: Segmenter) -> None:
    """The running statistics, which serve both at inference, are those of context and detail."""
    network = copy.deepcopy(double).train()
    images, corners = torch.rand(2, 3, 128, 128), [(0, 16), (64, 40)]
    first = network.encoder.network.bn1
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    before = first.running_mean.clone()
    network.observe(images, network.draw_masks(1, [np.random.default_rng(0)] * 2), corners)
    assert len(seen) == 1 and len(seen[0]) == 4
    expected = 0.9 * before + 0.1 * seen[0].mean((0, 2, 3))
    torch.testing.assert_close(first.running_mean, expected)


def test_a_pass_drops_the_same_channels_in_both_views(double: Segmenter) -> None:
    corners = double.draw_corners((128, 128), [np.random.default_rng(0)] * 2)
    images = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        views = double.observe(images, torch.zeros(1, 2, 16), corners)
    assert views.detail is not None
    bias = double.classifier.convolutions[0].bias.view(5, 1, 1)
    torch.testing.assert_close(views.detail[0, 0], bias.expand(5, 16, 16))
    torch.testing.assert_close(views.logits[0, 0].mean((1, 2)), bias[:, 0, 0])


@pytest.mark.parametrize("head", ["daformer", "deeplabv2"])
@pytest.mark.parametrize("detail", [None, [64, 64]])
def test_logits_are_float32_of_a_trunk_in_bfloat16(head: str, detail: list[int] | None) -> None:
    torch.manual_seed(0)
    model = {"model.encoder": "resnet18d", "model.head": head, "model.detail": detail}
    network = Segmenter(make_model(DOUBLE | model), 5).eval()
    network.encoder.precision = torch.bfloat16
    images = torch.rand(2, 3, 128, 128)
    draws = [np.random.default_rng(i) for i in range(2)]
    masks, corners = network.draw_masks(2, draws), network.draw_corners((128, 128), draws)
    with torch.no_grad():
        said = network.predict(images, masks)
        views = network.observe(images, masks, corners)
        assert views.features[3].dtype == torch.bfloat16
        for logits in (said.logits, said.members, views.logits, said.context, said.detail):
            assert logits is None or logits.dtype == torch.float32
        embedding = network.embed(images if detail is None else halve(images))
        assert embedding.dtype == torch.bfloat16
        layers = network.classifier.convolutions
        exact = torch.stack([layer(embedding.float()) for layer in layers]).sum(0)
    whole = said.logits if said.context is None else said.context
    torch.testing.assert_close(whole, exact)
