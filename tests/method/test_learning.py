"""A pass, its losses and gradients: weights scale them, and only what is asked for is computed."""

import copy

import pytest
import torch
from torch import Tensor

from ssda.method.learning import Loss, learn
from ssda.networks.normalisation import batch_normalisations
from ssda.networks.segmenter import Segmenter, Views
from ssda.randomness import generators
from tests.conftest import make_model

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
ENCODER = {"model.encoder": "test_resnet", "model.channels": 8}


def create_student(checkpointing: bool = False) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(make_model(ENCODER | {"model.checkpointing": checkpointing}), 3).train()


def square(views: Views) -> Tensor:
    return views.logits.square().mean()


def never(_: Views) -> Tensor:
    raise AssertionError("a loss without weight was computed")


def gradient(student: Segmenter, losses: dict[str, Loss], *, fills: bool = False) -> Tensor:
    student.zero_grad()
    told = learn(student, IMAGES, generators(0, "test", 0, 2), losses, fills_statistics=fills)
    assert told.keys() == {name for name, loss in losses.items() if loss.weight > 0}
    assert not any(value.requires_grad for value in told.values())
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()]
    return torch.cat([values.flatten() for values in found])


def test_gradients_are_those_of_the_weighted_sum() -> None:
    student = create_student()
    one = gradient(student, {"square": Loss(1.0, square)})
    two = gradient(student, {"square": Loss(0.5, square), "again": Loss(1.5, square)})
    torch.testing.assert_close(two, 2 * one)
    assert one.norm() > 0


@pytest.mark.parametrize("fills", [False, True])
def test_a_loss_is_alive_whatever_the_others_weigh(fills: bool) -> None:
    losses = {"off": Loss(0.0, never), "square": Loss(1.0, square), "last": Loss(0.0, never)}
    assert gradient(create_student(), losses, fills=fills).norm() > 0


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("fills", [False, True])
def test_only_a_pass_that_fills_statistics_moves_them_and_only_once(
    fills: bool, weight: float, checkpointing: bool
) -> None:
    student = create_student(checkpointing)
    expected = copy.deepcopy(student)
    if fills:
        with torch.no_grad():
            expected(IMAGES)
    found = gradient(student, {"square": Loss(weight, square)}, fills=fills)
    assert (found.norm() > 0) == (weight > 0)
    layers = zip(batch_normalisations(student), batch_normalisations(expected), strict=True)
    for own, wanted in layers:
        torch.testing.assert_close(own.running_mean, wanted.running_mean)
        torch.testing.assert_close(own.running_var, wanted.running_var)
