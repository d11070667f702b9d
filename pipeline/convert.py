"""Stage convert: raw folders -> data/converted (train-id labels, an index, pixels per class)."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from pipeline import command
from pipeline.inventory import raw_splits
from pipeline.paths import CONVERTED, METRICS
from ssda.datasets.conversion import convert_split, write_field_statistics
from ssda.datasets.index import Index
from ssda.files import write_json
from ssda.params import Params


def convert(params: Params) -> dict[str, Any]:
    """Convert all splits or none; returns what metrics/convert.json says.

    Raises ValueError that lists the files that cannot be converted.
    """
    metrics: dict[str, Any] = {}
    unfinished = CONVERTED.with_name(CONVERTED.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for raw in raw_splits(params):
            index = convert_split(
                raw.layout,
                raw.root,
                raw.split,
                unfinished / raw.name,
                with_labels=raw.with_labels,
                space=raw.space,
                progress=params.runtime.progress and sys.stderr.isatty(),
            )
            domain, _, split = raw.name.partition("/")
            metrics.setdefault(domain, {})[split] = summary(index, with_labels=raw.with_labels)
            if domain == "source":
                write_field_statistics(index, index.folder)
        shutil.rmtree(CONVERTED, ignore_errors=True)
        unfinished.rename(CONVERTED)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    write_json(METRICS / "convert.json", metrics)
    return metrics


def summary(index: Index, *, with_labels: bool) -> dict[str, Any]:
    """Number of images and, for a labelled split, labels resized and the share of each class."""
    if not with_labels:
        return {"images": len(index.records)}
    shares = zip(index.space.names, index.class_frequencies.tolist(), strict=True)
    return {
        "images": len(index.records),
        "labels_resized": index.labels_resized,
        "class_shares": {name: round(share, 6) for name, share in shares},
    }


def main(params: Params) -> None:
    """The stage: convert, and log counts and class shares."""
    from pipeline.tracking import stage_run

    with stage_run("convert", params) as run:
        metrics = convert(params)
        for domain, splits in metrics.items():
            for split, facts in splits.items():
                run.metrics({f"{domain}.{split}.images": facts["images"]})
        shares = metrics["source"]["train"]["class_shares"]
        run.metrics({f"source.train.share.{name}": share for name, share in shares.items()})
        run.artifact(METRICS / "convert.json")


if __name__ == "__main__":
    command.run(main, __doc__)
