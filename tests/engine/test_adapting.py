import copy
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ssda.datasets.index import read_index
from ssda.engine import adapting
from ssda.engine.adapting import adapt_steps, start_networks
from ssda.engine.pretraining import imagenet_network
from ssda.engine.state import copy_tensors, restore
from ssda.engine.statistics import use_target_statistics
from ssda.engine.training import Progress, create_optimiser
from ssda.labels import CITYSCAPES
from ssda.method.adaptation import Networks
from ssda.method.learning import Report
from ssda.method.teacher import frozen
from ssda.networks.encoders import Encoder
from ssda.networks.segmenter import Segmenter, Views
from tests.conftest import make_model, make_params


def running_means(network: nn.Module) -> list[torch.Tensor]:
    buffers = network.named_buffers()
    return [values.clone() for name, values in buffers if name.endswith("running_mean")]


def test_predicted_shares_move_with_the_steps_that_count(
    folder: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(small | {"adapt.iterations": 4})
    source, target = read_index(folder / "source"), read_index(folder / "target")
    networks = start_networks(imagenet_network(params, 19), target, params)
    take_step = adapting.joint_step

    def joint_step(*arguments: Any) -> Report:
        report = take_step(*arguments)
        if arguments[-1] == 2:
            report.losses["mix"] = torch.tensor(torch.nan)
        return report

    monkeypatch.setattr(adapting, "joint_step", joint_step)
    found: list[torch.Tensor] = []
    for record in adapt_steps(networks, [source], target, params, CITYSCAPES):
        assert (record.problem is not None) == (record.step == 2)
        found.append(networks.predicted.shares.clone())
        same = torch.equal(found[-1], record.report.by_class["predicted_share"])
        assert same == (record.step != 2)
    assert found[0].sum() == pytest.approx(1.0)
    moved = [not torch.equal(*pair) for pair in itertools.pairwise(found)]
    assert moved == [True, False, True]


def test_shares_at_the_start_are_those_of_the_labels_of_whole_target_images(
    folder: Path, small: dict[str, Any]
) -> None:
    params = make_params(small | {"adapt.seeds.anchor": "start", "adapt.margins.bottom": 8})
    target = read_index(folder / "target")
    networks = start_networks(imagenet_network(params, 19), target, params)
    images = [cv2.imread(str(target.image_path(record))) for record in target.records]
    counts = np.zeros(19)
    for image in images:
        pixels = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255.0
        with torch.no_grad():
            labels = networks.teacher(pixels).argmax(1)[0]
        rows = (image.shape[0] - params.adapt.margins.bottom) // networks.teacher.stride
        first = -(-params.adapt.margins.top // networks.teacher.stride)
        left = -(-params.adapt.margins.left // networks.teacher.stride)
        right = (image.shape[1] - params.adapt.margins.right) // networks.teacher.stride
        counts += np.bincount(labels[first:rows, left:right].flatten().numpy(), minlength=19)
    assert networks.predicted.start.tolist() == pytest.approx((counts / counts.sum()).tolist())
    assert networks.student.training and not networks.teacher.training


def test_the_projector_learns_and_is_in_the_state_that_training_goes_on_from(
    folder: Path, small: dict[str, Any]
) -> None:
    params = make_params(
        small | {"adapt.feature_distance.cells": "all", "adapt.optimiser.warmup": 0}
    )
    source, target = read_index(folder / "source"), read_index(folder / "target")

    def start() -> tuple[Networks, torch.optim.AdamW]:
        networks = start_networks(imagenet_network(params, 19), target, params)
        settings = params.adapt.optimiser
        return networks, create_optimiser(networks.student, settings, networks.projector)

    networks, optimiser = start()
    assert networks.projector is not None
    drawn = copy.deepcopy(networks.projector.state_dict())
    steps = adapt_steps(networks, [source], target, params, CITYSCAPES, Progress(optimiser, 0))
    next(steps)
    saved = copy_tensors(networks.state(), optimiser)
    next(steps)
    moved = networks.projector.state_dict()
    assert not any(torch.equal(drawn[name], values) for name, values in moved.items())
    again, optimiser = start()
    restore(again.state(), optimiser, saved)
    next(adapt_steps(again, [source], target, params, CITYSCAPES, Progress(optimiser, 1)))
    for one, other in zip(networks.state().values(), again.state().values(), strict=True):
        for name, values in one.state_dict().items():
            assert torch.equal(values, other.state_dict()[name]), name


def test_adaptation_ends_with_statistics_of_plain_target_images(
    folder: Path, small: dict[str, Any]
) -> None:
    params = make_params(small)
    source, target = read_index(folder / "source"), read_index(folder / "target")
    networks = start_networks(imagenet_network(params, 19), target, params)
    plain: list[bool] = []
    for _ in adapt_steps(networks, [source], target, params, CITYSCAPES):
        for network in (networks.student, networks.teacher):
            expected = copy.deepcopy(network)
            use_target_statistics(expected, target, params)
            pairs = zip(running_means(network), running_means(expected), strict=True)
            plain.append(all(torch.equal(*pair) for pair in pairs))
    assert plain == [False, False, True, True]
    assert networks.student.training and not networks.teacher.training


def test_new_statistics_depend_on_the_images_alone(folder: Path, small: dict[str, Any]) -> None:
    """Not on what the process has drawn before, though branches are skipped at random."""
    params = make_params(small | {"model.drop_path": 0.5})
    target = read_index(folder / "target")
    network = imagenet_network(params, 19)
    found: list[torch.Tensor] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        use_target_statistics(network, target, params)
        found.append(torch.cat(running_means(network)))
    assert torch.equal(*found)


class Casts(TorchDispatchMode):
    """Counts how often each weight is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._to_copy.default and isinstance(args[0], nn.Parameter):
            self.of[id(args[0])] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("encoder", "checkpointing"),
    [
        ("test_efficientnet", False),
        ("test_efficientnet", True),
        ("test_vit", True),
    ],
)
def test_a_step_in_bfloat16_casts_each_weight_once_and_finds_the_same_gradient(
    folder: Path,
    small: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    encoder: str,
    checkpointing: bool,
) -> None:
    changes = {
        "model.encoder": encoder,
        "model.checkpointing": checkpointing,
        "adapt.micro_batch_size": 2,
    }
    params = make_params(small | changes)
    monkeypatch.setattr(adapting, "load_imagenet_weights", lambda *_: None)
    source, target = read_index(folder / "source"), read_index(folder / "target")
    observe = Segmenter.observe

    def anew(*arguments: Any) -> Views:
        torch.clear_autocast_cache()
        return observe(*arguments)

    found: list[list[torch.Tensor]] = []
    most: list[int] = []
    for see in (anew, observe):
        monkeypatch.setattr(Segmenter, "observe", see)
        torch.manual_seed(0)
        student = Segmenter(params.model, 19)
        student.encoder.precision = torch.bfloat16
        networks = start_networks(student, target, params)
        with Casts() as casts:
            next(adapt_steps(networks, [source], target, params, CITYSCAPES))
        parameters = [p for p in student.parameters() if p.grad is not None]
        most.append(max(casts.of[id(p)] for p in parameters))
        found.append([p.grad for p in parameters if p.grad is not None])
    assert most[0] >= 6 and most[1] == 1  # three passes of two micro-batches
    assert len(found[1]) == len(found[0]) > 0
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_vit"])
def test_a_frozen_encoder_in_bfloat16_holds_cast_weights_and_gives_the_same_bits(
    encoder: str,
) -> None:
    torch.manual_seed(0)
    network = frozen(Encoder(make_model({"model.encoder": encoder})))
    network.precision = torch.bfloat16
    images = torch.rand(2, 3, 64, 64)
    found: list[list[torch.Tensor]] = []
    casts: list[int] = []
    for _ in range(2):
        with Casts() as seen, torch.no_grad():
            found.append(network(images))
        casts.append(sum(seen.of.values()))
        network.keep_cast()
    assert casts[1] < casts[0] / 5
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
