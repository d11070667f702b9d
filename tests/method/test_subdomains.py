import math

import pytest
import torch

from ssda.method.subdomains import (
    PredictedShares,
    corrected_ratios,
    keep_ratios,
    select_seeds,
)


def test_keep_ratios_equal_the_formula() -> None:
    frequencies = [0.36, 0.6, 0.04 - 6e-5, 6e-5, 0.0]
    expected = [min(1.0, 0.1 * (1 - math.log(w))) if w else 1.0 for w in frequencies]
    ratios = keep_ratios(torch.tensor(frequencies, dtype=torch.float64), beta=0.1)
    assert ratios.tolist() == pytest.approx(expected)
    assert ratios[0].item() == pytest.approx(0.20, abs=0.005)
    assert ratios[3].item() == 1.0


def test_keep_ratios_normalise_counts() -> None:
    counts = torch.tensor([300.0, 100.0, 600.0], dtype=torch.float64)
    torch.testing.assert_close(keep_ratios(counts, beta=0.1), keep_ratios(counts / 1000, beta=0.1))


@pytest.mark.parametrize("frequencies", [[0.0, 0.0], [-0.1, 1.1]])
def test_keep_ratios_reject_what_is_no_frequency(frequencies: list[float]) -> None:
    with pytest.raises(ValueError, match="class frequencies"):
        keep_ratios(torch.tensor(frequencies), beta=0.1)


def test_a_class_predicted_twice_as_often_as_in_the_source_keeps_half() -> None:
    frequencies = torch.tensor([60.0, 30.0, 10.0, 0.0])
    ratios = torch.tensor([0.2, 0.3, 0.6, 1.0], dtype=torch.float64)
    predicted = torch.tensor([0.35, 0.60, 0.0, 0.05], dtype=torch.float64)
    corrected = corrected_ratios(ratios, frequencies, predicted, power=1.0).tolist()
    assert corrected == pytest.approx([0.2 * 0.6 / 0.35, 0.3 / 2, 1.0, 1.0])
    stronger = corrected_ratios(ratios, frequencies, predicted, power=2.0).tolist()
    assert stronger == pytest.approx([0.2 * (0.6 / 0.35) ** 2, 0.3 / 4, 1.0, 1.0])
    for shares, power in ((frequencies / 100, 2.0), (predicted, 0.0)):
        same = corrected_ratios(ratios, frequencies, shares, power=power)
        torch.testing.assert_close(same, ratios)


def test_shares_of_the_predictions_are_a_moving_average() -> None:
    predicted = PredictedShares(3)
    labels = torch.tensor([[[0, 0, 0, 1], [255, 255, 255, 255]]])
    first = predicted.after(labels, step=0, momentum=0.95)
    assert first.tolist() == [0.75, 0.25, 0.0] and not predicted.shares.any()
    predicted.take(first)
    ones = torch.ones_like(labels)
    assert predicted.after(ones, step=1, momentum=0.95).tolist() == [0.375, 0.625, 0.0]
    late = predicted.after(ones, step=100, momentum=0.9)
    assert late.tolist() == pytest.approx([0.675, 0.325, 0.0])
    nothing = torch.full_like(labels, 255)
    assert predicted.after(nothing, step=1, momentum=0.95).tolist() == first.tolist()
    # As if it were the first step, where the steps before were left out.
    assert PredictedShares(3).after(labels, step=3, momentum=0.9).tolist() == first.tolist()


def slow_seeds(
    labels: torch.Tensor,
    uncertainty: torch.Tensor,
    confidence: torch.Tensor,
    ratios: torch.Tensor,
    min_pixels: int,
) -> torch.Tensor:
    """Class by class, sorted as Python sorts."""
    flat = labels.flatten().tolist()
    seeds = [False] * len(flat)
    for class_id, ratio in enumerate(ratios.tolist()):
        members = [i for i, label in enumerate(flat) if label == class_id]
        if len(members) <= min_pixels:
            continue
        members.sort(key=lambda i: (uncertainty.flatten()[i], -confidence.flatten()[i], i))
        for i in members[: math.ceil(len(members) * ratio)]:
            seeds[i] = True
    return torch.tensor(seeds).view(labels.shape)


@pytest.mark.parametrize("state", range(4))
def test_seeds_equal_the_written_out_form_with_ties(state: int) -> None:
    generator = torch.Generator().manual_seed(state)
    shape = (2, 12, 15)
    labels = torch.randint(0, 6, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.1] = 255
    labels[labels == 5] = torch.where(
        torch.rand(int((labels == 5).sum()), generator=generator) < 0.85, 0, 5
    )
    uncertainty = (torch.rand(shape, generator=generator) * 4).round() / 4
    confidence = (torch.rand(shape, generator=generator) * 8).round() / 8
    ratios = torch.tensor([0.2, 0.33, 0.5, 0.77, 1.0, 1.0], dtype=torch.float64)
    seeds = select_seeds(labels, uncertainty, confidence, ratios, min_pixels=10)
    assert torch.equal(seeds, slow_seeds(labels, uncertainty, confidence, ratios, 10))


def test_share_of_seeds_is_the_keep_ratio_even_where_all_are_equally_sure() -> None:
    labels = torch.zeros(1, 40, 50, dtype=torch.int64)
    labels[:, :, 40:] = 1
    zeros = torch.zeros(1, 40, 50)
    ratios = torch.tensor([0.2, 0.65], dtype=torch.float64)
    seeds = select_seeds(labels, zeros, zeros + 0.9, ratios)
    assert int(seeds[labels == 0].sum()) == math.ceil(1600 * 0.2)
    assert int(seeds[labels == 1].sum()) == math.ceil(400 * 0.65)


def test_ignored_pixels_and_tiny_classes_have_no_seeds() -> None:
    labels = torch.full((1, 8, 8), 255)
    labels[0, 0, :10] = 0
    labels[0, 4:] = 1
    values = torch.zeros(1, 8, 8)
    seeds = select_seeds(labels, values, values, torch.ones(2), min_pixels=10)
    assert not seeds[labels == 255].any()
    assert not seeds[labels == 0].any()
    assert seeds[labels == 1].all()


def test_the_most_certain_come_first() -> None:
    labels = torch.zeros(1, 5, 20, dtype=torch.int64)
    uncertainty = torch.linspace(1, 0, 100).view(1, 5, 20)
    seeds = select_seeds(labels, uncertainty, torch.ones(1, 5, 20), torch.tensor([0.25]))
    assert seeds.flatten().tolist() == [False] * 75 + [True] * 25
