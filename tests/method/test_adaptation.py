"""Every mechanism of the joint step is alive, and costs nothing when its weight is 0."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ssda.datasets.batches import SourceBatch, TargetBatch
from ssda.labels import CITYSCAPES, IGNORE
from ssda.method import adaptation
from ssda.method import guidance as guidance_module
from ssda.method.adaptation import Networks, joint_step, look
from ssda.method.guidance import Task, guide
from ssda.method.subdomains import PredictedShares, corrected_ratios
from ssda.method.teacher import create_teacher, frozen, moving_average
from ssda.networks.heads import create_projector
from ssda.networks.normalisation import batch_normalisations, reestimate_statistics
from ssda.networks.segmenter import Segmenter, Views, stochastic_pass
from ssda.randomness import generators
from tests.conftest import SMALL_ENCODER, make_model, make_params

OFF = {
    "adapt.losses.mix": 0.0,
    "adapt.losses.masked": 0.0,
    "adapt.losses.seed": 0.0,
    "adapt.losses.uncertainty": 0.0,
    "adapt.losses.feature_distance": 0.0,
    "adapt.losses.trucrf": 0.0,
}
CLASSES = CITYSCAPES.num_classes


SMALL = {
    "model.encoder": SMALL_ENCODER,
    "model.channels": 16,
    "model.dropout": 0.3,
    "images.crop": [128, 64],
}
RESOLUTIONS = {"one resolution": SMALL, "two resolutions": SMALL | {"model.detail": [64, 32]}}


@pytest.fixture(scope="module", params=RESOLUTIONS)
def network(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = Segmenter(make_model(RESOLUTIONS[request.param]), CLASSES)
    torch.nn.init.normal_(network.classifier.convolutions[0].weight, std=1.0)
    network.train()
    # running statistics that fit, so that the teacher says something
    reestimate_statistics(network, [torch.rand(4, 3, 64, 128)], lambda images: see(network, images))
    return network


def see(network: Segmenter, images: torch.Tensor) -> Views:
    return stochastic_pass(network, images, 1, generators(0, "test", 0, len(images)))


@pytest.fixture
def networks(network: Segmenter) -> Iterator[Networks]:
    student = copy.deepcopy(network).train()
    imagenet = frozen(copy.deepcopy(network.encoder))
    for parameter in imagenet.parameters():
        parameter.data.mul_(1.05)
    yield Networks(student, create_teacher(network), imagenet, PredictedShares(CLASSES))


def batches() -> tuple[SourceBatch, TargetBatch]:
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, CLASSES, (2, 2, 4), generator=generator)
    labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    labels[:, :2] = IGNORE
    counted = torch.ones(2, 64, 128, dtype=torch.bool)
    counted[:, -8:] = False
    images = torch.rand(2, 2, 3, 64, 128, generator=generator)
    return SourceBatch(images[0], labels), TargetBatch(images[1], counted)


def uneven_batches() -> tuple[SourceBatch, TargetBatch]:
    """Three images a domain, with less and less to be learnt from them."""
    source, target = batches()
    images, labels, others, counted = (
        torch.cat([values, values[:1].flip(-1)])
        for values in (source.images, source.labels, target.images, target.counted)
    )
    labels[1, :40], labels[2, :, :100] = IGNORE, IGNORE
    counted[1, :30], counted[2, :, 20:] = False, False
    return SourceBatch(images, labels), TargetBatch(others, counted)


def make_task(overrides: dict[str, Any] | None = None) -> Task:
    often_certain = {"adapt.pseudo_labels.confidence_threshold": 0.2}
    params = make_params(often_certain | (overrides or {}))
    frequencies = torch.linspace(1, 20, CLASSES)
    return Task(params.adapt, frequencies, CITYSCAPES.things, 0, params.source_augmentation)


def gradient(student: Segmenter) -> torch.Tensor:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()]
    return torch.cat([values.flatten() for values in gradients])


def step_gradient(networks: Networks, overrides: dict[str, Any], step: int = 0) -> torch.Tensor:
    networks.student.zero_grad()
    joint_step(networks, *batches(), make_task(overrides), step)
    return gradient(networks.student)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapt.losses.mix", 1.0),
        ("adapt.losses.seed", 1.0),
        ("adapt.losses.uncertainty", 1.0),
        ("adapt.losses.feature_distance", 1.0),
        ("adapt.losses.trucrf", 1.0),
        ("adapt.losses.masked", 1.0),
    ],
)
def test_each_loss_has_a_gradient(networks: Networks, key: str, value: float) -> None:
    without = step_gradient(dataclasses.replace(networks, imagenet=None), OFF)
    imagenet = networks.imagenet if "feature" in key else None
    changed = OFF | {key: value, "adapt.losses.target": 1.0}
    difference = step_gradient(dataclasses.replace(networks, imagenet=imagenet), changed) - without
    assert without.norm() > 0
    assert difference.norm() > 1e-4 * without.norm()
    assert difference.isfinite().all()


def test_features_are_compared_on_both_domains_behind_a_projector(networks: Networks) -> None:
    projector = create_projector(networks.student.encoder.channels[2])
    behind = dataclasses.replace(networks, projector=projector)
    chosen = OFF | {"adapt.losses.feature_distance": 1.0, "adapt.losses.target": 0.0}
    chosen |= {"adapt.feature_distance.cells": "all", "adapt.feature_distance.stride": 16}
    found: list[torch.Tensor] = []
    for target in (True, False):
        source, other = batches()
        if not target:
            other = dataclasses.replace(other, images=torch.zeros_like(other.images))
        behind.student.zero_grad()
        projector.zero_grad()
        report = joint_step(behind, source, other, make_task(chosen), 0)
        assert {"feature_distance", "target_feature_distance"} < report.losses.keys()
        assert report.losses["feature_distance"] > 0.1
        found.append(gradient(behind.student))
        assert all(p.grad is not None and p.grad.any() for p in projector.parameters())
    without = step_gradient(dataclasses.replace(networks, imagenet=None), OFF)
    assert (found[0] - found[1]).norm() > 1e-4 * without.norm()
    assert (found[1] - without).norm() > 1e-4 * without.norm()
    names = networks.student.state_dict().keys()
    assert behind.student.state_dict().keys() == names == networks.teacher.state_dict().keys()


@pytest.mark.parametrize("correction", [0.0, 2.0])
def test_uncertainty_is_above_zero_and_seeds_have_their_share(
    networks: Networks, correction: float
) -> None:
    task = make_task(
        {
            "adapt.uncertainty.statistic": "mutual_information",
            "adapt.seeds.correction": correction,
            "adapt.teacher_momentum": 0.9,
        }
    )
    before = torch.linspace(20, 1, CLASSES).double()
    networks.predicted.take(before / before.sum())
    guidance = guide(networks.teacher, networks.predicted, batches()[1], task, step=9)
    assert guidance.uncertainty is not None and guidance.seeds is not None
    assert (guidance.uncertainty > 1e-4).float().mean() > 0.5
    ratios = task.ratios
    if correction == 0:
        assert guidance.predicted_shares is None
    else:
        assert guidance.predicted_shares is not None
        labels = guidance.grid_labels[guidance.grid_labels != IGNORE]
        batch = torch.bincount(labels, minlength=CLASSES) / len(labels)
        torch.testing.assert_close(
            guidance.predicted_shares, 0.9 * networks.predicted.shares + 0.1 * batch
        )
        ratios = corrected_ratios(
            ratios, task.class_frequencies, guidance.predicted_shares, power=correction
        )
        assert (ratios < 0.9 * task.ratios).any() and (ratios > 1.1 * task.ratios).any()
    for class_id, ratio in enumerate(ratios.tolist()):
        of_class = guidance.grid_labels == class_id
        count = int(of_class.sum())
        if count > task.settings.seeds.min_pixels:
            share = int(guidance.seeds[of_class].sum()) / count
            assert share == pytest.approx(ratio, abs=1.0 / count + 1e-9)


def test_certainty_ceiling_removes_seeds(networks: Networks) -> None:
    target = batches()[1]
    free = guide(networks.teacher, networks.predicted, target, make_task(), 0)
    assert free.uncertainty is not None and free.seeds is not None
    ceiling = float(free.uncertainty[free.seeds].median())
    bound = guide(
        networks.teacher,
        networks.predicted,
        target,
        make_task({"adapt.seeds.max_uncertainty": ceiling}),
        0,
    )
    assert bound.seeds is not None
    assert 0 < bound.seeds.sum() < free.seeds.sum()
    assert free.uncertainty[bound.seeds].max() <= ceiling


def test_rims_are_no_seeds_weigh_nothing_and_do_not_count_in_q(networks: Networks) -> None:
    target = batches()[1]
    guidance = guide(networks.teacher, networks.predicted, target, make_task(), 0)
    assert guidance.seeds is not None
    assert (guidance.pseudo.labels[:, -8:] == IGNORE).all()
    assert not guidance.pseudo.weights[:, -8:].any()
    assert not guidance.seeds[:, -2:].any()
    assert (guidance.pseudo.weights > 0)[target.counted].all()


@pytest.mark.parametrize(("size", "cells"), [(1, "things"), (2, "things"), (2, "all")])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    networks: Networks, monkeypatch: pytest.MonkeyPatch, size: int, cells: str
) -> None:
    """Three images whose shares of every loss differ, one or two at once.

    Batch normalisation is frozen: it normalises each micro-batch by itself.
    """
    for layer in batch_normalisations(networks.student):
        layer.eval()
    if cells == "all":
        projector = create_projector(networks.student.encoder.channels[2])
        networks = dataclasses.replace(networks, projector=projector)
    seen: list[int] = []
    for name in ("observe", "predict"):
        method = getattr(Segmenter, name)

        def watch(self: Segmenter, images: torch.Tensor, *rest: Any, of: Any = method) -> Any:
            part = rest[3] if len(rest) == 4 else slice(None)
            seen.append(len(images[part]))
            return of(self, images, *rest)

        monkeypatch.setattr(Segmenter, name, watch)
    found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for at_once in (None, size):
        everything = {
            "adapt.losses.masked": 1.0,
            "adapt.losses.feature_distance": 1.0,
            "adapt.feature_distance.min_share": 0.5,
            "adapt.feature_distance.cells": cells,
            "adapt.pseudo_labels.confidence_threshold": 0.25,
            "adapt.pseudo_labels.mirrored": True,
            "adapt.micro_batch_size": at_once,
        }
        networks.student.zero_grad()
        report = joint_step(networks, *uneven_batches(), make_task(everything), 0)
        found.append((gradient(networks.student), report.losses | report.scalars))
    assert set(seen[:6]) == {3} and max(seen[6:]) == size and sum(seen[6:]) == sum(seen[:6])
    (whole, told), (parts, told_of_parts) = found
    assert 0 < told["certain_share"] < 1
    assert cells == "all" or 0 < told["thing_cell_share"] < 1
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))
    torch.testing.assert_close(told_of_parts, told)


def test_the_draws_of_a_step_depend_on_the_step_alone(networks: Networks) -> None:
    first, second = (step_gradient(networks, {}, step=3) for _ in range(2))
    other = step_gradient(networks, {}, step=4)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, other)


def test_training_drops_channels(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source's gradient has no random draw but dropout and the detail crops."""
    if networks.student.detail is not None:
        fixed = [(0, 16), (32, 64)]
        monkeypatch.setattr(networks.student, "draw_corners", lambda *_: fixed)
    alone = dataclasses.replace(networks, imagenet=None)
    first, other = (step_gradient(alone, OFF, step) for step in (0, 1))
    assert not torch.allclose(first, other)
    networks.student.dropout = 0.0
    torch.testing.assert_close(step_gradient(alone, OFF, 0), step_gradient(alone, OFF, 1))


