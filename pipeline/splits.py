"""The raw splits that the parameters name: what is inventoried, checked and converted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssda.datasets.layouts import Layout, check_classes, left_out, load_layout
from ssda.files import check_names
from ssda.labels import LabelSpace, load_space
from ssda.params import Params, Size, Source, Target


@dataclass(frozen=True)
class RawSplit:
    """A raw split that the pipeline reads."""

    name: str
    """Where it goes below data/converted, such as `target/train`."""
    layout: Layout
    root: Path
    split: str
    space: LabelSpace
    with_labels: bool
    resize: Size | None

    def left_out(self) -> list[str]:
        """Lines on what lies beside its images and labels."""
        return left_out(self.layout, self.root, self.split, with_labels=self.with_labels)


def raw_splits(params: Params) -> list[RawSplit]:
    """The sources and the target's splits; labels of its training split are never read.

    Raises ValueError where a layout and the label space do not fit.
    """
    space = load_space(params.labels)

    def split(name: str, raw: Source | Target, split: str, *, labelled: bool = True) -> RawSplit:
        layout = load_layout(raw.layout)
        check_classes(layout, space, params.labels)
        check_names(name, [raw.root, split])
        resize = raw.resize if isinstance(raw, Source) else None
        return RawSplit(name, layout, Path(raw.root), split, space, labelled, resize)

    target = params.target
    return [
        *(split(f"sources/{name}", raw, raw.split) for name, raw in params.sources.items()),
        split("target/train", target, target.train, labelled=False),
        split("target/validation", target, target.validation),
        split("target/report", target, target.report),
    ]
