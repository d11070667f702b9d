"""What does a joint step ask of a GPU? Counted on one that is not there.

Operators that it launches, copies to another type among them, floating-point operations and how
many of them are in bfloat16, the largest tensor, and each line at which the host waits: at each
preset's own crop, the second step.

    python -m benchmarks.counts [NAME ...]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.fake_cuda import CUDA, FakeCuda, Seen, fake_cuda, move
from benchmarks.made_up import convert_game, write_game
from benchmarks.measure import results_so_far
from benchmarks.presets import PRESETS
from pipeline.overlays import load_preset
from ssda.datasets.index import Index
from ssda.engine.adapting import adapt_steps, projector_of
from ssda.engine.device import pick_precision
from ssda.engine.training import StepRecord
from ssda.files import write_json
from ssda.labels import CITYSCAPES
from ssda.method.adaptation import Networks
from ssda.method.subdomains import PredictedShares
from ssda.method.teacher import frozen
from ssda.networks.encoders import Encoder
from ssda.networks.segmenter import Segmenter
from ssda.params import Margins, Params
from ssda.sections import changed


@dataclass(frozen=True)
class Counted:
    """A joint step on a GPU that is not there.

    Attributes:
        networks: after the step.
        record: what the step told.
        seen: what it asked of the GPU.
    """

    networks: Networks
    record: StepRecord
    seen: Seen


def count_step(params: Params, images: Index, gpu: FakeCuda) -> Counted:
    """The second joint step over a labelled set, which is source and target both.

    The first one also makes what is kept for all steps.
    """
    networks = fake_networks(params)
    margins = Margins(top=0, bottom=0, left=0, right=0)
    changes = {"runtime.workers": 0, "runtime.picture_every": 0, "sampling.min_pixels": 0}
    params = changed(params, changes | {"adapt.margins": margins})
    steps = adapt_steps(networks, [images], images, params, CITYSCAPES)
    next(steps)
    gpu.seen = Seen()
    return Counted(networks, next(steps), gpu.seen)


def fake_networks(params: Params) -> Networks:
    """What `start_networks` gives, without weights and new statistics."""
    with torch.device("meta"):
        student, teacher = (Segmenter(params.model, CITYSCAPES.num_classes) for _ in range(2))
        imagenet = Encoder(params.model) if params.adapt.losses.feature_distance > 0 else None
        predicted = PredictedShares(CITYSCAPES.num_classes)
        projector = projector_of(student, params)
    teacher.requires_grad_(False)
    encoder = None if imagenet is None else frozen(imagenet)
    for module in (student, teacher, encoder, predicted, projector):
        if module is not None:
            move(module)
    precision = pick_precision(params.compute.precision, CUDA)
    for each in (student.encoder, teacher.encoder, encoder):
        if each is not None:
            each.precision = precision
    if encoder is not None:
        encoder.keep_cast()
    return Networks(student.train(), teacher.eval(), encoder, predicted, projector)


def made_up_images(folder: Path, count: int, size: tuple[int, int]) -> Index:
    """Labelled images of (width, height)."""
    return convert_game(write_game(folder / "raw", count, size), folder / "converted")


def main() -> None:
    """Count, print the table and the waits, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", default=PRESETS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/counts.json"))
    arguments = parser.parse_args()
    results = results_so_far(arguments.out)
    print("| preset | operators | casts | waits | TFLOP | of it bf16 | largest tensor |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.names:
        params = load_preset(name)
        with TemporaryDirectory() as folder:
            images = made_up_images(Path(folder), 4, params.images.crop)
            with fake_cuda() as gpu:
                seen = count_step(params, images, gpu).seen
        results[name] = vars(seen)
        print(
            f"| {name} | {sum(seen.calls.values())} | {seen.casts} | {sum(seen.waits.values())} "
            f"| {sum(seen.flops.values()) / 1e12:.2f} | {seen.share(torch.bfloat16):.1%} "
            f"| {seen.largest[0] / 1e6:.0f} MB, {seen.largest[1]} |",
            flush=True,
        )
        for wait, count in seen.waits.most_common():
            print(f"    {count} x {wait}", flush=True)
    write_json(arguments.out, results)


if __name__ == "__main__":
    main()
