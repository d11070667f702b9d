"""Stage convert: raw folders -> data/converted (train-id labels, an index, pixels per class)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipeline import command
from pipeline.inventory import raw_splits
from ssda.datasets.conversion import convert_split, write_field_statistics
from ssda.datasets.index import Index, write_text
from ssda.labels import CITYSCAPES
from ssda.params import Params

CONVERTED = Path("data/converted")
METRICS = Path("metrics/convert.json")


def convert(params: Params) -> dict[str, Any]:
    """Convert all splits; returns what metrics/convert.json says.

    Raises ValueError that lists the files that cannot be converted.
    """
    metrics: dict[str, Any] = {}
    for raw in raw_splits(params):
        index = convert_split(
            raw.layout,
            raw.root,
            raw.split,
            CONVERTED / raw.name,
            with_labels=raw.with_labels,
            num_classes=CITYSCAPES.num_classes,
            progress=params.runtime.progress and sys.stderr.isatty(),
        )
        domain, _, split = raw.name.partition("/")
        metrics.setdefault(domain, {})[split] = summary(index, with_labels=raw.with_labels)
        if domain == "source":
            write_field_statistics(index, index.folder)
    write_text(METRICS, json.dumps(metrics, indent=2) + "\n")
    return metrics


def summary(index: Index, *, with_labels: bool) -> dict[str, Any]:
    """Number of images and, for a labelled split, labels resized and the share of each class."""
    if not with_labels:
        return {"images": len(index.records)}
    shares = zip(CITYSCAPES.names, index.class_frequencies.tolist(), strict=True)
    return {
        "images": len(index.records),
        "labels_resized": index.labels_resized,
        "class_shares": {name: round(share, 6) for name, share in shares},
    }


if __name__ == "__main__":
    command.run(convert, __doc__)
