"""What does a joint step cost beyond the passes that no implementation can do without?

The irreducible passes: teacher forward; student forward and backward on source, mixed and target
images; frozen encoder forward. They are timed alone, with the mean of the logits as loss, in turn
with whole steps (all mechanisms on, optimiser and teacher's update included).

And what do K Monte-Carlo passes and the choice of seeds cost beyond a forward pass?

    python -m benchmarks.step
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import Answer, apart, command, interleave, peak_gib, ratio
from pipeline.overlays import load_preset
from ssda.datasets.batches import SourceBatch, TargetBatch
from ssda.engine.adapting import projector_of
from ssda.engine.device import pick_device, place
from ssda.engine.training import create_optimiser
from ssda.labels import CITYSCAPES
from ssda.method.adaptation import Networks, joint_step
from ssda.method.guidance import Task
from ssda.method.learning import Report
from ssda.method.subdomains import PredictedShares, select_seeds
from ssda.method.teacher import create_teacher, frozen, moving_average
from ssda.method.uncertainty import STATISTICS
from ssda.networks.segmenter import Segmenter, stochastic_pass
from ssda.params import Params, load_params
from ssda.randomness import generators
from ssda.sections import changed


def certain(params: Params) -> Params:
    """The same parameters with every pseudo label certain.

    The weights are random: with q = 0 the losses that it weighs would be 0.
    """
    return changed(params, {"adapt.pseudo_labels.confidence_threshold": 0.0})


def reduced(params: Params, crop: int) -> Params:
    """The same parameters at a smaller crop, for steps on a CPU; every pseudo label is certain."""
    detail = None if params.model.detail is None else (crop // 2, crop // 2)
    changes = {
        "images.crop": (crop, crop),
        "model.detail": detail,
        "adapt.batch_size": 2,
        "adapt.micro_batch_size": None,
    }
    return changed(certain(params), changes)


def describe(params: Params) -> str:
    """Network, images and crop, in words."""
    count, (width, height) = params.adapt.batch_size, params.images.crop
    scales = "" if params.model.detail is None else ", two resolutions"
    return f"{params.model.encoder}{scales}, {count} + {count} crops of {width} x {height}"


@dataclass(frozen=True)
class Setting:
    """Networks without training, and what a step takes.

    Attributes:
        params: everything.
        networks: student, teacher and frozen encoder on the device.
        source: noise of a step's size; labels in blocks, as streets have them.
        target: likewise.
    """

    params: Params
    networks: Networks
    source: SourceBatch
    target: TargetBatch


def create_setting(params: Params) -> Setting:
    """All that a step needs, on the device."""
    device = pick_device(params.runtime.device)
    torch.manual_seed(0)
    student = place(Segmenter(params.model, CITYSCAPES.num_classes), device, params.compute).train()
    pulls = params.adapt.losses.feature_distance > 0
    imagenet = frozen(copy.deepcopy(student.encoder)) if pulls else None
    source, target = next(made_up_batches(params))
    predicted = PredictedShares(CITYSCAPES.num_classes).to(device)
    projector = projector_of(student, params)
    networks = Networks(student, create_teacher(student), imagenet, predicted, projector)
    return Setting(params, networks, source.to(device), target.to(device))


def made_up_batches(params: Params, first: int = 0) -> Iterator[tuple[SourceBatch, TargetBatch]]:
    """Endless batches as a loader gives them, bytes on the CPU; batch i depends on i.

    Images are noise, labels are in blocks, as streets have them.
    """
    (width, height), count = params.images.crop, params.adapt.batch_size
    made: list[tuple[SourceBatch, TargetBatch]] = []
    for number in range(4):
        draw = torch.Generator().manual_seed(number)
        blocks = torch.randint(0, CITYSCAPES.num_classes, (count, 8, 8), generator=draw)
        labels = blocks.repeat_interleave(height // 8, 1).repeat_interleave(width // 8, 2)
        shape = (2, count, 3, height, width)
        source, target = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        counted = torch.ones(count, height, width, dtype=torch.bool)
        made.append((SourceBatch(source, labels.byte()), TargetBatch(target, counted)))
    while True:
        yield made[first % len(made)]
        first += 1


def made_up_task(params: Params, device: torch.device) -> Task:
    """A task whose classes are the more frequent in the source the later they come."""
    frequencies = torch.arange(1, CITYSCAPES.num_classes + 1, device=device)
    return Task(
        params.adapt,
        frequencies,
        CITYSCAPES.things,
        params.random_state,
        params.source_augmentation,
    )


def whole_step(setting: Setting) -> Callable[[], Report]:
    """A joint step with everything on, optimiser and teacher's update included."""
    params, networks = setting.params, setting.networks
    optimiser = create_optimiser(networks.student, params.adapt.optimiser, networks.projector)
    task = made_up_task(params, networks.student.device)
    update = moving_average(networks.teacher, networks.student, params.adapt.teacher_momentum)

    def step() -> Report:
        optimiser.zero_grad()
        report = joint_step(networks, setting.source, setting.target, task, 0)
        optimiser.step()
        update(1)
        return report

    return step


