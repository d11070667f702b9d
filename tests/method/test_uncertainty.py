import math

import pytest
import torch

from ssda.method.uncertainty import (
    STATISTICS,
    lack_of_confidence,
    mutual_information,
    predictive_entropy,
)


def random_members(members: int = 4, classes: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(members, 2, classes, 3, 4, generator=generator)
    return logits.double().softmax(2)


def slow_entropy(distribution: list[float]) -> float:
    return -sum(p * math.log2(p) for p in distribution if p > 0)


def slow_mutual_information(members: torch.Tensor, n: int, y: int, x: int) -> float:
    passes = [members[k, n, :, y, x].tolist() for k in range(len(members))]
    mean = [sum(values) / len(passes) for values in zip(*passes, strict=True)]
    return slow_entropy(mean) - sum(slow_entropy(p) for p in passes) / len(passes)


def test_mutual_information_equals_the_written_out_form() -> None:
    members = random_members()
    values = mutual_information(members)
    assert values.shape == (2, 3, 4)
    for n, y, x in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
        assert values[n, y, x].item() == pytest.approx(slow_mutual_information(members, n, y, x))


@pytest.mark.parametrize(("members", "classes"), [(2, 5), (4, 3), (8, 19)])
def test_mutual_information_stays_in_its_bounds(members: int, classes: int) -> None:
    values = mutual_information(random_members(members, classes))
    assert values.min() >= 0
    assert values.max() <= math.log2(min(members, classes)) + 1e-9
    assert values.mean() > 0.01


def test_members_that_disagree_fully_reach_the_bound() -> None:
    members = torch.zeros(2, 1, 4, 1, 1)
    members[0, 0, 0] = members[1, 0, 1] = 1.0
    assert mutual_information(members).item() == pytest.approx(1.0)


def test_equal_members_have_no_mutual_information_however_undecided() -> None:
    members = torch.full((3, 1, 4, 1, 1), 0.25)
    assert mutual_information(members).item() == pytest.approx(0.0)
    assert predictive_entropy(members).item() == pytest.approx(1.0)
    assert lack_of_confidence(members).item() == pytest.approx(0.75)


def test_gradient_is_finite_where_a_probability_is_zero() -> None:
    logits = torch.tensor([[0.0, -500.0], [5.0, -500.0]]).view(2, 1, 2, 1, 1).requires_grad_()
    mutual_information(logits.softmax(2)).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_statistics_have_the_names_of_the_parameter() -> None:
    assert set(STATISTICS) == {"mutual_information", "predictive_entropy", "confidence"}
