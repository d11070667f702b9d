"""Tables and plots of the ablation's runs.

python -m research.summary
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from research.ablation import RUNS, Result, read_results
from research.tables import rounded
from research.targets import parameters
from research.variants import EVERY, VARIANTS
from ssda.files import write_atomically, write_json, write_text
from ssda.labels import load_space

SUMMARY = Path("research/results/ablation.json")
TABLES = Path("research/results/ablation.md")
PLOTS = Path("docs/ablation")
BY_CLASS = ("mixing", "paper_ratios", "full", "oracle")
"""Variants that are compared class by class."""
COMPARED = 5
"""Adapted runs of one random state from which on plots and correlations tell something."""
# 97.5 % quantile of Student's t by degrees of freedom, from 1.
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)


@dataclass(frozen=True)
class Estimate:
    """A mean over random states.

    Attributes:
        mean: of the values.
        deviation: standard deviation; None of one value.
        interval: half width of the 95 % t interval of the mean; None of one value.
        states: how many values.
    """

    mean: float
    deviation: float | None
    interval: float | None
    states: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, deviation and interval of at least one value."""
    count = len(values)
    mean = statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, None, 1)
    deviation = statistics.stdev(values)
    quantile = T_QUANTILES[min(count - 1, len(T_QUANTILES)) - 1]
    return Estimate(mean, deviation, quantile * deviation / math.sqrt(count), count)


@dataclass(frozen=True)
class Row:
    """A variant in a setting; differences are to the reference, state by state."""

    variant: str
    validation: Estimate | None
    validation_difference: Estimate | None
    test: Estimate
    test_difference: Estimate | None


def rows(results: Sequence[Result], reference: str) -> list[Row]:
    """A row a variant, in the order of EVERY; all results are of one setting and target."""
    table: list[Row] = []
    base = {result.random_state: result for result in results if result.variant == reference}
    for variant in EVERY:
        runs = [result for result in results if result.variant == variant]
        if not runs:
            continue
        pairs = [(run, base[run.random_state]) for run in runs if run.random_state in base]
        if variant == reference:
            pairs = []
        scored = [run.validation.miou for run in runs if run.validation]
        table.append(
            Row(
                variant,
                estimate(scored) if scored else None,
                _difference(pairs, _validation),
                estimate([run.test.miou for run in runs]),
                _difference(pairs, _test),
            )
        )
    return table


def gap_closure(results: Sequence[Result], variant: str) -> Estimate | None:
    """Share of the gap that a variant closes on the test split.

    (variant - source_longer) / (oracle - source_longer), all trained for as many steps, over the
    random states that have all three; None without any.
    """
    scores = {(run.variant, run.random_state): run.test.miou for run in results}
    closed = [
        (scores[variant, state] - scores["source_longer", state])
        / (scores["oracle", state] - scores["source_longer", state])
        for state in states_with(results, (variant, "source_longer", "oracle"))
    ]
    return estimate(closed) if closed else None


def states_with(results: Sequence[Result], variants: Sequence[str]) -> list[int]:
    """The random states that have all the variants, sorted."""
    there = {(run.variant, run.random_state) for run in results}
    states = sorted({run.random_state for run in results})
    return [state for state in states if all((name, state) in there for name in variants)]


@dataclass(frozen=True)
class Correlation:
    """How an indicator goes with the score on the test split: rank correlations.

    Attributes:
        indicator: its name.
        runs: over all runs that were adapted.
        within_states: mean over random states of that over the state's adapted runs; it is what a
            user faces who compares settings.
        everything: over all runs, those without adaptation too.
    """

    indicator: str
    runs: float
    within_states: float
    everything: float


def correlations(results: Sequence[Result]) -> list[Correlation]:
    """The indicators, the strongest within states first; for reference validation mIoU too."""
    names = list(results[0].indicators)
    adapted = [result for result in results if EVERY[result.variant].training == "adapt"]
    table: list[Correlation] = []
    for name in [*names, "validation mIoU (needs labels)"]:

        def value(result: Result, name: str = name) -> float:
            if name in result.indicators:
                return result.indicators[name]
            return result.validation.miou if result.validation else math.nan

        states = sorted({result.random_state for result in adapted})
        within = [
            correlation
            for state in states
            if not math.isnan(
                correlation := _rank_correlation(
                    [r for r in adapted if r.random_state == state], value
                )
            )
        ]
        table.append(
            Correlation(
                name,
                _rank_correlation(adapted, value),
                statistics.fmean(within) if within else math.nan,
                _rank_correlation(results, value),
            )
        )
    return sorted(table, key=lambda row: -abs(row.within_states))