def test_only_the_target_pass_moves_the_running_statistics(networks: Networks) -> None:
    student = networks.student
    source, target = batches()
    layer = batch_normalisations(student)[0]
    before = layer.running_mean.clone()
    expected = copy.deepcopy(student)
    draws = generators(0, "target dropout", 0, 2)
    with torch.no_grad():
        stochastic_pass(expected, target.images, 2, draws)
    plain = {"adapt.jitter_target": False}
    joint_step(networks, source, target, make_task(plain), 0)
    for own, wanted in zip(
        batch_normalisations(student), batch_normalisations(expected), strict=True
    ):
        torch.testing.assert_close(own.running_mean, wanted.running_mean)
        torch.testing.assert_close(own.running_var, wanted.running_var)
    assert not torch.equal(before, layer.running_mean)


def test_computing_activations_twice_changes_no_statistics_and_no_gradient() -> None:
    """Batch normalisation and stochastic depth, in the passes and in their repetition."""
    found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = {"model.encoder": "resnet18d", "model.drop_path": 0.3}
        model = make_model(SMALL | encoder | {"model.checkpointing": checkpointing})
        student = Segmenter(model, CLASSES).train()
        networks = Networks(student, create_teacher(student), None, PredictedShares(CLASSES))
        values = step_gradient(networks, {"adapt.losses.target": 1.0})
        found.append((values, dict(student.named_buffers())))
    torch.testing.assert_close(found[0][0], found[1][0])
    for name, value in found[0][1].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, found[1][1][name])


