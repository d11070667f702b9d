"""Joint adaptation from a pretrained network to an adapted teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ssda.datasets.batches import SourceBatch, TargetBatch
from ssda.datasets.index import Index, class_frequencies
from ssda.datasets.loading import (
    SourceSamples,
    TargetSamples,
    batch_files,
    counted_pixels,
    evaluation_batches,
    source_batches,
    target_batches,
)
from ssda.engine.evaluation import evaluating, evenly_chosen
from ssda.engine.statistics import use_target_statistics
from ssda.engine.training import Progress, StepRecord, create_optimiser, train
from ssda.labels import LabelSpace
from ssda.method.adaptation import Networks, follow_student, joint_step, look
from ssda.method.guidance import Task, shrink_mask
from ssda.method.learning import Report
from ssda.method.subdomains import PredictedShares, label_counts
from ssda.method.teacher import create_teacher, frozen
from ssda.networks.encoders import Encoder, load_imagenet_weights
from ssda.networks.heads import create_projector
from ssda.networks.segmenter import Segmenter
from ssda.params import Params
from ssda.processes import summed
from ssda.tensors import on_device

SHARES_IMAGES = 500
"""How many target images the shares at the start are counted on, at most."""


def start_networks(student: Segmenter, target: Index, params: Params) -> Networks:
    """Student with target statistics, teacher as its copy, frozen encoder where it is asked for."""
    student.encoder.check_crop(params.images.crop)
    use_target_statistics(student, target, params)
    imagenet = None
    if params.adapt.losses.feature_distance > 0:
        imagenet = Encoder(params.model)
        imagenet.stage(params.adapt.feature_distance.stride)  # says so now where there is none
        load_imagenet_weights(imagenet, params.model)
        imagenet.precision = student.encoder.precision
        imagenet.keep_cast()
        imagenet = frozen(imagenet).to(student.device)
    predicted = PredictedShares(student.num_classes).to(student.device)
    if params.adapt.seeds.anchor == "start" and params.adapt.seeds.correction > 0:
        predicted.start.copy_(predicted_shares(student, target, params))
    teacher = create_teacher(student)
    if params.compute.compile:
        for network in (teacher, imagenet):
            if network is not None:
                network.compile()
    return Networks(student.train(), teacher, imagenet, predicted, projector_of(student, params))


def projector_of(student: Segmenter, params: Params) -> nn.Module | None:
    """What the student's features are compared behind, drawn from random_state; None: nothing."""
    settings = params.adapt.feature_distance
    if params.adapt.losses.feature_distance == 0 or settings.cells == "things":
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.random_state)
        encoder = student.encoder
        return create_projector(encoder.channels[encoder.stage(settings.stride)]).to(student.device)


@torch.inference_mode()
def predicted_shares(network: Segmenter, target: Index, params: Params) -> Tensor:
    """Share (C,) float64 of each class among the network's labels of plain target images.

    Counted on the logits' grid, without the rims that adapt.margins take away.
    """
    counts = torch.zeros(network.num_classes, dtype=torch.int64, device=network.device)
    samples = evenly_chosen(target, SHARES_IMAGES, params)
    with evaluating(network):
        for batch in evaluation_batches(
            samples, lambda _: params.runtime.evaluation_batch_size, params.runtime.workers
        ):
            logits = network(batch.images.to(network.device, non_blocking=True).float() / 255.0)
            rims = counted_pixels(tuple(batch.images.shape[-2:]), params.adapt.margins)
            counted = shrink_mask(on_device(rims, network.device).unsqueeze(0), logits.shape[-2:])
            labels = logits.argmax(1)
            counts += label_counts(labels[counted.expand_as(labels)])[: network.num_classes]
    counts = summed(counts.double())
    return counts / counts.sum()


def adapt_steps(
    networks: Networks,
    sources: Sequence[Index],
    target: Index,
    params: Params,
    space: LabelSpace,
    progress: Progress | None = None,
) -> Iterator[StepRecord]:
    """Adapt; yields a record a step. The teacher is the result.

    The last step ends with new statistics of batch normalisation, of plain target images: those
    that gathered on the way lag behind the weights and are of jittered images.

    The report of the first step and of every runtime.picture_every-th also has what `look` shows.

    Args:
        networks: as `start_networks` gives them; changed in place.
        sources: the labelled sets.
        target: the target's train split, without labels.
        params: everything.
        space: classes.
        progress: where to go on; from the start without it.
    """
    settings = params.adapt
    device = networks.student.device
    progress = progress or Progress(
        create_optimiser(networks.student, settings.optimiser, networks.projector), 0
    )
    frequencies = torch.from_numpy(class_frequencies(sources)).to(device)
    task = Task(
        settings, frequencies, space.things, params.random_state, params.source_augmentation
    )
    steps = range(progress.steps, settings.iterations)
    labelled = SourceSamples(sources, params.images, params.sampling, params.random_state, "adapt")
    unlabelled = TargetSamples(target, params.images, settings.margins, params.random_state)
    workers, pin = params.runtime.workers, device.type == "cuda"
    batches = zip(
        source_batches(labelled, steps, settings.batch_size, workers, pin=pin),
        target_batches(unlabelled, steps, settings.batch_size, workers, pin=pin),
        strict=True,
    )

    def add_gradients(batch: tuple[SourceBatch, TargetBatch], step: int) -> Report:
        source, target = batch[0].to(device), batch[1].to(device)
        report = joint_step(networks, source, target, task, step)
        every = params.runtime.picture_every
        if every and (step == 0 or (step + 1) % every == 0):
            report = replace(report, images=look(networks, source, target, task, step))
        return report

    def files(step: int) -> list[Path]:
        return [
            path
            for samples in (labelled, unlabelled)
            for path in batch_files(samples, step, settings.batch_size)
        ]

    for record in train(
        networks.student,
        settings.optimiser,
        settings.iterations,
        batches,
        add_gradients,
        follow_student(networks, settings.teacher_momentum),
        progress=progress,
        files=files,
        compiled=params.compute.compile,
    ):
        if record.step == settings.iterations - 1:
            for network in (networks.student, networks.teacher):
                use_target_statistics(network, target, params)
        yield record
