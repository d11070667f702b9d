"""Pictures and charts; what a person reads lies inside and over nothing else."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ssda.datasets.image_files import write_png
from ssda.datasets.loading import resize_image
from ssda.engine.training import StepRecord
from ssda.files import write_atomically
from ssda.labels import LabelSpace

WIDEST = 480
"""Pixels across of a small picture."""
LARGEST_MATRIX = 40
"""Classes of a confusion matrix that can still be read."""


def bars(values: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """The IoU of each class in per cent, a bar for each network.

    Args:
        values: {network: {class: IoU, None where the truth never shows it}}.
    """
    classes = list(next(iter(values.values())))
    figure = Figure(figsize=(7.5, 0.3 * len(classes) + 1.2), dpi=110, layout="constrained")
    axis = figure.subplots()
    thickness = 0.8 / len(values)
    for number, (name, of_class) in enumerate(values.items()):
        positions = [i - 0.4 + thickness * (number + 0.5) for i in range(len(classes))]
        lengths = [of_class[c] or 0.0 for c in classes]
        axis.barh(positions, lengths, thickness, label=name, color=f"C{number}")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlim=(0, 100), ylim=(len(classes) - 0.5, -0.5), xlabel="IoU in per cent")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=min(len(values), 3), frameon=False)
    return figure


def curve(title: str, unit: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Curves by their names over the steps, points (step, value)."""
    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    axis = figure.subplots()
    for name, points in lines.items():
        axis.plot(*zip(*points, strict=True) if points else ((), ()), marker=".", label=name)
    axis.set_title(title, fontsize=11)
    axis.set(xlabel="step", ylabel=unit)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize=8)
    return figure


def matrices(shares: Mapping[str, torch.Tensor], space: LabelSpace) -> Figure:
    """Confusion matrices: what the pixels of each class are taken for.

    Of more classes than can be read, those that the networks find worst on average are shown.

    Args:
        shares: {network: (C, C) per cent, rows are the truth; NaN: the truth never shows it}.
        space: classes.
    """
    found = torch.stack([matrix.diagonal() for matrix in shares.values()]).mean(0)
    worst = found.nan_to_num(torch.inf).argsort(stable=True)[:LARGEST_MATRIX].sort().values
    names = [space.names[i] for i in worst.tolist()]
    count = len(names)
    side = 0.3 * count + 1.5
    figure = Figure(figsize=(side * len(shares), side), dpi=110, layout="constrained")
    for axis, (name, matrix) in zip(
        figure.subplots(1, len(shares), squeeze=False)[0], shares.items(), strict=True
    ):
        matrix = matrix[worst][:, worst]
        axis.imshow(matrix.numpy(), cmap="Blues", vmin=0, vmax=100)
        axis.set_xticks(range(count), names, rotation=90)
        axis.set_yticks(range(count), names)
        axis.set(title=name, xlabel="prediction", ylabel="truth", facecolor="lightgrey")
        for y, x in (matrix >= 5).nonzero().tolist():
            share = float(matrix[y, x])
            colour = "white" if share > 60 else "black"
            axis.text(x, y, f"{share:.0f}", color=colour, ha="center", va="center", fontsize=7)
    left_out = f"; the {count} classes found worst" if count < space.num_classes else ""
    figure.suptitle(f"per cent of the truth's pixels; grey: never shown{left_out}")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; equal figures are equal files."""
    write_atomically(path, lambda partial: figure.savefig(partial, metadata={"Software": None}))


def save_small(image: np.ndarray, path: Path, space: LabelSpace) -> None:
    """Write an image (H, W, 3) uint8 RGB, or train ids (H, W) uint8 in colours, as a small PNG."""
    height, width = image.shape[:2]
    factor = min(1.0, WIDEST / width)
    size = (round(width * factor), max(1, round(height * factor)))
    if image.ndim == 2:
        ids = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST_EXACT)
        small = space.palette()[ids.astype(np.uint8)]
    else:
        small = resize_image(image, size)
    write_png(path, small[..., ::-1])


def draw_step(path: Path, record: StepRecord, space: LabelSpace) -> None:
    """A picture of what a step worked with; its report holds images, as `look` gives them."""
    columns: list[list[np.ndarray]] = []
    titles: list[str] = []
    for name, values in record.report.images.items():
        if values.dim() == 4:
            values = (values.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        elif values.is_floating_point():
            most = float(values.max())
            name, values = f"{name}, 0 to {most:.2g}", values / max(most, 1e-9)
        else:
            values = values.to(torch.uint8)
        columns.append([*values.cpu().numpy()])
        titles.append(name)
    shares = record.scalars()
    title = f"step {record.step + 1}: {shares['certain_share']:.0%} of the target's pixels certain"
    if "seeds" in shares:
        title += f", {shares['seeds']:.0%} are seeds"
    save(grid(titles, [*zip(*columns, strict=True)], space, title), path)


def grid(
    columns: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    space: LabelSpace,
    title: str | None = None,
    cell: float = 3.0,
) -> Figure:
    """Rows of images with a title a column and a legend of the classes that they show.

    Args:
        columns: titles.
        rows: images (H, W, 3) uint8 RGB, train ids (H, W) uint8, or a map (H, W) float in [0, 1].
        space: names and colours; ids that are no class are black.
        title: of the whole.
        cell: width of a column in inches; a narrow one makes text large beside the images.
    """
    labels = [image for images in rows for image in images if image.dtype == np.uint8]
    shown = {int(i) for image in labels if image.ndim == 2 for i in np.unique(image)}
    patches = [Patch(color="black", label="(no label)"), *_patches(space, shown)]
    height, width = rows[0][0].shape[:2]
    across = cell * len(columns)
    entries, legend = _columns(patches, across)
    figure = Figure(
        figsize=(across, (cell * height / width + 0.08) * len(rows) + 0.5 + legend),
        dpi=110,
        layout="constrained",
    )
    if title:
        figure.suptitle(title, fontsize=12)
    cells = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes, images in zip(cells, rows, strict=True):
        for axis, image in zip(axes, images, strict=True):
            axis.set_axis_off()
            if image.dtype == np.uint8:
                axis.imshow(image if image.ndim == 3 else space.palette()[image])
            else:
                axis.imshow(image, cmap="magma", vmin=0.0, vmax=1.0)
    for axis, title in zip(cells[0], columns, strict=True):
        axis.set_title(title, fontsize=11)
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=entries,
        fontsize=9,
        frameon=False,
    )
    return figure


def legend(space: LabelSpace) -> Figure:
    """A strip of the classes and their colours."""
    patches = _patches(space, range(space.num_classes))
    entries, height = _columns(patches, 9.0)
    figure = Figure(figsize=(9.0, height), dpi=110)
    figure.legend(handles=patches, loc="center", ncols=entries, fontsize=9, frameon=False)
    return figure


def _patches(space: LabelSpace, ids: Container[int]) -> list[Patch]:
    """Of these classes the entries of a legend."""
    return [
        Patch(color=(colour[0] / 255, colour[1] / 255, colour[2] / 255), label=name)
        for i, (name, colour) in enumerate(zip(space.names, space.colours, strict=True))
        if i in ids
    ]


def _columns(patches: Sequence[Patch], across: float) -> tuple[int, float]:
    """How many columns a legend of a width has, and its height, in inches."""
    longest = max(len(str(patch.get_label())) for patch in patches)
    entries = min(len(patches), max(1, int(across / (0.08 * longest + 0.5))))
    return entries, 0.2 * math.ceil(len(patches) / entries) + 0.3
