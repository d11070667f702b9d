"""The loop that the stages that train share: progress bar, curves, pictures, state, log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline import command
from pipeline.drawing.figures import draw_step
from pipeline.drawing.tables import Row, rounded, write_table
from pipeline.paths import METRICS
from pipeline.tracking.journal import from_content
from pipeline.tracking.run import StageRun, stage_run
from pipeline.training.state import Kept, kept_state, warn
from pipeline.training.stopping import Stop, stop_requests
from ssda.engine.device import describe as describe_device
from ssda.engine.speed import Speed
from ssda.engine.speed import told as told_speed
from ssda.engine.training import StepRecord
from ssda.labels import LabelSpace
from ssda.networks.segmenter import Segmenter
from ssda.params import Params
from ssda.processes import any_of, joined, rank

MEASURED = 10
"""Steps that the expected time is measured on, after the first."""
BETWEEN_LINES = 60.0
"""Seconds from one line of progress to the next, where there is no terminal."""


@dataclass
class Training:
    """A stage that trains.

    Attributes:
        stage: its name; the section of params and the folder of metrics have it, too.
        params: everything.
        space: classes; each has an entry in a vector of a step's report.
        run: where curves are logged.
        kept: where the state is saved; what is logged so far goes with it.
        speed: what the steps cost; logged beside the curve, and told at the end.
        left_out: steps whose numbers were not finite.
        tables: rows of losses.csv, classes.csv (where a report has vectors) and validation.csv.
        told_at: when a line last said how far it is, by a clock of its own; where no bar does.
    """

    stage: str
    params: Params
    space: LabelSpace
    run: StageRun
    kept: Kept
    speed: Speed
    left_out: int
    tables: dict[str, list[Row]]
    told_at: float = 0.0

    @property
    def folder(self) -> Path:
        """Gets the curves, and pictures/STEP.png of the steps whose report has images."""
        return METRICS / self.stage

    @property
    def settings(self) -> Any:
        """The stage's section of params."""
        return getattr(self.params, self.stage)

    def follow(
        self, records: Iterator[StepRecord], validate: Callable[[], dict[str, float | None]]
    ) -> dict[str, float]:
        """Run the loop to its end: draw its progress, log and save it, write its curves.

        Args:
            records: the loop.
            validate: scores for the curve alone; all processes call it together.

        Returns:
            The scores at the end, rounded.

        Raises:
            Stop: training was asked to stop, and is saved.
        """
        first, every = rank() == 0, self.settings.validate_every
        validation = self.tables["validation"]
        bar = tqdm(
            records,
            initial=self.kept.first,
            total=self.settings.iterations,
            desc=self.stage,
            disable=not (self.params.runtime.progress and sys.stderr.isatty() and first),
            dynamic_ncols=True,
        )
        if first:
            self._show_earlier_pictures()
        with stop_requests() as asked:
            for record in bar:
                step, scores = record.step + 1, None
                if every and (step % every == 0 or step == self.settings.iterations):
                    scores = self.speed.validated(validate)
                    validation.append({"step": step} | rounded(scores, 3))
                if first:
                    self._tell(record, scores, bar)
                stop = asked()
                if any_of(stop is not None):
                    if not first:
                        sys.exit(1)
                    self.kept.save(step, self._notes())
                    self.run.release(self.kept.saved)
                    raise (stop or Stop("stopped", 1)).after(step, self.kept.saved)
        if first:
            self._end()
        if validation and validation[-1]["step"] == self.settings.iterations:
            return {name: float(v) for name, v in validation[-1].items() if name != "step"}
        return rounded(validate(), 3)

    def _tell(
        self, record: StepRecord, scores: dict[str, float | None] | None, bar: tqdm[StepRecord]
    ) -> None:
        step = record.step + 1
        self.speed.costs.append(record.cost)
        if record.problem is not None:
            self.left_out += 1
            warn(f"step {record.step}: {record.problem}; the step is left out")
        if record.step % self.params.runtime.log_every == 0 or step == self.settings.iterations:
            scalars = record.scalars() | {"learning_rate": record.learning_rate}
            if self.left_out:
                scalars["left_out"] = self.left_out
            bar.set_postfix({k: f"{scalars[f'loss_{k}']:.3g}" for k in record.report.losses})
            self.run.metrics(scalars, step)
            self._log_speed(self.speed.news(), step)
            self.tables["losses"].append({"step": step} | rounded(scalars, 6))
            self._tell_classes(record, step)
            self._write_tables()
        if record.report.images:
            picture = self._pictures / f"{step:06d}.png"
            try:
                draw_step(picture, record, self.space)
                self._show(picture)
            except OSError as error:
                warn(f"no picture of step {step}: {error}; training goes on")
        if scores is not None:
            self.run.metrics(scores, step)
        if record.problem is None:
            self.kept.save_if_due(step, self._notes)
        self.run.release(self.kept.saved)
        if bar.disable and self._is_due(step):
            self.told_at = time.monotonic()
            seconds = self.speed.seconds_a_step(MEASURED)
            left = tqdm.format_interval(seconds * (self.settings.iterations - step))
            command.say(
                f"{self.stage}: step {step} of {self.settings.iterations}, "
                f"{seconds:.2g} s a step, about {left} left"
            )

    def _is_due(self, step: int) -> bool:
        """Whether a line says how far it is: once the pace is known, then every minute."""
        start = self.kept.first + 1 + MEASURED
        late = time.monotonic() >= self.told_at + BETWEEN_LINES
        return step < self.settings.iterations and (step == start or (step > start and late))

    def _tell_classes(self, record: StepRecord, step: int) -> None:
        vectors = {k: v.tolist() for k, v in record.report.by_class.items()}
        for key, vector in vectors.items():
            values = zip(self.space.names, vector, strict=True)
            self.run.metrics({f"{key}.{name}": value for name, value in values}, step)
        for number, name in enumerate(self.space.names if vectors else ()):
            of_class = {key: vector[number] for key, vector in vectors.items()}
            row: Row = {"step": step, "class": name} | dict.fromkeys(of_class, "")
            self.tables["classes"].append(row | rounded(of_class, 4))

    def _end(self) -> None:
        self.kept.save(self.settings.iterations, self._notes())
        if self.speed.costs:  # none where all steps were done before
            summary = self.speed.summary()
            share = {"validation_percent": summary["validation_percent"]}
            self._log_speed(share, self.settings.iterations)
            command.say(f"{self.stage}: {told_speed(summary)}")
        self._write_tables()

    def _write_tables(self) -> None:
        """The curves so far, for those who look while the stage runs."""
        for name, rows in self.tables.items():
            if rows:
                write_table(self.folder / f"{name}.csv", rows)

    def _log_speed(self, figures: Mapping[str, float | None], step: int) -> None:
        self.run.timings({f"speed.{name}": value for name, value in figures.items()}, step)

    def _notes(self) -> dict[str, Any]:
        """What is kept beside the state: copies, for it is written while training goes on."""
        tables = {name: list(rows) for name, rows in self.tables.items()}
        journal = self.run.journal.content()
        return {"journal": journal, "left_out": self.left_out, "tables": tables}

    @property
    def _pictures(self) -> Path:
        """Beside the state: DVC removes outputs before it starts a stage again."""
        return self.kept.writer.folder / "pictures"

    def _show_earlier_pictures(self) -> None:
        shutil.rmtree(self.folder / "pictures", ignore_errors=True)
        (self.folder / "pictures").mkdir(parents=True)
        for picture in sorted(self._pictures.glob("*[0-9].png")):
            self._show(picture)

    def _show(self, picture: Path) -> None:
        shutil.copy(picture, self.folder / "pictures")
        self.run.artifact(self.folder / "pictures" / picture.name, f"{self.stage}/pictures")


@contextmanager
def training(
    stage: str, params: Params, space: LabelSpace, device: torch.device, images: int, out: Path
) -> Generator[Training]:
    """A stage that is about to train, or to go on: its state and its run are open.

    Args:
        stage: its name.
        params: everything.
        space: classes.
        device: where it trains.
        images: that a step takes, over all processes.
        out: the file that is its result.

    Raises:
        ValueError: another process trains on the same state.
    """
    with joined(device), kept_state(stage, params, out) as kept:
        notes = kept.notes
        journal = from_content(notes["journal"]) if notes else None
        with stage_run(stage, params, journal) as run:
            run.tag("device", device.type)
            speed = Speed(images, device)
            tables = notes.get("tables", {"losses": [], "classes": [], "validation": []})
            left_out = notes.get("left_out", 0)
            yield Training(stage, params, space, run, kept, speed, left_out, tables)


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
