"""Write what the studies found into the documents: python -m research.documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.drawing.tables import fill_documents
from research.ablation import RUNS, Result, read_results
from research.summary import (
    gap_closure,
    gap_table,
    rows,
    variants_table,
    with_deviation,
    with_interval,
)
from ssda.sections import parse_json

REFERENCE = "full"
SCORES = Path("metrics/evaluate.json")


def figures(results: Sequence[Result]) -> dict[str, str]:
    """Each figure's name, and what the documents say there, in Markdown.

    Names are setting, target and `variants` or `gap` for the tables; setting, target, variant and
    what is told of it; `run`, network and score for the default run of the pipeline.
    """
    found: dict[str, str] = {}
    for setting, target in sorted({(run.setting, run.target) for run in results}):
        runs = [run for run in results if (run.setting, run.target) == (setting, target)]
        found[f"{setting} {target} variants"] = variants_table(runs, REFERENCE)
        found[f"{setting} {target} gap"] = gap_table(runs) or "-"
        for row in rows(runs, REFERENCE):
            told = {
                "mean": f"{row.test.mean:.1f}",
                "deviation": f"{row.test.deviation or 0.0:.1f}",
                "test": with_deviation(row.test),
                "difference": with_interval(row.test_difference),
                "validation difference": with_interval(row.validation_difference),
                "states": str(row.test.states),
            }
            if closed := gap_closure(runs, row.variant):
                told["closed"] = f"{closed.mean:.0%}"
            name = f"{setting} {target} {row.variant}"
            found |= {f"{name} {what}": text for what, text in told.items()}
    for network, scores in parse_json(SCORES.read_bytes(), str(SCORES)).items():
        if isinstance(scores, dict):
            found |= {
                f"run {network} {score}": f"{value:.1f}"
                for score, value in scores.items()
                if isinstance(value, float)
            }
    return found


if __name__ == "__main__":
    fill_documents("research", figures(read_results(RUNS)))
