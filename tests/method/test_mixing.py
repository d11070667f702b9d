from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as transforms

from ssda.labels import IGNORE
from ssda.method.losses import thing_cells
from ssda.method.mixing import (
    blur,
    jitter,
    mask_blocks,
    mix,
    paste_mask,
    transfer_colours,
    turn_hue,
)
from ssda.method.teacher import pseudo_labels
from tests.conftest import make_params


def rngs(*states: int) -> list[np.random.Generator]:
    return [np.random.default_rng(state) for state in states]


@pytest.mark.parametrize(("classes", "pasted"), [(1, 1), (2, 1), (3, 2), (6, 3), (7, 4)])
def test_half_of_the_classes_rounded_up_are_pasted_whole(classes: int, pasted: int) -> None:
    labels = torch.arange(classes).repeat_interleave(4).view(1, classes, 4)
    labels = torch.cat([labels, torch.full((1, 2, 4), IGNORE)], dim=1)
    mask = paste_mask(labels, rngs(0))
    assert not mask[labels == IGNORE].any()
    assert len(labels[mask].unique()) == pasted
    for class_id in labels[mask].unique():
        assert mask[labels == class_id].all()


def test_each_image_has_its_own_draw() -> None:
    labels = torch.arange(10).view(1, 1, 10).repeat(2, 1, 1)
    mask = paste_mask(labels, rngs(0, 1))
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(paste_mask(labels[:1], rngs(1))[0], mask[1])


def test_an_all_ignore_label_pastes_nothing() -> None:
    assert not paste_mask(torch.full((1, 3, 3), IGNORE), rngs(0)).any()


def test_every_class_is_pasted_as_often_as_every_other() -> None:
    labels = torch.tensor([3, 7, 7, 7, 12, IGNORE]).view(1, 2, 3).repeat(1000, 1, 1)
    mask = paste_mask(labels, rngs(*range(1000)))
    for class_id in (3, 7, 12):
        assert mask[labels == class_id].float().mean().item() == pytest.approx(2 / 3, abs=0.05)


def test_images_and_labels_are_mixed_alike() -> None:
    mask = torch.tensor([[[True, False]]])
    assert mix(mask, torch.ones(1, 1, 2), torch.zeros(1, 1, 2)).tolist() == [[[1.0, 0.0]]]
    image = mix(mask, torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
    assert image[0, :, 0].tolist() == [[1.0, 0.0]] * 3


def test_jitter_and_blur_change_images_as_often_as_they_should() -> None:
    images = torch.rand(1, 3, 16, 16)
    settings = make_params().adapt.augmentation
    for change, probability in ((jitter, 0.8), (blur, 0.5)):
        changed = [
            not torch.equal(change(images, settings, rngs(state)), images) for state in range(200)
        ]
        assert np.mean(changed) == pytest.approx(probability, abs=0.1)


def test_jitter_stays_in_range_and_repeats() -> None:
    images = torch.rand(2, 3, 16, 16)
    settings = make_params().adapt.augmentation
    first = jitter(images, settings, rngs(0, 1))
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, jitter(images, settings, rngs(0, 1)))


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.13, 0.5])
def test_hues_are_turned_as_torchvision_turns_them(turn: float) -> None:
    images = torch.rand(2, 3, 16, 16)
    images[0, :, :4] = torch.tensor([0.0, 0.5, 1.0])[torch.randint(0, 3, (3, 4, 16))]  # with ties
    turned = turn_hue(images, torch.tensor([turn, 0.1]).view(2, 1, 1, 1))
    for image, amount, result in zip(images, (turn, 0.1), turned, strict=True):
        torch.testing.assert_close(result, transforms.adjust_hue(image, amount), atol=5e-6, rtol=0)


def test_an_image_is_jittered_and_blurred_by_its_own_draw() -> None:
    images = torch.rand(3, 3, 32, 24)
    always = {
        "adapt.augmentation.jitter_probability": 1.0,
        "adapt.augmentation.blur_probability": 1.0,
    }
    settings = make_params(
        always | {"adapt.augmentation.blur_sigma": [0.4, 2.0]}
    ).adapt.augmentation
    jittered = jitter(images, settings, rngs(0, 1, 2))
    blurred = blur(images, settings, rngs(0, 1, 2))
    strength = settings.jitter_strength
    for image, state, *results in zip(images, range(3), jittered, blurred, strict=True):
        rng = np.random.default_rng(state)
        wanted = image
        for adjust in ("brightness", "contrast", "saturation"):
            factor = 1 + rng.uniform(-strength, strength)
            wanted = getattr(transforms, f"adjust_{adjust}")(wanted, factor)
        wanted = transforms.adjust_hue(wanted, rng.uniform(-strength, strength))
        torch.testing.assert_close(results[0], wanted, atol=5e-6, rtol=0)
        sigma = np.random.default_rng(state).uniform(0.4, 2.0)
        wanted = transforms.gaussian_blur(image, [13, 13], [sigma, sigma])
        torch.testing.assert_close(results[1], wanted, atol=5e-6, rtol=0)


