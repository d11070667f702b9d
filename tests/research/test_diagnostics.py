import pytest
import torch

from research.diagnostics import auroc, near_edges


def test_auroc_is_the_chance_that_a_positive_ranks_higher() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0])
    positive = torch.tensor([True, False, False, True, True])
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in values[positive].tolist()
        for n in values[~positive].tolist()
    ]
    assert auroc(values, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(torch.ones(5), positive) == pytest.approx(0.5)


def test_cells_near_an_edge_are_those_within_two_of_another_class() -> None:
    labels = torch.zeros(1, 3, 10, dtype=torch.int64)
    labels[..., 5:] = 1
    assert near_edges(labels)[0, 1].tolist() == [False] * 3 + [True] * 4 + [False] * 3
