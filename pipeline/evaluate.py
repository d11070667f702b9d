"""Stage evaluate: scores and pictures on the reporting split, the one use of its labels."""

from __future__ import annotations

import math
import os
import shutil
from typing import TYPE_CHECKING, Any

from pipeline import command
from pipeline.paths import (
    ADAPTED,
    ADAPTED_SCORES,
    METRICS,
    PRETRAINED,
    STUDENT,
    TARGET_REPORT,
    TARGET_TRAIN,
)
from ssda.params import Params

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ssda.datasets.index import Index
    from ssda.labels import LabelSpace
    from ssda.networks.segmenter import Segmenter

HEADLINE = METRICS / "headline.json"
SCORES = METRICS / "evaluate.json"
CLASSES = METRICS / "iou.csv"
BARS = METRICS / "iou.png"
CONFUSION = METRICS / "confusion.csv"
MATRIX = METRICS / "confusion.png"
PICTURE = METRICS / "pictures.png"
STREETS = METRICS / "streets"
"""Of each image in the picture a folder: image, truth and adapted labels, for the report."""

SHOWN = {"source_only": "source only", "adapted": "adapted"}
"""The networks in the pictures, by their titles."""
MEANS = ("source_only", "gain", "reestimated", "student")
"""Headline numbers that are means over classes as well; MLflow shows them in one group."""


def evaluate(params: Params) -> None:
    """Score source-only, re-estimated, student and adapted network; write scores and pictures.

    Raises ValueError for a user's mistake.
    """
    import copy

    from pipeline.drawing.figures import bars, matrices, save
    from pipeline.drawing.report import WORKSPACE, page
    from pipeline.drawing.tables import write_table
    from pipeline.tracking.run import stage_run
    from pipeline.training.loop import describe
    from pipeline.training.state import remove_old_states
    from ssda.datasets.index import check_raw_files, read_index
    from ssda.engine.checkpoints import load_network
    from ssda.engine.device import pick_device, place, set_up
    from ssda.engine.evaluation import score
    from ssda.engine.statistics import use_target_statistics
    from ssda.files import write_json
    from ssda.sections import read_yaml

    remove_old_states()
    device = pick_device(params.runtime.device)
    set_up(device, params.compute)
    target = read_index(TARGET_TRAIN)
    report = read_index(TARGET_REPORT)
    label_free = read_yaml(ADAPTED_SCORES)["adapt"].get("label_free_score")
    check_raw_files(report)
    adapted, space = load_network(ADAPTED)
    networks: dict[str, Segmenter] = {}
    if params.pretrain.iterations > 0:
        networks["source_only"] = place(load_network(PRETRAINED)[0], device, params.compute)
        networks["reestimated"] = copy.deepcopy(networks["source_only"])
        use_target_statistics(networks["reestimated"], target, params)
    networks["student"] = place(load_network(STUDENT)[0], device, params.compute)
    networks["adapted"] = place(adapted, device, params.compute)
    command.say(
        f"evaluate: {len(networks)} networks on {len(report.records)} images; "
        f"{describe(adapted, params)}"
    )
    with stage_run("evaluate", params) as run:
        run.tag("device", device.type)
        found = score([*networks.values()], report, params)
        confusions = dict(zip(networks, found, strict=True))
        scores: dict[str, Any] = {"source_only": None, "reestimated": None} | {
            name: summary(confusion, space, params.evaluate.subsets)
            for name, confusion in confusions.items()
        }
        shares = {
            SHOWN[name]: row_shares(confusion)
            for name, confusion in confusions.items()
            if name in SHOWN
        }
        best = headline(scores, label_free, params.evaluate.subsets)
        run.headline({f"mIoU/{k}" if k in MEANS else k: value for k, value in best.items()})
        for name in networks:
            run.metrics({f"{name}.{key}": v for key, v in _flat(scores[name]).items()})
        means = [
            {"network": name.replace("_", " "), "mIoU": scores[name]["miou"]} for name in networks
        ]
        write_json(SCORES, {"images": len(report.records)} | scores | {"networks": means})
        write_json(HEADLINE, best)
        write_table(CLASSES, class_rows(scores, space))
        save(bars({SHOWN[n]: scores[n]["iou"] for n in SHOWN if scores[n]}), BARS)
        write_table(CONFUSION, confusion_rows(shares, space))
        save(matrices(shares, space), MATRIX)
        draw(networks, report, params, space)
        for path in (HEADLINE, SCORES, CLASSES, BARS, CONFUSION, MATRIX, PICTURE):
            run.artifact(path)
        if "DVC_STAGE" in os.environ:  # else what lies here need not belong together
            run.text(lambda: page([WORKSPACE]), "report.html")
    command.say(_line(scores, params.evaluate.subsets))
    command.say("next: make report, make table, make ui; or dvc plots show (README.md)")


