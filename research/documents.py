"""Write what the studies found into the documents: python -m research.documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from pipeline.drawing.tables import fill_documents
from research.ablation import RUNS, Result, read_results
from research.baselines import OURS
from research.baselines import RUNS as BASELINE_RUNS
from research.summary import (
    BY_CLASS,
    Estimate,
    estimate,
    gap_closure,
    gap_table,
    rows,
    variants_table,
    with_deviation,
    with_interval,
)
from research.targets import CITIES
from ssda.sections import parse_json

PHOTOGRAPHS = Path("research/results/photographs.jsonl")
SCORES = Path("metrics/evaluate.json")


def figures() -> dict[str, str]:
    """Each figure's name, and what the documents say there, in Markdown.

    Names are those of `figures_of`, behind `photographs` or `methods` where they are of these;
    `run`, network and score for the default run of the pipeline.
    """
    found = figures_of(read_results(RUNS), "full")
    photographs = read_results(PHOTOGRAPHS)
    preset = [run for run in photographs if (run.setting, run.target) == ("default", "camvid")]
    others = [run for run in photographs if run not in preset]
    shown = figures_of(preset, "reliable") | figures_of(others, "anchor_start")
    found |= {f"photographs {name}": text for name, text in shown.items()}
    methods = figures_of(read_results(BASELINE_RUNS), OURS)
    found |= {f"methods {name}": text for name, text in methods.items()}
    for network, scores in parse_json(SCORES.read_bytes(), str(SCORES)).items():
        if isinstance(scores, dict):
            found |= {
                f"run {network} {score}": f"{value:.1f}"
                for score, value in scores.items()
                if isinstance(value, float)
            }
    return found


def figures_of(results: Sequence[Result], reference: str) -> dict[str, str]:
    """Figures of runs; differences are to the reference, state by state.

    Names are setting, target and `variants`, `gap` or `drift` for the tables; setting, target,
    variant and what is told of it.
    """
    found: dict[str, str] = {}
    for setting, target in sorted({(run.setting, run.target) for run in results}):
        runs = [run for run in results if (run.setting, run.target) == (setting, target)]
        found[f"{setting} {target} variants"] = variants_table(runs, reference)
        found[f"{setting} {target} gap"] = gap_table(runs) or "-"
        if target in CITIES:  # of road and sidewalk, which are the first of its classes
            found[f"{setting} {target} drift"] = _drift(runs)
        for row in rows(runs, reference):
            told = {
                "mean": f"{row.test.mean:.1f}",
                "deviation": f"{row.test.deviation or 0.0:.1f}",
                "test": with_deviation(row.test),
                "difference": with_interval(row.test_difference),
                "validation difference": with_interval(row.validation_difference),
                "behind": with_interval(_negative(row.test_difference)),
                "validation behind": with_interval(_negative(row.validation_difference)),
                "states": str(row.test.states),
            }
            if closed := gap_closure(runs, row.variant):
                told["closed"] = f"{closed.mean:.0%}"
            name = f"{setting} {target} {row.variant}"
            found |= {f"{name} {what}": text for what, text in told.items()}
    return found


def _negative(difference: Estimate | None) -> Estimate | None:
    """How far a variant is behind the reference."""
    return difference and replace(difference, mean=-difference.mean)


def _drift(results: Sequence[Result]) -> str:
    """Markdown: IoU of the two classes that are taken for each other, and of all others."""
    lines = [
        "| variant | road | sidewalk | mean of the others | mIoU | states |",
        "| --- " * 6 + "|",
    ]
    for variant in BY_CLASS:
        runs = [run.test for run in results if run.variant == variant]
        if not runs:
            continue
        others = [fmean(iou for iou in run.iou[2:] if iou is not None) for run in runs]
        columns = [[run.iou[i] or 0.0 for run in runs] for i in (0, 1)]
        columns += [others, [run.miou for run in runs]]
        cells = [with_deviation(estimate(values)) for values in columns]
        lines.append(f"| `{variant}` | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    fill_documents("research", figures())