def test_stochastic_depth_depends_on_the_step_alone() -> None:
    torch.manual_seed(0)
    model = make_model(SMALL | {"model.encoder": "resnet18d", "model.drop_path": 0.5})
    student = Segmenter(model, CLASSES).train()
    networks = Networks(student, create_teacher(student), None, PredictedShares(CLASSES))
    student.dropout = 0.0
    first = step_gradient(networks, OFF, step=0)
    state = torch.get_rng_state()
    torch.rand(5)
    again, other = step_gradient(networks, OFF, step=0), step_gradient(networks, OFF, step=1)
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other)
    torch.set_rng_state(state)
    step_gradient(networks, OFF, step=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_source_images_are_augmented_for_their_own_loss_alone(networks: Networks) -> None:
    always = {"source_augmentation.jitter_probability": 1.0}
    found: list[dict[str, torch.Tensor]] = []
    for overrides in ({}, always):
        networks.student.zero_grad()
        found.append(joint_step(networks, *batches(), make_task(overrides), 0).losses)
    differ = {name for name, loss in found[0].items() if not torch.equal(loss, found[1][name])}
    assert {"source"} <= differ <= {"source", "feature_distance"}


def test_source_and_mixed_images_take_the_targets_colours(networks: Networks) -> None:
    found: list[dict[str, torch.Tensor]] = []
    shown: list[torch.Tensor] = []
    for share in (0.0, 1.0):
        networks.student.zero_grad()
        task = make_task({"adapt.colour_transfer": share})
        found.append(joint_step(networks, *batches(), task, 0).losses)
        shown.append(look(networks, *batches(), task, 0)["mixed image"])
    differ = {name for name, loss in found[0].items() if not torch.equal(loss, found[1][name])}
    assert {"source", "mix"} <= differ <= {"source", "mix", "feature_distance"}
    assert not torch.equal(*shown)


def test_a_mirrored_teacher_says_the_same_of_image_and_mirror_image(networks: Networks) -> None:
    _, target = batches()
    mirror = dataclasses.replace(
        target, images=target.images.flip(-1), counted=target.counted.flip(-1)
    )
    alike: dict[bool, float] = {}
    for mirrored in (True, False):
        task = make_task({"adapt.pseudo_labels.mirrored": mirrored})
        plain, turned = (
            guide(networks.teacher, networks.predicted, batch, task, 0)
            for batch in (target, mirror)
        )
        same = plain.pseudo.labels == turned.pseudo.labels.flip(-1)
        alike[mirrored] = float(same.float().mean())
    assert alike[True] > 0.999 > 0.99 > alike[False]


def test_passes_on_both_mirror_images_are_members(networks: Networks) -> None:
    """Where one view's passes agree to doubt nothing, the views disagree all the same."""
    _, target = batches()
    still = {"adapt.uncertainty.statistic": "mutual_information"}
    networks.teacher.dropout = 0.0  # so that passes differ by the view alone
    uncertainty: list[torch.Tensor] = []
    for mirrored in (False, True):
        task = make_task(still | {"adapt.pseudo_labels.mirrored": mirrored})
        found = guide(networks.teacher, networks.predicted, target, task, 0).uncertainty
        assert found is not None
        uncertainty.append(found)
    assert float(uncertainty[0].max()) < 1e-4 < 1e-3 < float(uncertainty[1].mean())


def test_seeds_hold_on_to_the_shares_at_the_start(networks: Networks) -> None:
    """Where those are the shares of now, the ratios are the paper's, whatever the source shows."""
    _, target = batches()
    task = make_task({"adapt.seeds.anchor": "start", "adapt.seeds.correction": 2.0})
    plain = guide(
        networks.teacher,
        networks.predicted,
        target,
        make_task({"adapt.seeds.correction": 0.0}),
        0,
    )
    labels = plain.grid_labels
    networks.predicted.start.copy_(networks.predicted.after(labels, step=0, momentum=0.0))
    same = guide(networks.teacher, networks.predicted, target, task, 0)
    assert plain.seeds is not None and same.seeds is not None
    assert torch.equal(plain.seeds, same.seeds)
    most = int(networks.predicted.start.argmax())
    networks.predicted.start[most] /= 10
    fewer = guide(networks.teacher, networks.predicted, target, task, 0)
    assert fewer.seeds is not None
    of_most = labels == most
    assert int((fewer.seeds & of_most).sum()) < 0.1 * int((plain.seeds & of_most).sum())


def test_the_target_pass_fills_the_statistics_also_without_target_losses(
    networks: Networks,
) -> None:
    layer = batch_normalisations(networks.student)[0]
    before = layer.running_mean.clone()
    joint_step(networks, *batches(), make_task({"adapt.losses.target": 0.0}), 0)
    assert not torch.equal(before, layer.running_mean)


def test_the_teacher_follows_weights_and_statistics(networks: Networks) -> None:
    student, teacher = networks.student, networks.teacher
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(1)
    old = {name: value.clone() for name, value in teacher.state_dict().items()}
    update = moving_average(teacher, student, momentum=0.8)
    update(9)
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            wanted = 0.8 * old[name] + 0.2 * student.state_dict()[name]
            torch.testing.assert_close(value, wanted)
        else:
            assert torch.equal(value, student.state_dict()[name])
    update(0)
    torch.testing.assert_close(teacher.state_dict(), student.state_dict())


def test_the_step_leaves_the_teacher_and_the_frozen_encoder_alone(networks: Networks) -> None:
    assert networks.imagenet is not None
    before = copy.deepcopy((networks.teacher.state_dict(), networks.imagenet.state_dict()))
    step_gradient(networks, {})
    torch.testing.assert_close(
        (networks.teacher.state_dict(), networks.imagenet.state_dict()), before
    )
    assert all(p.grad is None for p in networks.teacher.parameters())
    assert all(p.grad is None for p in networks.imagenet.parameters())


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        ({"adapt.losses.mix": 0.0}, "paste_mask"),
        ({"adapt.losses.uncertainty": 0.0}, "uncertainty_loss"),
        ({"adapt.losses.trucrf": 0.0}, "truncated_crf_loss"),
        ({"adapt.losses.target": 0.0}, "select_seeds"),
        ({"adapt.losses.seed": 0.0, "adapt.losses.trucrf": 0.0}, "select_seeds"),
    ],
)
def test_a_mechanism_without_weight_is_not_computed(
    networks: Networks, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], unused: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError(f"{unused} was called")

    caller = guidance_module if unused == "select_seeds" else adaptation
    monkeypatch.setattr(caller, unused, fail)
    with pytest.raises(AssertionError, match=unused):
        step_gradient(networks, {})
    step_gradient(networks, overrides)


