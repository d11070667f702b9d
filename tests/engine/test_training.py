import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ssda.engine.training import (
    Progress,
    StepRecord,
    create_optimiser,
    learning_rate_factor,
    train,
)
from ssda.method.learning import Report
from ssda.networks.segmenter import Segmenter
from tests.conftest import SMALL_NETWORK, make_model, make_params


def test_learning_rate_of_the_released_schedule() -> None:
    assert learning_rate_factor(0, 40_000, 1500) == pytest.approx(1e-6)
    before = (1 - 1499 / 40_000) * (1 - (1 - 1499 / 1500) * (1 - 1e-6))
    assert learning_rate_factor(1499, 40_000, 1500) == pytest.approx(before)
    assert learning_rate_factor(1500, 40_000, 1500) == pytest.approx(1 - 1500 / 40_000)
    assert learning_rate_factor(40_000, 40_000, 1500) == 0.0
    assert learning_rate_factor(0, 10, 0) == 1.0


def small_network() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(make_model(SMALL_NETWORK), 3).train()


def test_the_head_learns_faster_than_the_encoder() -> None:
    network = small_network()
    settings = make_params({"pretrain.optimiser.head_factor": 7.0}).pretrain.optimiser
    groups = create_optimiser(network, settings).param_groups
    assert groups[1]["lr"] == pytest.approx(7 * groups[0]["lr"])
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert {group["weight_decay"] for group in groups} == {settings.weight_decay}


def test_groups_of_a_transformer_have_their_own_rates_and_decay() -> None:
    network = Segmenter(make_model({"model.encoder": "vit_tiny_patch16_224"}), 3)
    overrides = {"adapt.optimiser.layer_decay": 0.5, "adapt.optimiser.learning_rate": 1e-4}
    settings = make_params(overrides | {"adapt.optimiser.head_factor": 10}).adapt.optimiser
    group_of = {
        id(value): group
        for group in create_optimiser(network, settings).param_groups
        for value in group["params"]
    }
    blocks = network.encoder.network.model.blocks
    assert group_of[id(blocks[11].mlp.fc1.weight)]["lr"] == pytest.approx(1e-4)
    assert group_of[id(blocks[9].mlp.fc1.weight)]["lr"] == pytest.approx(0.25e-4)
    assert group_of[id(blocks[9].norm1.weight)]["weight_decay"] == 0.0
    assert group_of[id(network.classifier.convolutions[0].weight)]["lr"] == pytest.approx(1e-3)
    assert len(group_of) == len(list(network.parameters()))


def test_training_changes_weights_and_tells_each_step() -> None:
    network = small_network()
    before = network.classifier.convolutions[0].weight.detach().clone()
    updates: list[int] = []

    def add_gradients(batch: torch.Tensor, step: int) -> Report:
        loss = network(batch).square().mean()
        loss.backward()
        return Report({"square": loss.detach()})

    settings = make_params({"pretrain.optimiser.warmup": 0}).pretrain.optimiser
    records = list(
        train(
            network,
            settings,
            3,
            [torch.rand(2, 3, 32, 32)] * 3,
            add_gradients,
            lambda step, _: updates.append(step),
            progress=Progress(create_optimiser(network, settings), 0),
            files=no_files,
        )
    )
    assert [record.step for record in records] == updates == [0, 1, 2]
    assert records[2].learning_rate == pytest.approx(records[0].learning_rate / 3)
    assert records[0].scalars().keys() == {"loss_square"}
    assert not torch.equal(before, network.classifier.convolutions[0].weight)


def no_files(_: int) -> list[Path]:
    return []


def broken_training(network: Segmenter, bad: set[int], spoil: str) -> Iterator[StepRecord]:
    """Twenty steps, of which some have a loss or a gradient that is no number."""

    def add_gradients(batch: torch.Tensor, step: int) -> Report:
        factor = float("nan") if step in bad and spoil == "loss" else 1.0
        loss = network(batch * factor).square().mean()
        loss.backward()
        if step in bad and spoil == "gradient":
            gradient = next(network.parameters()).grad
            assert gradient is not None
            gradient[0] = float("inf")
        return Report({"square": loss.detach()})

    settings = make_params().pretrain.optimiser
    torch.manual_seed(1)
    batches = [torch.rand(2, 3, 32, 32)] * 20
    progress = Progress(create_optimiser(network, settings), 0)
    return train(
        network,
        settings,
        20,
        batches,
        add_gradients,
        progress=progress,
        files=lambda step: [Path(f"image {step}.png")],
    )


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [("loss", "loss_square = nan"), ("gradient", "norm of the gradient = inf")],
)
def test_a_step_that_is_not_finite_changes_nothing(spoil: str, problem: str) -> None:
    network = small_network()
    before: dict[str, torch.Tensor] = {}
    for record in broken_training(network, {2, 3}, spoil):
        state = copy.deepcopy(network.state_dict())
        assert record.problem == (problem if record.step in (2, 3) else None)
        same = [torch.equal(value, before[name]) for name, value in state.items() if before]
        assert all(same) if record.step in (2, 3) else not same or not all(same)
        assert all(value.isfinite().all() for value in state.values())
        before = state


def test_too_many_such_steps_in_a_row_stop_with_what_is_needed_to_look() -> None:
    network = small_network()
    steps = broken_training(network, {1, *range(3, 20)}, "loss")
    with pytest.raises(
        FloatingPointError,
        match=r"step 12: loss_square = nan, the 10th step in a row.*image 12\.png.*learning_rate",
    ):
        list(steps)
    assert all(value.isfinite().all() for value in network.state_dict().values())
