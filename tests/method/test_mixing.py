import numpy as np
import pytest
import torch

from ssda.labels import IGNORE
from ssda.method.mixing import blur, jitter, mask_blocks, mix, paste_mask
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
