"""Training on the source alone: the baseline, and the start of adaptation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from ssda.datasets.batches import SourceBatch
from ssda.datasets.index import Index
from ssda.datasets.loading import SourceSamples, batch_files, source_batches
from ssda.engine.training import Progress, StepRecord, create_optimiser, train
from ssda.method.learning import Loss, Report, learn
from ssda.method.losses import labelling_loss
from ssda.method.mixing import augment
from ssda.networks.encoders import load_imagenet_weights
from ssda.networks.segmenter import Segmenter
from ssda.params import Params
from ssda.randomness import generators


def imagenet_network(params: Params, num_classes: int) -> Segmenter:
    """A network with ImageNet weights in its encoder and a head drawn from random_state."""
    model = params.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.random_state)
        network = Segmenter(model, num_classes)
    network.encoder.check_crop(params.images.crop)
    load_imagenet_weights(network.encoder, model)
    return network


def pretrain_steps(
    network: Segmenter,
    sources: Sequence[Index],
    params: Params,
    progress: Progress | None = None,
) -> Iterator[StepRecord]:
    """Train on the labelled source; yields a record a step.

    Args:
        network: as `imagenet_network` gives it, on its device; changed in place.
        sources: the labelled sets.
        params: everything.
        progress: where to go on; from the start without it.
    """
    settings = params.pretrain
    device = network.device
    progress = progress or Progress(create_optimiser(network, settings.optimiser), 0)
    samples = SourceSamples(
        sources, params.images, params.sampling, params.random_state, "pretrain"
    )
    steps = range(progress.steps, settings.iterations)
    workers, pin = params.runtime.workers, device.type == "cuda"
    batches = source_batches(samples, steps, settings.batch_size, workers, pin=pin)

    def add_gradients(batch: SourceBatch, step: int) -> Report:
        dropout = generators(params.random_state, "pretrain dropout", step, len(batch.images))
        source = batch.to(device)
        terms = {"source": Loss(1.0, partial(labelling_loss, labels=source.labels))}
        draws = generators(params.random_state, "pretrain augmentation", step, len(source.images))
        images = augment(source.images, params.source_augmentation, draws)
        size = settings.micro_batch_size
        return Report(learn(network, images, dropout, terms, at_once=size, fills_statistics=True))

    network.train()
    yield from train(
        network,
        settings.optimiser,
        settings.iterations,
        batches,
        add_gradients,
        progress=progress,
        files=lambda step: batch_files(samples, step, settings.batch_size),
        compiled=params.compute.compile,
    )
