import math

import pytest
import torch

from ssda.labels import IGNORE
from ssda.method.losses import (
    feature_distance,
    projected_distance,
    source_loss,
    thing_cells,
    uncertainty_loss,
    weighted_loss,
)


def slow_cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[label]


def test_cross_entropies_equal_the_written_out_form() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 2, 2, generator=generator)
    labels = torch.tensor([[[0, 2], [IGNORE, 1]]])
    weights = torch.tensor([[[0.5, 2.0], [7.0, 0.0]]])
    each = {
        (y, x): slow_cross_entropy(logits[0, :, y, x].tolist(), int(labels[0, y, x]))
        for y, x in ((0, 0), (0, 1), (1, 1))
    }
    assert source_loss(logits, labels).item() == pytest.approx(sum(each.values()) / 3, rel=1e-5)
    weighted = (0.5 * each[0, 0] + 2.0 * each[0, 1]) / 4
    assert weighted_loss(logits, labels, weights).item() == pytest.approx(weighted, rel=1e-5)


def test_an_all_ignore_label_gives_zero_and_a_zero_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = source_loss(logits, torch.full((1, 2, 2), IGNORE))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and not logits.grad.any()


def test_the_uncertainty_loss_pulls_the_passes_together() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 4, 3, 3, requires_grad=True)
    loss = uncertainty_loss(logits, 1)
    (step,) = torch.autograd.grad(loss, logits)
    assert loss > 0
    moved = logits - 5 * step
    assert (moved[0] - moved[1]).norm() < (logits[0] - logits[1]).norm()
    assert uncertainty_loss(moved, 1) < loss


def test_thing_cells_need_one_class_to_cover_their_share() -> None:
    labels = torch.full((1, 4, 8), 0)
    labels[0, :3, :4] = 13  # 12 of 16 pixels are car
    labels[0, :, 4:6] = 13  # half car, half person: no class covers 75 %
    labels[0, :, 6:] = 11
    cells = thing_cells(labels, (11, 13), torch.Size((1, 2)), 0.75)
    assert cells.tolist() == [[[True, False]]]
    assert not thing_cells(labels * 0, (11, 13), torch.Size((1, 2)), 0.75).any()


def test_feature_distance_is_the_mean_norm_over_the_cells() -> None:
    features = torch.zeros(1, 2, 1, 3, requires_grad=True)
    reference = torch.tensor([[[[3.0, 1.0, 0.0]], [[4.0, 0.0, 0.0]]]])
    cells = torch.tensor([[[True, True, False]]])
    loss = feature_distance(features, reference, cells)
    assert loss.item() == pytest.approx(3.0)
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient[..., 0].norm() > 0 and not gradient[..., 2].any()


def test_projected_distance_equals_the_written_out_form() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 1, 2, generator=generator)
    reference = 4 * torch.randn(2, 3, 1, 2, generator=generator)
    each: list[float] = []
    for n, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        f, r = features[n, :, 0, x].double(), reference[n, :, 0, x].double()
        r = (r - r.mean()) / (r.var(correction=0) + 1e-5).sqrt()
        smooth = [0.5 * d * d if abs(d) < 1 else abs(d) - 0.5 for d in (f - r).tolist()]
        cosine = float(f @ r / f.norm() / r.norm())
        each.append(0.1 * sum(smooth) / 3 + 0.9 * (1 - cosine))
    whole = projected_distance(features, reference)
    assert whole.item() == pytest.approx(sum(each) / 4, rel=1e-5)
    part = slice(1, 2)
    half = projected_distance(features[part], reference, part)
    assert half.item() == pytest.approx(sum(each[2:]) / 4, rel=1e-5)


def test_without_a_qualifying_cell_the_distance_is_zero_not_nan() -> None:
    features = torch.zeros(1, 2, 1, 3, requires_grad=True)
    loss = feature_distance(features, features.detach(), torch.zeros(1, 1, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert features.grad is not None and not features.grad.any()