def test_an_image_takes_mean_and_spread_of_the_others_colours() -> None:
    images = 0.4 + 0.2 * torch.rand(2, 3, 16, 24)
    others = 0.3 + torch.rand(2, 3, 8, 8) * torch.tensor([0.1, 0.4]).view(2, 1, 1, 1)
    changed = transfer_colours(images, others, 1.0, rngs(0, 1))
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(statistic(changed, (2, 3)), statistic(others, (2, 3)))
    order = images.flatten(2).argsort(stable=True)
    assert torch.equal(changed.flatten(2).argsort(stable=True), order)  # what is drawn stays


def test_colours_stay_in_range_and_a_flat_image_takes_the_mean() -> None:
    flat = torch.full((1, 3, 4, 4), 0.5)
    others = (torch.rand(1, 3, 8, 8) > 0.5).float()
    changed = transfer_colours(flat, others, 1.0, rngs(0))
    torch.testing.assert_close(changed.mean((2, 3)), others.mean((2, 3)))
    back = transfer_colours(torch.rand(1, 3, 8, 8) ** 4, others, 1.0, rngs(0))
    assert back.min() >= 0 and back.max() <= 1


def test_so_many_images_take_others_colours() -> None:
    images, others = torch.rand(400, 3, 4, 4), torch.rand(400, 3, 4, 4)
    changed = transfer_colours(images, others, 0.3, rngs(*range(400)))
    share = (changed != images).flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.07)
    assert transfer_colours(images, others, 0.0, rngs(*range(400))) is images


class Pinned(TorchDispatchMode):
    """Fails where a copy to the GPU makes the host wait; fake tensors do where a value is read."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Any] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        from_pinned = any(args and args[0] is tensor for tensor in self.pinned)
        if kwargs.get("pin_memory") or from_pinned:  # or a view of it
            self.pinned.append(result)
        if func is torch.ops.aten._to_copy.default and args[0].device != result.device:
            assert kwargs["non_blocking"] and from_pinned
            self.copies += 1
        return result


def test_no_draw_waits_for_a_gpu() -> None:
    settings = make_params().adapt
    with FakeTensorMode(allow_non_fake_inputs=True), Pinned() as copies:
        images = torch.rand(2, 3, 64, 64, device="cuda")
        labels = torch.zeros(2, 64, 64, dtype=torch.int64, device="cuda")
        changed = [
            paste_mask(labels, rngs(0, 1)),
            jitter(images, settings.augmentation, rngs(0, 1)),
            blur(images, settings.augmentation, rngs(0, 1)),
            mask_blocks(images, images[:1, :, :1, :1], settings.masking, rngs(0, 1)),
            thing_cells(labels, (6, 7), torch.Size((2, 2)), 0.5),
        ]
        assert all(values.is_cuda for values in changed)
    assert copies.copies == len(changed)


def test_q_is_the_share_of_certain_counted_pixels() -> None:
    confidence = torch.tensor([[0.99, 0.97, 0.5, 0.99]])
    probabilities = torch.stack([confidence, 1 - confidence], dim=1).view(1, 2, 1, 4)
    counted = torch.tensor([[[True, True, True, False]]])
    share = pseudo_labels(probabilities, counted, threshold=0.968, weighting="share")
    assert share.certain_share.item() == pytest.approx(2 / 3)
    assert share.weights[0, 0].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0.0])
    assert share.labels[0, 0].tolist() == [0, 0, 0, IGNORE]
    pixel = pseudo_labels(probabilities, counted, threshold=0.968, weighting="pixel")
    assert pixel.weights[0, 0].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_q_of_a_batch_without_counted_pixels_is_zero() -> None:
    probabilities = torch.full((1, 2, 1, 1), 0.5)
    pseudo = pseudo_labels(
        probabilities, torch.zeros(1, 1, 1, dtype=torch.bool), threshold=0.0, weighting="share"
    )
    assert pseudo.certain_share.item() == 0.0


def test_masked_squares_have_the_fill_s_colour_and_the_given_share() -> None:
    settings = make_params({"adapt.masking": {"block": 8, "ratio": 0.7}}).adapt.masking
    images = torch.rand(2, 3, 200, 204)
    fill = torch.tensor([2.0, 3.0, 4.0]).view(1, 3, 1, 1)
    masked = mask_blocks(images, fill, settings, rngs(0, 1))
    hidden = (masked == fill).all(1)
    assert torch.equal(masked.movedim(1, -1)[~hidden], images.movedim(1, -1)[~hidden])
    for y, x in ((0, 0), (96, 48), (192, 200)):
        assert len(hidden[0, y : y + 8, x : x + 8].unique()) == 1
    assert hidden.float().mean().item() == pytest.approx(0.7, abs=0.05)
    assert not torch.equal(hidden[0], hidden[1])