def _rank_correlation(results: Sequence[Result], value: Callable[[Result], float]) -> float:
    """Spearman's; NaN of fewer than 3 runs."""
    if len(results) < 3:
        return math.nan
    pairs = np.array([(value(result), result.test.miou) for result in results])
    ranks = pairs.argsort(axis=0).argsort(axis=0)
    return statistics.correlation(ranks[:, 0].tolist(), ranks[:, 1].tolist())


def _validation(result: Result) -> float | None:
    return result.validation.miou if result.validation else None


def _test(result: Result) -> float | None:
    return result.test.miou


def _difference(
    pairs: Sequence[tuple[Result, Result]], value: Callable[[Result], float | None]
) -> Estimate | None:
    differences = [
        ours - theirs
        for run, base in pairs
        if (ours := value(run)) is not None and (theirs := value(base)) is not None
    ]
    return estimate(differences) if differences else None


def markdown(title: str, results: Sequence[Result], reference: str) -> str:
    """A setting's table, and what of the gap is closed."""
    lines = [
        f"## {title}",
        "",
        f"mIoU in per cent ± standard deviation over random states; differences to `{reference}` "
        "state by state ± half the 95 % t interval.",
        "",
        variants_table(results, reference),
    ]
    if closed := gap_table(results):
        lines += ["", "Share of the gap closed on the test split:", "", closed]
    return "\n".join(lines) + "\n"


def variants_table(results: Sequence[Result], reference: str) -> str:
    """Markdown: scores of each variant and its differences to the reference."""
    lines = [
        "| variant | what | validation | difference | test | difference | states |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows(results, reference):
        cells = (
            f"`{row.variant}`",
            EVERY[row.variant].says,
            with_deviation(row.validation),
            with_interval(row.validation_difference),
            with_deviation(row.test),
            with_interval(row.test_difference),
            str(row.test.states),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gap_table(results: Sequence[Result]) -> str | None:
    """Markdown: the share of the gap that each variant closes on the test split."""
    closures = {
        name: closed
        for name, variant in EVERY.items()
        if variant.training in ("statistics", "adapt", "then_labelled")
        and (closed := gap_closure(results, name)) is not None
    }
    if not closures:
        return None
    lines = ["| variant | closed | states |", "| --- | --- | --- |"]
    lines += [
        f"| `{name}` | {closed.mean:.0%} | {closed.states} |" for name, closed in closures.items()
    ]
    return "\n".join(lines)


def class_table(
    results: Sequence[Result], variants: Sequence[str], names: Sequence[str]
) -> str | None:
    """Markdown: IoU of each class on the test split.

    Over the random states that have all the variants; None without any.
    """
    runs = {(run.variant, run.random_state): run.test for run in results}
    states = states_with(results, variants)
    if not states:
        return None
    lines = [
        f"IoU on the test split in per cent ± standard deviation, {len(states)} random states:",
        "",
        f"| class | {' | '.join(f'`{variant}`' for variant in variants)} |",
        "| --- |" + " --- |" * len(variants),
    ]
    for index, name in enumerate(names):
        cells: list[str] = []
        for variant in variants:
            values = [runs[variant, state].iou[index] for state in states]
            known = [value for value in values if value is not None]
            cells.append(with_deviation(estimate(known) if known else None))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def correlation_table(results: Sequence[Result]) -> str:
    """Markdown."""
    lines = [
        "## Label-free indicators",
        "",
        f"Spearman's rank correlation with mIoU on the test split, over {len(results)} runs.",
        "",
        "| indicator | within a random state | adapted runs | all runs |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.indicator} | {row.within_states:+.2f} | {row.runs:+.2f} | {row.everything:+.2f} |"
        for row in correlations(results)
    ]
    return "\n".join(lines) + "\n"


def with_deviation(value: Estimate | None) -> str:
    """A mean and its standard deviation, as text."""
    if value is None:
        return "-"
    return f"{value.mean:.1f}" + (
        f" ± {value.deviation:.1f}" if value.deviation is not None else ""
    )


def with_interval(value: Estimate | None) -> str:
    """A mean difference and half its 95 % interval, as text."""
    if value is None:
        return "-"
    half = f" ± {value.interval:.1f}" if value.interval is not None else ""
    return f"{value.mean:+.1f}{half}"


def draw_differences(path: Path, title: str, results: Sequence[Result], reference: str) -> None:
    """Paired differences on the validation split with their intervals, best on top.

    Hollow: of one random state, so without an interval.
    """
    from matplotlib import pyplot

    table = [
        (row.validation_difference, EVERY[row.variant].says)
        for row in rows(results, reference)
        if row.validation_difference and EVERY[row.variant].training == "adapt"
    ]
    table.sort(key=lambda row: row[0].mean)
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.24 * len(table)), layout="constrained")
    for height, (difference, _) in enumerate(table):
        half, face = difference.interval, "white" if difference.interval is None else "tab:blue"
        axes.errorbar(difference.mean, height, xerr=half, fmt="o", color="tab:blue", mfc=face)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(table)), [says for _, says in table], fontsize=8)
    label = "mIoU on the validation split, difference to the full method"
    axes.set_xlabel(f"{label}\n95 % interval; hollow: one random state", fontsize=8)
    axes.set_title(title, fontsize=9)
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=90))
    pyplot.close(figure)


