"""What the parts share: where they compute, clocks, made-up batches, a training loop."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.step import (
    Setting,
    certain,
    create_setting,
    made_up_batches,
    made_up_task,
    reduced,
)
from pipeline.overlays import load_preset
from ssda.datasets.batches import SourceBatch, TargetBatch
from ssda.engine.device import set_up
from ssda.engine.training import Progress, StepRecord, create_optimiser, train
from ssda.method.adaptation import follow_student, joint_step
from ssda.method.learning import Report
from ssda.params import Margins, Params
from ssda.sections import changed

SMALL = os.environ.get("SMALL") == "1"
ON_CARD = torch.cuda.is_available() and not SMALL
DEVICE = torch.device("cuda:0" if ON_CARD else "cpu")
LITTLE = {
    "gta_resnet101": "resnet18",
    "gta_mit_b5": "mit_b0",
    "gta_dinov3_l": "vit_small_patch16_dinov3.lvd1689m",
}
"""Encoders of a rehearsal."""
NO_MARGINS = Margins(top=0, bottom=0, left=0, right=0)


def seconds_left() -> float:
    """Until the part is stopped."""
    return float(os.environ.get("GPU_UNTIL", "inf")) - time.time()


def wait() -> None:
    """Wait for the card."""
    if ON_CARD:
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], rounds: int = 20) -> float:
    """Median milliseconds, by events on a card; it runs three times before."""
    for _ in range(1 if SMALL else 3):
        work()
    taken: list[float] = []
    for _ in range(2 if SMALL else rounds):
        wait()
        if ON_CARD:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            last.synchronize()
            taken.append(first.elapsed_time(last))
        else:
            started = time.perf_counter()
            work()
            taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken)


def preset(name: str, crop: int | None = None) -> Params:
    """A preset for random weights: every pseudo label counts; in a rehearsal it is little.

    Where a step has micro-batches it is a step of one of them.
    """
    params = load_preset(name)
    if params.adapt.micro_batch_size is not None:
        params = changed(params, {"adapt.batch_size": params.adapt.micro_batch_size})
    if SMALL:
        encoder = LITTLE.get(name, params.model.encoder)
        little = {"model.encoder": encoder, "model.channels": 16, "sampling.min_pixels": 1}
        params, crop = changed(params, little | {"adapt.margins": NO_MARGINS}), 64
    params = changed(params, {"runtime.device": DEVICE.type})
    return certain(params) if crop is None else reduced(params, crop)


def prepared(params: Params) -> Setting:
    """Networks without training on the device, which computes as params say."""
    set_up(DEVICE, params.compute)
    return create_setting(params)


def steps(setting: Setting, progress: Progress | None = None) -> Iterator[StepRecord]:
    """The training loop over made-up batches, as adaptation drives it."""
    params, networks = setting.params, setting.networks
    settings, student = params.adapt, networks.student
    progress = progress or Progress(
        create_optimiser(student, settings.optimiser, networks.projector), 0
    )
    task = made_up_task(params, student.device)

    def add_gradients(batch: tuple[SourceBatch, TargetBatch], step: int) -> Report:
        source, target = batch[0].to(student.device), batch[1].to(student.device)
        return joint_step(networks, source, target, task, step)

    return train(
        student,
        settings.optimiser,
        settings.iterations,
        made_up_batches(params, progress.steps),
        add_gradients,
        follow_student(networks, settings.teacher_momentum),
        progress=progress,
        files=lambda step: [],
        compiled=params.compute.compile,
    )


def median_step(records: Iterator[StepRecord], count: int) -> float:
    """Median milliseconds of the next steps, each to the one wait that it has."""
    return 1e3 * statistics.median(next(records).cost.seconds for _ in range(count))