def test_masked_images_cost_nothing_by_default_and_leave_the_statistics(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = batch_normalisations(networks.student)[0]
    state = copy.deepcopy(networks.student.state_dict())
    step_gradient(networks, {"adapt.losses.masked": 1.0})
    after = layer.running_mean.clone()
    networks.student.load_state_dict(state)
    monkeypatch.setattr(adaptation, "mask_blocks", None)
    step_gradient(networks, {})
    assert torch.equal(after, layer.running_mean)


def test_mixed_images_may_weigh_seeds_alone_with_the_same_mean(networks: Networks) -> None:
    target = batches()[1]
    guidance = guide(
        networks.teacher,
        networks.predicted,
        target,
        make_task({"adapt.pseudo_labels.weighting": "seeds"}),
        0,
    )
    assert guidance.seeds is not None
    seeds = guidance_module.enlarge_mask(guidance.seeds, target.counted.shape[-2:])
    weights = guidance.mix_weights
    assert (weights[~seeds] == 0).all() and (weights[seeds & target.counted] > 0).all()
    share = guidance.pseudo.certain_share
    torch.testing.assert_close(weights[target.counted].mean(), share)
    assert (guidance.pseudo.weights[target.counted] == share).all()


def test_the_ensemble_may_be_the_resolutions(networks: Networks) -> None:
    target = batches()[1]
    draws = generators(0, "test", 0, 2)
    masks = networks.teacher.draw_masks(3, draws)
    with torch.no_grad():
        prediction = networks.teacher.predict(target.images, masks)
    assert guidance_module.ensemble(prediction, "dropout").shape[0] == 3
    if networks.teacher.detail is None:
        return
    assert guidance_module.ensemble(prediction, "both").shape[0] == 6
    members = guidance_module.ensemble(prediction, "resolutions")
    assert members.shape == (3, *prediction.logits.shape)
    overrides = {
        "adapt.uncertainty.members": "resolutions",
        "adapt.uncertainty.statistic": "mutual_information",
        "images.crop": [128, 64],
        "model.detail": [64, 32],
    }
    networks.teacher.dropout = 0.0
    guidance = guide(networks.teacher, networks.predicted, target, make_task(overrides), 0)
    assert guidance.uncertainty is not None and guidance.seeds is not None
    assert (guidance.uncertainty > 1e-4).float().mean() > 0.5 and guidance.seeds.any()


def test_the_weight_of_the_target_losses_scales_them(networks: Networks) -> None:
    alone = {"adapt.losses.mix": 0.0}
    without = step_gradient(networks, alone | {"adapt.losses.target": 0.0})
    small = step_gradient(networks, alone | {"adapt.losses.target": 0.1}) - without
    large = step_gradient(networks, alone | {"adapt.losses.target": 0.2}) - without
    torch.testing.assert_close(2 * small, large, rtol=1e-3, atol=1e-5)


def test_a_batch_without_any_certain_pixel_or_seed_is_finite(networks: Networks) -> None:
    overrides = {
        "adapt.pseudo_labels.confidence_threshold": 1.0,
        "adapt.seeds.min_pixels": 10**5,
    }
    report = joint_step(networks, *batches(), make_task(overrides), 0)
    assert report.scalars["seeds"] == 0
    assert gradient(networks.student).isfinite().all()


def test_a_look_shows_what_the_step_works_with_and_changes_nothing(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = batches()
    task = make_task()
    seen: dict[str, torch.Tensor] = {}
    observe = Segmenter.observe

    def watch(self: Segmenter, images: torch.Tensor, *others: Any) -> Any:
        seen["last images"] = images
        return observe(self, images, *others)

    monkeypatch.setattr(Segmenter, "observe", watch)
    report = joint_step(networks, source, target, task, step=3)
    before = gradient(networks.student)
    states = [copy.deepcopy(n.state_dict()) for n in (networks.student, networks.teacher)]
    random = torch.random.get_rng_state()
    shown = look(networks, source, target, task, step=3)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(gradient(networks.student), before) and networks.student.training
    for network, state in zip((networks.student, networks.teacher), states, strict=True):
        for name, values in network.state_dict().items():
            assert torch.equal(values, state[name]), name

    assert torch.equal(shown["target image"], target.images)
    assert torch.equal(shown["mixed image"], seen["last images"])  # mixing is the step's last pass
    guidance = guide(networks.teacher, networks.predicted, target, task, step=3)
    assert torch.equal(shown["pseudo labels (teacher)"], guidance.pseudo.labels)
    seeds = shown["seeds (teacher)"] != IGNORE
    assert torch.equal(shown["seeds (teacher)"][seeds], shown["pseudo labels (teacher)"][seeds])
    assert float(seeds.float().mean()) == pytest.approx(float(report.scalars["seeds"]), abs=0.02)
    assert (
        shown["uncertainty (teacher)"].shape == seeds.shape
        and shown["uncertainty (teacher)"].std() > 0
    )
    pasted = shown["mixed labels"] == source.labels
    kept = shown["mixed labels"] == shown["pseudo labels (teacher)"]
    assert (pasted | kept).all() and not pasted.all() and not kept.all()
    assert shown["prediction (student)"].max() < CLASSES


def test_a_look_leaves_out_what_is_off(networks: Networks) -> None:
    assert list(look(networks, *batches(), make_task(OFF), step=0)) == [
        "target image",
        "pseudo labels (teacher)",
        "prediction (student)",
    ]


def test_a_class_that_the_source_never_shows_is_finite_and_may_have_seeds(
    networks: Networks,
) -> None:
    frequencies = torch.linspace(1, 20, CLASSES)
    frequencies[5] = 0.0
    source, target = batches()
    source.labels[source.labels == 5] = IGNORE
    task = dataclasses.replace(make_task(), class_frequencies=frequencies)
    assert task.ratios[5] == 1.0
    report = joint_step(networks, source, target, task, 0)
    scalars = [*report.losses.values(), *report.scalars.values()]  # of no pixel: no share
    assert report.scalars["seeds"] > 0 and torch.stack(scalars).isfinite().all()
    assert gradient(networks.student).isfinite().all()


WITHOUT_ORDER = {
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "_upsample_bilinear2d_aa_backward",
    "_upsample_bicubic2d_aa_backward",
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward",
    "max_unpool2d",
    "reflection_pad2d_backward",
    "grid_sampler_2d_backward",
    "_ctc_loss_backward",
    "put_",
    "histc",
    "median",
    "kthvalue",
    "scatter_reduce",
    "index_reduce",
}
"""Operations that raise on CUDA where bits are to be equal, as torch.use_deterministic_algorithms
lists them, and two that take arguments: see `Walk`."""


class Walk(TorchDispatchMode):
    """Notes every operation of these that runs inside, gradients included."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("nll_loss_forward", "nll_loss2d_forward") and args[3] != 0:
            self.found.add("nll_loss that is summed")
        if name == "bincount" and len(args) > 1 and args[1] is not None:
            self.found.add("bincount with weights")
        self.found |= {name} & WITHOUT_ORDER
        return func(*args, **(kwargs or {}))


def test_no_operation_of_a_step_is_without_order_on_cuda(networks: Networks) -> None:
    with Walk() as walk:  # it finds what there is
        values = torch.rand(1, 2, 4, 4, requires_grad=True)
        torch.nn.functional.interpolate(values, (8, 8), mode="bilinear").sum().backward()
        torch.nn.functional.cross_entropy(values, torch.zeros(1, 4, 4, dtype=torch.int64))
    assert walk.found == {"upsample_bilinear2d_backward", "nll_loss that is summed"}
    torch.use_deterministic_algorithms(True)
    try:
        with Walk() as walk:
            step_gradient(networks, {"adapt.losses.masked": 1.0, "adapt.losses.target": 1.0})
    finally:
        torch.use_deterministic_algorithms(False)
    assert walk.found == set()


@pytest.mark.parametrize(
    "model",
    [
        {"model.encoder": "vit_small_patch16_dinov3", "model.drop_path": 0.1},
        {"model.encoder": "resnet18d", "model.head": "deeplabv2"},
        {"model.encoder": "mit_b0", "model.drop_path": 0.1},
    ],
)
def test_no_operation_of_another_network_is_without_order_on_cuda(model: dict[str, Any]) -> None:
    student = Segmenter(make_model(SMALL | model), CLASSES).train()
    with Walk() as walk:
        see(student, torch.rand(2, 3, 64, 128)).logits.square().mean().backward()
    assert walk.found == set()
