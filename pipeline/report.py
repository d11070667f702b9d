"""What a person sees of a stage: progress bar, curves, tables, pictures."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from tqdm import tqdm

from pipeline import command
from pipeline.resume import Kept, Stop, stop_requests, warn
from pipeline.tracking import StageRun, to_json
from ssda.engine.device import describe as describe_device
from ssda.engine.speed import Speed
from ssda.engine.speed import told as told_speed
from ssda.engine.training import StepRecord
from ssda.files import write_atomically, write_text
from ssda.labels import LabelSpace
from ssda.networks.segmenter import Segmenter
from ssda.params import Params
from ssda.processes import any_of, rank

MEASURED = 10
"""Steps that the expected time is measured on, after the first."""
LARGEST_MATRIX = 40
"""Classes of a confusion matrix that can still be read."""
Row = Mapping[str, float | int | str]


def follow(
    records: Iterator[StepRecord],
    iterations: int,
    params: Params,
    run: StageRun,
    space: LabelSpace,
    validate: Callable[[], dict[str, float | None]],
    validate_every: int,
    folder: Path,
    kept: Kept,
    speed: Speed,
) -> dict[str, float]:
    """Run a training loop to its end: draw its progress, log and save it, write its curves.

    Args:
        records: the loop.
        iterations: its length.
        params: everything.
        run: where curves are logged.
        space: classes; each has an entry in a vector of a step's report.
        validate: scores for the curve alone; all processes call it together.
        validate_every: steps between its calls; 0 for none.
        folder: gets losses.csv, classes.csv (where a report has vectors), validation.csv and
            pictures/STEP.png (where a report has images).
        kept: where the state is saved; what is logged so far goes with it.
        speed: gets what the steps cost; it is logged beside the curve, and told at the end.

    Returns:
        The scores at the end, rounded.

    Raises:
        Stop: training was asked to stop, and is saved.
    """
    before: dict[str, Any] = kept.notes or {
        "left_out": 0,
        "losses": [],
        "classes": [],
        "validation": [],
    }
    pictures = kept.writer.folder / "pictures"  # DVC removes outputs before it starts a stage again
    left_out: int = before["left_out"]
    losses: list[Row] = before["losses"]
    class_shares: list[Row] = before["classes"]
    validation: list[Row] = before["validation"]

    def notes() -> dict[str, Any]:
        return {
            "journal": to_json(run.journal),
            "left_out": left_out,
            "losses": list(losses),
            "classes": list(class_shares),
            "validation": list(validation),
        }

    bar = tqdm(
        records,
        initial=kept.saved,
        total=iterations,
        desc=folder.name,
        disable=not (params.runtime.progress and sys.stderr.isatty() and rank() == 0),
        dynamic_ncols=True,
    )

    def tell(record: StepRecord, scores: dict[str, float | None] | None) -> None:
        nonlocal left_out
        step = record.step + 1
        speed.costs.append(record.cost)
        if record.problem is not None:
            left_out += 1
            warn(f"step {record.step}: {record.problem}; the step is left out")
        if record.step % params.runtime.log_every == 0 or step == iterations:
            scalars = record.scalars() | {"learning_rate": record.learning_rate}
            if left_out:
                scalars["left_out"] = left_out
            bar.set_postfix({k: f"{scalars[f'loss_{k}']:.3g}" for k in record.report.losses})
            run.metrics(scalars, step)
            measured(speed.news(), step)
            losses.append({"step": step} | _rounded(scalars, 6))
            vectors = {k: v.tolist() for k, v in record.report.by_class.items()}
            for key, vector in vectors.items():
                values = zip(space.names, vector, strict=True)
                run.metrics({f"{key}.{name}": value for name, value in values}, step)
            for number, name in enumerate(space.names if vectors else ()):
                of_class = {key: vector[number] for key, vector in vectors.items()}
                row: Row = {"step": step, "class": name} | dict.fromkeys(of_class, "")
                class_shares.append(row | _rounded(of_class, 4))
        if record.report.images:
            try:
                draw_step(pictures / f"{step:06d}.png", record, space)
                show(pictures / f"{step:06d}.png")
            except OSError as error:
                warn(f"no picture of step {step}: {error}; training goes on")
        if scores is not None:
            run.metrics(scores, step)
        if record.problem is None:
            kept.save_if_due(step, notes)
        run.release(kept.saved)

    def show(picture: Path) -> None:
        shutil.copy(picture, folder / "pictures")
        run.artifact(folder / "pictures" / picture.name, f"{folder.name}/pictures")

    def measured(figures: dict[str, float | None], step: int) -> None:
        run.timings({f"speed.{name}": value for name, value in figures.items()}, step)

    def tell_time(step: int) -> None:
        if step == kept.first + 1 + MEASURED and step < iterations:
            seconds = speed.seconds_a_step(MEASURED)
            left = tqdm.format_interval(seconds * (iterations - step))
            command.say(f"{folder.name}: {seconds:.2g} s a step, about {left} left")

    first = rank() == 0
    if first:
        shutil.rmtree(folder / "pictures", ignore_errors=True)
        (folder / "pictures").mkdir(parents=True)
        for picture in sorted(pictures.glob("*[0-9].png")):
            show(picture)
    with stop_requests() as asked:
        for record in bar:
            step = record.step + 1
            scores = None
            if validate_every and (step % validate_every == 0 or step == iterations):
                scores = speed.validated(validate)
                validation.append({"step": step} | _rounded(scores, 3))
            if first:
                tell(record, scores)
                if bar.disable:
                    tell_time(record.step + 1)
            stop = asked()
            if any_of(stop is not None):
                if first:
                    kept.save(record.step + 1, notes())
                    run.release(kept.saved)
                if not first:
                    sys.exit(1)
                raise (stop or Stop("stopped", 1)).after(record.step + 1, kept.saved)
    if first:
        kept.save(iterations, notes())
        if speed.costs:  # none where all steps were done before
            summary = speed.summary()
            measured({"validation_percent": summary["validation_percent"]}, iterations)
            command.say(f"{folder.name}: {told_speed(summary)}")
        tables = {"losses": losses, "classes": class_shares, "validation": validation}
        for name, rows in tables.items():
            if rows:
                write_table(folder / f"{name}.csv", rows)
    if validation and validation[-1]["step"] == iterations:
        return {name: float(v) for name, v in validation[-1].items() if name != "step"}
    return _rounded(validate(), 3)


def describe(network: Segmenter, params: Params) -> str:
    """What runs on what, for a person."""
    model = params.model
    size = sum(weights.numel() for weights in network.parameters()) / 1e6
    views = "" if model.detail is None else ", two resolutions"
    return (
        f"{model.encoder} with head {model.head}{views} ({size:.1f} M parameters) on "
        f"{describe_device(network.device)}"
    )


def told(scores: Mapping[str, float]) -> str:
    """Scores in a line, such as "validation mIoU 55.1, label free score 1.9"."""
    names = {name: name.replace("_", " ").replace("miou", "mIoU") for name in scores}
    return ", ".join(f"{names[name]} {value:.1f}" for name, value in scores.items())


def _rounded(values: Mapping[str, float | None], digits: int) -> dict[str, float]:
    """Rounded numbers, without what is none."""
    return {
        name: round(value, digits)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Rows as CSV, with all keys as columns in order of appearance; a missing value is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(columns)]
    lines += [",".join(str(row.get(column, "")) for column in columns) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


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
    axis.set_ylim(len(classes) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("IoU in per cent")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=min(len(values), 3), frameon=False)
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
        axis.set_facecolor("lightgrey")
        axis.set_title(name)
        axis.set_xticks(range(count), names, rotation=90)
        axis.set_yticks(range(count), names)
        axis.set_xlabel("prediction")
        axis.set_ylabel("truth")
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
    sheet(path, titles, [*zip(*columns, strict=True)], space, title=title)


def sheet(
    path: Path,
    columns: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    space: LabelSpace,
    *,
    title: str | None = None,
) -> None:
    """Write a picture of rows of images as PNG; see `grid`."""
    save(grid(columns, rows, space, title=title), path)


def grid(
    columns: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    space: LabelSpace,
    *,
    title: str | None = None,
) -> Figure:
    """Rows of images with a title a column and a legend of the classes that they show.

    Args:
        columns: titles.
        rows: images (H, W, 3) uint8 RGB, train ids (H, W) uint8, or a map (H, W) float in [0, 1].
        space: names and colours; ids that are no class are black.
        title: of the whole.
    """
    labels = [image for images in rows for image in images if image.dtype == np.uint8]
    shown = {int(i) for image in labels if image.ndim == 2 for i in np.unique(image)}
    patches = [Patch(color="black", label="(no label)")]
    patches += [
        Patch(color=(colour[0] / 255, colour[1] / 255, colour[2] / 255), label=name)
        for i, (name, colour) in enumerate(zip(space.names, space.colours, strict=True))
        if i in shown
    ]
    height, width = rows[0][0].shape[:2]
    cell = 3.0
    across = cell * len(columns)
    longest = max(len(str(patch.get_label())) for patch in patches)
    entries = max(1, int(across / (0.08 * longest + 0.5)))
    legend = 0.2 * math.ceil(len(patches) / entries) + 0.3
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
        ncols=min(entries, len(patches)),
        fontsize=9,
        frameon=False,
    )
    return figure
