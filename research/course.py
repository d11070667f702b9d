"""What the pseudo labels are worth in the course of adaptation, measured with the target's labels.

Labels are read here to understand, never to train or to choose. Adapts anew, and every few steps
looks at a copy of the teacher: are the seeds that the method would choose right more often than
other pixels, class by class, and which classes does adaptation win or lose?

    python -m research.course paper_ratios full most_certain --state 1
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from research.ablation import job, pretrained, variant_steps
from research.diagnostics import (
    ClassOfSeeds,
    Ranking,
    classes,
    ranking,
    seed_ratios,
    views_of,
)
from research.tables import rounded
from research.targets import TARGETS, Splits, splits_of
from research.variants import SETTINGS, VARIANTS
from ssda.datasets.index import class_frequencies
from ssda.engine.adapting import start_networks
from ssda.engine.metrics import confusion_matrix, intersection_over_union
from ssda.engine.statistics import use_target_statistics
from ssda.files import write_atomically, write_json
from ssda.method.teacher import create_teacher
from ssda.networks.segmenter import Segmenter
from ssda.params import Params

RESULT = Path("research/results/course.json")
PLOT = Path("docs/ablation/course.png")
SHOWN = ("road", "sidewalk")


@dataclass(frozen=True)
class Moment:
    """The teacher after so many steps, on labelled training images of the target.

    Attributes:
        step: steps of adaptation done.
        seeds: how right seeds and other pixels are, by the statistic of the parameters.
        classes: the same class by class.
        iou: of each class, in per cent, on the logits' grid.
    """

    step: int
    seeds: Ranking
    classes: list[ClassOfSeeds]
    iou: dict[str, float]


def main() -> None:
    """Adapt, measure, write and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    adapted = [name for name, variant in VARIANTS.items() if variant.training == "adapt"]
    parser.add_argument("variants", nargs="+", choices=adapted)
    parser.add_argument("--setting", choices=SETTINGS, default="default")
    parser.add_argument("--target", choices=TARGETS, default="city")
    parser.add_argument("--state", type=int, default=0)
    parser.add_argument("--every", type=int, default=50, help="steps between two looks")
    parser.add_argument("--batches", type=int, default=12, help="of target images, a look")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--plot", type=Path, default=PLOT)
    arguments = parser.parse_args()
    mpl.use("agg")
    data = splits_of(arguments.target)
    courses: dict[str, list[Moment]] = {}
    for name in arguments.variants:
        todo = job(arguments.setting, arguments.target, name, arguments.state, data.digest)
        student = pretrained(todo.pretraining, data)
        courses[name] = course(
            student, name, data, todo.params, every=arguments.every, batches=arguments.batches
        )
        content = {
            "setting": arguments.setting,
            "target": arguments.target,
            "random_state": arguments.state,
            "images": arguments.batches * todo.params.adapt.batch_size,
            "courses": {n: [asdict(m) for m in moments] for n, moments in courses.items()},
        }
        write_json(arguments.out, rounded(content, 4))
        draw(arguments.plot, courses)


def course(
    student: Segmenter, variant: str, data: Splits, params: Params, *, every: int, batches: int
) -> list[Moment]:
    """Adapt a pretrained network as a variant does; look before the first step and every few."""
    networks = start_networks(student, data.target, params)
    frequencies = torch.from_numpy(class_frequencies([data.source]))
    moments = [moment(networks.teacher, 0, data, frequencies, params, batches)]
    for record in variant_steps(VARIANTS[variant], networks, data, params):
        step = record.step + 1
        if step % every:
            continue
        last = moment(networks.teacher, step, data, frequencies, params, batches)
        moments.append(last)
        print(
            f"{variant}, step {step}: right {last.seeds.seeds:.1f} % of the seeds, "
            f"{last.seeds.others:.1f} % of other pixels; IoU "
            + ", ".join(f"{name} {last.iou[name]:.0f}" for name in SHOWN),
            flush=True,
        )
    return moments


def moment(
    teacher: Segmenter, step: int, data: Splits, frequencies: Tensor, params: Params, batches: int
) -> Moment:
    """Measure a copy of the teacher with new statistics, as adaptation ends with."""
    network = create_teacher(teacher)
    use_target_statistics(network, data.target, params)
    views = views_of(network, data.labelled, params, batches)
    ratios = seed_ratios(views, frequencies, params)
    settings = params.adapt.uncertainty
    truth = torch.cat([view.truth for view in views])
    labels = torch.cat([view.labels for view in views])
    space = data.labelled.space
    confusion = confusion_matrix(labels, truth, num_classes=space.num_classes)
    iou = intersection_over_union(confusion).tolist()
    return Moment(
        step,
        ranking(network, views, ratios, params, settings.statistic, settings.passes),
        classes(network, views, ratios, params),
        dict(zip(space.names, iou, strict=True)),
    )


def draw(path: Path, courses: dict[str, list[Moment]]) -> None:
    """Seeds against other pixels over time and by class, for the first variant; classes' IoU."""
    from matplotlib import pyplot

    first, moments = next(iter(courses.items()))
    figure, (over_time, by_class, iou) = pyplot.subplots(
        1, 3, figsize=(13, 5), width_ratios=(3, 5, 4), layout="constrained"
    )
    steps = [moment.step for moment in moments]
    for values, label, style, colour in (
        ([m.seeds.seeds for m in moments], "seeds", "o-", "tab:blue"),
        ([m.seeds.others for m in moments], "other pixels", "s-", "tab:orange"),
        ([m.seeds.seeds_by_class for m in moments], "seeds, mean over classes", "o:", "tab:blue"),
        (
            [m.seeds.others_by_class for m in moments],
            "others, mean over classes",
            "s:",
            "tab:orange",
        ),
    ):
        over_time.plot(steps, values, style, color=colour, label=label, markersize=4)
    over_time.set_title(f"Right pseudo labels (%)\n{VARIANTS[first].says}", fontsize=9)
    over_time.set_xlabel("step of adaptation", fontsize=8)

    last = [row for row in moments[-1].classes if row.seeds_right is not None]
    for shift, shares, colour, label in (
        (-0.2, [row.seeds_right or 0 for row in last], "tab:blue", "seeds"),
        (0.2, [row.others_right or 0 for row in last], "tab:orange", "other pixels"),
    ):
        by_class.barh(
            [number + shift for number in range(len(last))],
            shares,
            height=0.4,
            color=colour,
            label=label,
        )
    by_class.set_yticks(range(len(last)), [row.name for row in last], fontsize=7)
    by_class.invert_yaxis()
    by_class.set_title(f"Right by predicted class (%), step {steps[-1]}", fontsize=9)

    for number, (name, course_of) in enumerate(courses.items()):
        for style, shown in zip(("o-", "s:"), SHOWN, strict=True):
            iou.plot(
                [moment.step for moment in course_of],
                [moment.iou[shown] for moment in course_of],
                style,
                color=f"C{number}",
                label=f"{shown}: {VARIANTS[name].says}",
                markersize=4,
            )
    iou.set_title("IoU (%) of " + " and ".join(SHOWN), fontsize=9)
    iou.set_xlabel("step of adaptation", fontsize=8)
    for axes, columns in ((over_time, 2), (by_class, 2), (iou, 1)):
        axes.legend(
            fontsize=7,
            ncols=columns,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            frameon=False,
        )
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=90))
    pyplot.close(figure)


if __name__ == "__main__":
    main()
