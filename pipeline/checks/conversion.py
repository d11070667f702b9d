"""What a conversion would give, without one: python -m pipeline.convert --check.

For each split a summary, the problems, and a picture of some images with their labels.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from pipeline.checks.preflight import check_network, check_places, check_start
from pipeline.drawing.figures import grid, save
from pipeline.repository import is_tracked
from pipeline.splits import RawSplit, raw_splits
from ssda.datasets.conversion import check_split, listed
from ssda.datasets.index import Index, class_frequencies
from ssda.datasets.loading import SourceSamples, TargetSamples, read_image
from ssda.datasets.raw_files import raw_table, read_train_ids
from ssda.params import Images, Params

PICTURES = Path("data/check")
SHOWN = 4
"""Images in a picture."""
ENLARGED, SQUEEZED = 1.5, 1.1
"""How many times as large an image, or as wide for its height, may become without a warning."""


def check(params: Params, *, images: bool = False) -> None:
    """Print what each split holds and what is wrong with it; draw a picture a labelled split.

    With `images` all of them are decoded, so that a damaged one is found.

    Raises ValueError with the number of problems, where there are some.
    """
    count = 0
    sources: list[Index] = []
    check_places(params)
    for look in (check_start, check_network):
        try:
            look(params)
        except ValueError as error:
            print(f"network: {error}")
            count += 1
    for raw in raw_splits(params):
        problems: list[str] = []
        print(f"{raw.name}: {raw.root} ({raw.layout.name}, split {raw.split})")
        try:
            index, found = check_split(
                raw.layout,
                raw.root,
                raw.split,
                space=raw.space,
                with_labels=raw.with_labels,
                decode=images,
                progress=params.runtime.progress and sys.stderr.isatty(),
            )
            problems += found
            for line in summary(index, raw) + view(index, raw, params.images) + raw.left_out():
                print(f"  {line}")
            labelled = any(record.label for record in index.records)
            if labelled:
                print(f"  picture: {draw(index, raw)}")
            fits = index.records and not problems
            if fits and raw.name.startswith("sources/"):
                sources.append(replace(index, resize=raw.resize))
                SourceSamples(sources[-1:], params.images, params.sampling, 0, "check")
            elif fits and raw.name == "target/train":
                TargetSamples(index, params.images, params.adapt.margins, 0)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            print(f"  {listed(problems)}")
        count += len(problems)
    for place in untracked(params):
        print(f"{place}: neither git nor DVC has it, so experiments in a folder of their own")
        print("  (--temp, --queue) do not see it: give the full path, or dvc add it")
    if len(sources) > 1:
        print(f"sources together\n  {shares(sources)}")
    if count:
        raise ValueError(f"{count} problem{'s' if count > 1 else ''}, see above")


def untracked(params: Params) -> list[Path]:
    """Raw folders and files of one's own that DVC does not bring to an experiment's folder."""
    raws = (*params.sources.values(), params.target)
    files = [params.labels, params.model.weights, params.adapt.start, *(raw.layout for raw in raws)]
    places = [Path(raw.root) for raw in raws]
    places += [Path(file) for file in files if file is not None and Path(file).is_file()]
    return [place for place in dict.fromkeys(places) if not is_tracked(place)]


def summary(index: Index, raw: RawSplit) -> list[str]:
    """Lines about number, sizes and classes of the images that are right."""
    sizes = Counter((record.width, record.height) for record in index.records)
    common = [f"{w} x {h} ({n})" for (w, h), n in sizes.most_common(5)]
    more = [f"{len(sizes) - 5} other sizes"] if len(sizes) > 5 else []
    lines = [f"{len(index.records)} images, pixels: {', '.join(common + more)}"]
    if not raw.with_labels:
        return [*lines, "labels are not looked for"]
    count = sum(record.label is not None for record in index.records)
    lines.append(f"{count} labels, {index.labels_resized} of them of another size than the image")
    if any(any(record.class_pixels or ()) for record in index.records):
        lines.append(shares([index]))
    return lines


def view(index: Index, raw: RawSplit, images: Images) -> list[str]:
    """At which size the images are seen, and warnings of what that does to them."""
    source = raw.name.startswith("sources/")
    size = raw.resize if source else images.target_size
    crops = f"in crops of {images.crop[0]} x {images.crop[1]}"
    trained = f", {crops}" if source or raw.name == "target/train" else ""
    if size is None or not index.records:
        return [f"seen as they are{trained}"]
    key = f"{raw.name.replace('/', '.')}.resize" if source else "images.target_size"
    lines = [f"seen at {size[0]} x {size[1]} ({key}){trained}"]
    sizes = Counter((record.width, record.height) for record in index.records)
    scales = {each: (size[0] / each[0], size[1] / each[1]) for each in sizes}
    for does, found in (
        ("enlarges", [each for each, scale in scales.items() if min(scale) > ENLARGED]),
        (
            "squeezes",
            [each for each, scale in scales.items() if max(scale) / min(scale) > SQUEEZED],
        ),
    ):
        if found:
            count = sum(sizes[each] for each in found)
            width, height = found[0]
            kept = f"[{size[0]}, {round(size[0] * height / width)}]"
            advice = "null keeps them" if does == "enlarges" else f"{kept} keeps its shape"
            lines.append(
                f"warning: {key} = {list(size)} {does} {count} images, "
                f"such as one of {width} x {height}; {advice}"
            )
    return lines


def shares(indexes: list[Index]) -> str:
    """The share of each class in the labelled pixels, and what is never shown."""
    names = indexes[0].space.names
    found = dict(zip(names, class_frequencies(indexes).tolist(), strict=True))
    absent = [name for name, share in found.items() if share == 0]
    there = [f"{name} {share:.2%}" for name, share in found.items() if share > 0]
    return ", ".join(there) + (f"; never shown: {', '.join(absent)}" if absent else "")


def draw(index: Index, raw: RawSplit) -> Path:
    """A picture of a few images, spread over the split: image, labels, both."""
    records = [record for record in index.records if record.label is not None]
    palette = index.space.palette()
    table = raw_table(raw.layout, raw.space)
    rows: list[list[np.ndarray]] = []
    for record in records[:: max(1, len(records) // SHOWN)][:SHOWN]:
        image = read_image(index.image_path(record))
        assert record.label is not None
        label = read_train_ids(raw.root / record.label, raw.layout, table)
        size = (record.width, record.height)
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8)
        overlay = cv2.addWeighted(image, 0.5, palette[label], 0.5, 0.0).astype(np.uint8)
        rows.append([image, label, overlay])
    path = PICTURES / f"{raw.name.replace('/', '_')}.png"
    save(grid(["image", "labels (black: void)", "both"], rows, index.space), path)
    return path
