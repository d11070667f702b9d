"""Stage convert: raw folders -> data/converted (train-id labels, an index, pixels per class)."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import command
from pipeline.paths import CONVERTED, METRICS
from pipeline.splits import RawSplit, raw_splits
from ssda.datasets.conversion import convert_split, write_field_statistics
from ssda.datasets.index import Index, class_frequencies
from ssda.files import write_json
from ssda.params import Params


def convert(params: Params) -> dict[str, Any]:
    """Convert all splits or none; returns what metrics/convert.json says.

    Raises ValueError that lists the files that cannot be converted.
    """
    metrics: dict[str, Any] = {}
    sources: list[Index] = []
    unfinished = CONVERTED.with_name(CONVERTED.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for raw in raw_splits(params):
            progress = params.runtime.progress and sys.stderr.isatty()
            index = convert_raw(raw, unfinished / raw.name, progress=progress)
            domain, _, name = raw.name.partition("/")
            metrics.setdefault(domain, {})[name] = summary(index)
            if domain == "sources":
                sources.append(index)
                write_field_statistics(index, unfinished / raw.name)
        shutil.rmtree(CONVERTED, ignore_errors=True)
        unfinished.rename(CONVERTED)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    metrics["class_shares"] = class_shares(sources)
    write_json(METRICS / "convert.json", metrics)
    return metrics


def convert_raw(raw: RawSplit, out: Path, *, progress: bool = False) -> Index:
    """A split with its labels as train ids below `out`; raises what `convert_split` does."""
    return convert_split(
        raw.layout,
        raw.root,
        raw.split,
        out,
        space=raw.space,
        with_labels=raw.with_labels,
        resize=raw.resize,
        progress=progress,
    )


def summary(index: Index) -> dict[str, Any]:
    """Number of images and, for a labelled split, labels resized and the share of each class."""
    facts: dict[str, Any] = {"images": len(index.records)}
    if index.records[0].label is None:
        return facts
    return facts | {
        "labels_resized": index.labels_resized,
        "class_shares": class_shares([index]),
    }


def class_shares(indexes: Sequence[Index]) -> dict[str, float]:
    """The share of each class in the labelled pixels, by its name."""
    shares = zip(indexes[0].space.names, class_frequencies(indexes).tolist(), strict=True)
    return {name: round(share, 6) for name, share in shares}


def main(params: Params) -> None:
    """The stage: convert, and log a file of counts and class shares."""
    from pipeline.tracking.run import stage_run

    places = [f"{source.root} ({source.layout})" for source in params.sources.values()]
    target = f"{params.target.root} ({params.target.layout})"
    command.say(f"convert: labels of {', '.join([*places, target])} to {CONVERTED}")
    with stage_run("convert", params) as run:
        metrics = convert(params)
        run.artifact(METRICS / "convert.json")
    counts = [
        f"{name} {facts['images']}"
        for domain in ("sources", "target")
        for name, facts in metrics[domain].items()
    ]
    command.say(f"convert: {', '.join(counts)} images; class shares in {METRICS / 'convert.json'}")
    for raw in raw_splits(params):
        for line in raw.left_out():
            command.say(f"convert: {raw.name}: {line}")
    command.say_next("python -m pipeline.pretrain")


def run() -> None:
    """The command line."""
    options = command.stage_parser(__doc__)
    text = "write no conversion, say what it would give"
    options.add_argument("--check", action="store_true", help=text)
    text = "with --check: decode all images, to find damage"
    options.add_argument("--images", action="store_true", help=text)

    def work(arguments: Namespace) -> None:
        if not arguments.check:
            if arguments.images:
                options.error("--images needs --check")
            command.run_stage("convert", main, arguments)
            return
        from pipeline.checks.conversion import check

        check(command.read_params(arguments.params), images=arguments.images)

    command.start(options, work)


if __name__ == "__main__":
    run()