def summary(confusion: torch.Tensor, space: LabelSpace, subsets: tuple[str, ...]) -> dict[str, Any]:
    """Scores in per cent; a class that the truth never shows is None."""
    from ssda.engine.metrics import intersection_over_union, mean_iou, pixel_accuracy

    shown = confusion.sum(1) > 0
    values = intersection_over_union(confusion).tolist()
    means = {"miou": mean_iou(confusion)} | {
        f"miou_{subset}": mean_iou(confusion, space.subsets[subset]) for subset in subsets
    }
    return {
        **{name: _rounded(value) for name, value in means.items()},
        "pixel_accuracy": _rounded(pixel_accuracy(confusion)),
        "iou": {
            name: _rounded(value) if there else None
            for name, value, there in zip(space.names, values, shown.tolist(), strict=True)
        },
    }


def headline(
    scores: dict[str, Any], label_free: float | None, subsets: tuple[str, ...]
) -> dict[str, float | None]:
    """The numbers that experiments are compared by; those of a network that is not there are None.

    Args:
        scores: {network: its `summary`, or None}.
        label_free: the adapted network's label-free score.
        subsets: of classes; means are over the first, as the curves are, or else over all.
    """
    key = _mean(subsets)
    adapted, before, reestimated, student = (
        (scores[name] or {}).get(key)
        for name in ("adapted", "source_only", "reestimated", "student")
    )
    return {
        "mIoU": adapted,
        "source_only": before,
        "gain": None if adapted is None or before is None else round(adapted - before, 2),
        "reestimated": reestimated,
        "student": student,
        "pixel_accuracy": scores["adapted"]["pixel_accuracy"],
        "label_free_score": label_free,
    }


def class_rows(scores: dict[str, Any], space: LabelSpace) -> list[dict[str, float | str]]:
    """A row for each class with the IoU of each network; a class never shown has none."""
    there = {name: value["iou"] for name, value in scores.items() if value is not None}
    return [
        {"class": name}
        | {network: iou[name] for network, iou in there.items() if iou[name] is not None}
        for name in space.names
    ]


def row_shares(confusion: torch.Tensor) -> torch.Tensor:
    """What the pixels of each class (rows) are taken for, in per cent; NaN where there are none."""
    return 100.0 * confusion.double() / confusion.sum(1, keepdim=True)


def confusion_rows(
    shares: dict[str, torch.Tensor], space: LabelSpace
) -> list[dict[str, float | str]]:
    """A row for each network, class of the truth that occurs, and predicted class."""
    return [
        {"network": name, "truth": truth, "prediction": prediction, "share": round(share, 2)}
        for name, matrix in shares.items()
        for truth, row in zip(space.names, matrix.tolist(), strict=True)
        for prediction, share in zip(space.names, row, strict=True)
        if not math.isnan(share)
    ]


def draw(networks: dict[str, Segmenter], report: Index, params: Params, space: LabelSpace) -> None:
    """The picture: input, truth, predictions and the adapted network's uncertainty; the streets."""
    from pipeline.drawing.figures import grid, save, save_small
    from ssda.datasets.loading import EvaluationSamples
    from ssda.engine.evaluation import predict_labels, predict_uncertainty

    samples = EvaluationSamples(report, params.images.target_size)
    count = min(params.evaluate.pictures, len(samples))
    shown = {name: title for name, title in SHOWN.items() if name in networks}
    view: dict[str, Any] = {
        "windows": params.evaluate.windows,
        "per_pass": params.runtime.evaluation_batch_size,
        "flip": params.evaluate.flip,
    }
    passes, random_state = params.evaluate.passes, params.random_state
    rows: list[list[np.ndarray]] = []
    shutil.rmtree(STREETS, ignore_errors=True)
    for i in range(0, len(samples), max(1, len(samples) // count))[:count]:
        image, label = samples[i]
        assert label is not None
        size, alone = label.shape, image.unsqueeze(0)
        labels = [predict_labels(networks[name], image, size, **view).numpy() for name in shown]
        network = networks["adapted"]
        _, found = predict_uncertainty(network, alone, size, passes, random_state, **view)
        rows.append([image.permute(1, 2, 0).numpy(), label.numpy(), *labels, found[0].numpy()])
        street = STREETS / report.records[i].name.replace("/", "_")
        for name, shown_as in zip(("image", "truth"), rows[-1], strict=False):
            save_small(shown_as, street / f"{name}.png", space)
        save_small(labels[-1], street / "adapted.png", space)
    titles = ["target image", "truth", *shown.values(), "uncertainty"]
    save(grid(titles, rows, space), PICTURE)


def _flat(values: dict[str, Any]) -> dict[str, float | None]:
    flat = {f"iou.{name}": value for name, value in values["iou"].items()}
    return flat | {name: value for name, value in values.items() if name != "iou"}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _mean(subsets: tuple[str, ...]) -> str:
    return f"miou_{subsets[0]}" if subsets else "miou"


def _line(scores: dict[str, Any], subsets: tuple[str, ...]) -> str:
    key = _mean(subsets)
    parts = [
        f"{name.replace('_', ' ')} {'-' if value[key] is None else format(value[key], '.1f')}"
        for name, value in scores.items()
        if value is not None
    ]
    title = key.replace("miou", "mIoU").replace("_", " ")
    return f"evaluate: {title}: {', '.join(parts)}; table in {SCORES}, pictures in {PICTURE}"


if __name__ == "__main__":
    command.run("evaluate", evaluate, __doc__)