def draw_indicator(path: Path, results: Sequence[Result], indicator: str) -> None:
    """An indicator against the score on the test split, a colour a random state."""
    from matplotlib import pyplot

    adapted = [result for result in results if EVERY[result.variant].training == "adapt"]
    figure, axes = pyplot.subplots(figsize=(4.5, 3), layout="constrained")
    axes.set_prop_cycle(color=mpl.color_sequences["tab20"])  # more states than usual colours
    for state in sorted({result.random_state for result in adapted}):
        runs = [result for result in adapted if result.random_state == state]
        axes.scatter(
            [run.indicators[indicator] for run in runs],
            [run.test.miou for run in runs],
            s=12,
            label=f"random state {state}",
        )
    axes.set_xlabel(indicator.replace("_", " "), fontsize=8)
    axes.set_ylabel("mIoU on the test split", fontsize=8)
    axes.legend(fontsize=7)
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=90))
    pyplot.close(figure)


def main() -> None:
    """Write the summary as JSON, Markdown and plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--reference", choices=VARIANTS, default="full")
    arguments = parser.parse_args()
    mpl.use("agg")
    results = read_results(arguments.runs)
    if not results:
        raise SystemExit(f"{arguments.runs}: no runs; python -m research.ablation makes them")
    texts: list[str] = []
    content: dict[str, Any] = {}
    for setting, target in sorted({(run.setting, run.target) for run in results}):
        runs = [run for run in results if (run.setting, run.target) == (setting, target)]
        title = f"Setting {setting}, target {target}"
        texts.append(markdown(title, runs, arguments.reference))
        names = load_space(parameters({}, target, 0).labels).names
        texts += filter(None, [class_table(runs, BY_CLASS, names)])
        content[f"{setting} {target}"] = {
            "commits": sorted({run.commit for run in runs}),
            "variants": {
                row.variant: rounded(asdict(row), 3) for row in rows(runs, arguments.reference)
            },
            "gap_closed": {
                name: rounded(asdict(closed), 3)
                for name in EVERY
                if (closed := gap_closure(runs, name)) is not None
            },
        }
        described = [run for run in runs if run.indicators]
        adapted = [r.random_state for r in described if EVERY[r.variant].training == "adapt"]
        if adapted and max(adapted.count(state) for state in adapted) >= COMPARED:
            texts.append(correlation_table(described))
            if len(set(adapted)) == 1:
                continue  # a plot of differences without intervals misleads
            draw_differences(PLOTS / f"{setting}-{target}.png", title, runs, "full")
            best = next(c.indicator for c in correlations(described) if "labels" not in c.indicator)
            draw_indicator(PLOTS / f"{setting}-{target}-indicator.png", described, best)
    write_json(SUMMARY, content)
    write_text(TABLES, "\n".join(texts))
    print("\n".join(texts))


if __name__ == "__main__":
    main()