def irreducible_passes(setting: Setting) -> Callable[[], None]:
    """The passes alone."""
    networks, source, target = setting.networks, setting.source, setting.target
    draws = generators(0, "benchmark", 0, len(source.images))

    def learn(images: Tensor) -> None:
        views = stochastic_pass(networks.student, images, 1, draws)
        total = views.logits.mean()
        (total if views.detail is None else total + views.detail.mean()).backward()

    def passes() -> None:
        networks.student.zero_grad()
        with torch.no_grad():
            networks.teacher(target.images)
            if networks.imagenet is not None:
                networks.imagenet(networks.student.context(source.images))
        for images in (source.images, target.images, source.images):
            learn(images)

    return passes


def compare_steps(params: Params, rounds: int, most_seconds: float | None) -> list[Answer]:
    """Whole joint steps against the irreducible passes; seconds where they have a bar."""
    setting = create_setting(params)
    ways = {"step": whole_step(setting), "irreducible": irreducible_passes(setting)}
    seconds = interleave(ways, rounds)
    answers = [
        ratio(
            f"joint step, {describe(params)}",
            seconds,
            ("step", "irreducible"),
            "of its irreducible passes",
            bar=1.10,
            at_most=True,
            note="losses at full size, jitter, optimiser and teacher's update; docs/performance.md",
        )
    ]
    if most_seconds is not None:
        median = statistics.median(seconds["step"])
        question = f"seconds of a joint step, {describe(params)}"
        note = (
            f"its irreducible passes alone take {statistics.median(seconds['irreducible']):.1f} s"
        )
        answers.append(Answer(question, median, "s", bar=most_seconds, note=note))
    return answers


def measure_memory(params: Params, bar: float | None) -> Answer:
    """The most memory of a process that does two steps."""
    question = f"peak memory of the process, joint step, {describe(params)}"
    return Answer(question, apart(_peak_of_steps, params), "GiB", bar)


def _peak_of_steps(params: Params) -> float:
    setting = create_setting(params)
    step = whole_step(setting)
    step()
    step()
    return peak_gib(setting.networks.student.device)


@torch.inference_mode()
def compare_passes(params: Params, rounds: int) -> Answer:
    """A forward pass with K head passes, softmax and uncertainty against one without."""
    setting = create_setting(params)
    network, images = setting.networks.teacher, setting.target.images
    passes = params.adapt.uncertainty.passes
    draws = generators(0, "benchmark", 0, len(images))

    def stochastic() -> Tensor:
        masks = network.draw_masks(passes, draws)
        members = network.predict(images, masks).members
        return STATISTICS[params.adapt.uncertainty.statistic](members.softmax(2))

    def plain() -> Tensor:
        return network(images)

    return ratio(
        f"forward pass with {passes} head passes and uncertainty, {describe(params)}",
        interleave({"stochastic": stochastic, "plain": plain}, rounds),
        ("stochastic", "plain"),
        "of one forward pass",
        bar=1.15,
        at_most=True,
    )


def time_seeds(params: Params, rounds: int) -> Answer:
    """Seconds of choosing seeds among 2 x 1024 x 1024 pixels of 19 classes."""
    device = pick_device(params.runtime.device)
    drawn = torch.Generator().manual_seed(0)
    shape = (2, 1024, 1024)
    labels = torch.randint(0, 19, shape, generator=drawn).to(device)
    values = torch.rand(2, *shape, generator=drawn).to(device)
    ratios = torch.linspace(0.2, 1.0, 19).to(device)
    ways = {"seeds": lambda: select_seeds(labels, values[0], values[1], ratios)}
    seconds = interleave(ways, rounds)
    median = statistics.median(seconds["seeds"])
    question = "seeds of all classes among 2 x 1024 x 1024 pixels"
    return Answer(question, median, "s", bar=0.25, seconds=seconds)


def answers(rounds: int) -> list[Answer]:
    """Of the demo's network, and of the paper's with one resolution and with two."""
    demo = load_params()
    paper = reduced(load_preset("gta_resnet101"), 256)
    single = changed(paper, {"model.detail": None})
    fewer = max(3, rounds // 3)
    return [
        *compare_steps(demo, rounds, None),
        *compare_steps(single, fewer, None),
        *compare_steps(paper, fewer, 7.0),
        measure_memory(demo, None),
        measure_memory(paper, 2.5),
        *(compare_passes(params, rounds) for params in (demo, single, paper)),
        time_seeds(demo, rounds),
    ]


if __name__ == "__main__":
    command("step", __doc__, answers, rounds=9)
