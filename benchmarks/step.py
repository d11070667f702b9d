"""What does a joint step cost beyond the passes that no implementation can do without?

The irreducible passes: teacher forward; student forward and backward on source, mixed and target
images; frozen encoder forward. They are timed alone, with the mean of the logits as loss, in turn
with whole steps (all mechanisms on, optimiser and teacher's update included).

And what do K Monte-Carlo passes and the choice of seeds cost beyond a forward pass?

    python -m benchmarks.step
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Comparison, interleave, report
from ssda.datasets.batches import SourceBatch, TargetBatch
from ssda.engine.device import pick_device
from ssda.engine.pretraining import imagenet_network
from ssda.engine.training import create_optimiser
from ssda.labels import CITYSCAPES
from ssda.method.adaptation import Networks, Task, joint_step
from ssda.method.source import frozen_encoder, mixed_precision
from ssda.method.subdomains import keep_ratios, select_seeds
from ssda.method.teacher import create_teacher, update_teacher
from ssda.method.uncertainty import STATISTICS
from ssda.params import Params, load_params
from ssda.randomness import generators


def random_batches(params: Params, device: torch.device) -> tuple[SourceBatch, TargetBatch]:
    """Noise of the size of a training step; labels in blocks, as streets have them."""
    width, height = params.images.crop
    count = params.adapt.batch_size
    drawn = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, CITYSCAPES.num_classes, (count, 4, 8), generator=drawn)
    labels = blocks.repeat_interleave(height // 4, 1).repeat_interleave(width // 8, 2)
    images = torch.rand(2, count, 3, height, width, generator=drawn)
    counted = torch.ones(count, height, width, dtype=torch.bool)
    return (
        SourceBatch(images[0].to(device), labels.to(device)),
        TargetBatch(images[1].to(device), counted.to(device)),
    )


def compare_steps(params: Params, rounds: int) -> Comparison:
    """Whole joint steps against the irreducible passes."""
    device = pick_device(params.runtime.device)
    student = imagenet_network(params, CITYSCAPES.num_classes).to(device).train()
    imagenet = frozen_encoder(copy.deepcopy(student.encoder))
    networks = Networks(student, create_teacher(student), imagenet)
    ratios = keep_ratios(torch.arange(1, 20), beta=params.adapt.uncertainty.beta).to(device)
    task = Task(params.adapt, ratios, CITYSCAPES.things, params.random_state)
    source, target = random_batches(params, device)
    optimiser = create_optimiser(student, params.adapt.optimiser)

    def learn(images: Tensor) -> None:
        with mixed_precision(images):
            logits = student(images)
        logits.float().mean().backward()

    def irreducible() -> None:
        optimiser.zero_grad()
        with torch.no_grad(), mixed_precision(target.images):
            networks.teacher(target.images)
            imagenet(source.images)
        for images in (source.images, target.images, source.images):
            learn(images)

    def step() -> None:
        optimiser.zero_grad()
        joint_step(networks, source, target, task, 0)
        optimiser.step()
        update_teacher(networks.teacher, student, 1, params.adapt.teacher_momentum)

    width, height = params.images.crop
    return Comparison(
        f"joint step, {params.model.encoder}, {params.adapt.batch_size} + "
        f"{params.adapt.batch_size} images of {width} x {height}",
        interleave({"step": step, "irreducible": irreducible}, rounds),
        ("step", "irreducible"),
        bar=1.10,
        at_most=True,
    )


@torch.inference_mode()
def compare_passes(params: Params, rounds: int) -> Comparison:
    """A forward pass with K head passes, softmax and uncertainty against one without."""
    device = pick_device(params.runtime.device)
    network = imagenet_network(params, CITYSCAPES.num_classes).to(device).eval()
    images = random_batches(params, device)[1].images
    passes = params.adapt.uncertainty.passes
    draws = generators(0, "benchmark", 0, len(images))

    def stochastic() -> Tensor:
        masks = network.draw_masks(passes, draws)
        with mixed_precision(images):
            members = network.predict(images, masks).members.softmax(2)
        return STATISTICS[params.adapt.uncertainty.statistic](members)

    def plain() -> Tensor:
        with mixed_precision(images):
            return network(images)

    return Comparison(
        f"forward pass with {passes} head passes and uncertainty, {params.model.encoder}",
        interleave({"stochastic": stochastic, "plain": plain}, rounds),
        ("stochastic", "plain"),
        bar=1.15,
        at_most=True,
    )


def time_seeds(params: Params, rounds: int) -> list[float]:
    """Seconds of choosing seeds among 2 x 1024 x 1024 pixels of 19 classes."""
    device = pick_device(params.runtime.device)
    drawn = torch.Generator().manual_seed(0)
    shape = (2, 1024, 1024)
    labels = torch.randint(0, 19, shape, generator=drawn).to(device)
    values = torch.rand(2, *shape, generator=drawn).to(device)
    ratios = torch.linspace(0.2, 1.0, 19).to(device)
    ways = {"seeds": lambda: select_seeds(labels, values[0], values[1], ratios)}
    return interleave(ways, rounds)["seeds"]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.json"))
    arguments = parser.parse_args()
    params = load_params()
    seeds = time_seeds(params, arguments.rounds)
    comparisons = [
        compare_steps(params, arguments.rounds),
        compare_passes(params, 3 * arguments.rounds),
    ]
    extra = {"seeds_of_2x1024x1024_seconds": [round(value, 4) for value in seeds]}
    report(comparisons, arguments.out, extra)
    print(f"\nseeds of 2 x 1024 x 1024 pixels: {seeds[len(seeds) // 2]:.3f} s (bar 0.25)")


if __name__ == "__main__":
    main()
