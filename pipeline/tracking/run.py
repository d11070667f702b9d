"""A stage's hand on the run of its experiment.

- The first stage that runs creates the run, each later one resumes the newest run of the key.
- A run holds a stage once: a stage that runs again after it had finished (`dvc repro --force`)
  starts a fresh run. One that was interrupted goes on in its run; it may log its history again, for
  a point that the run has is not sent twice.
- Points of a curve are sent once the state of their step is on disk (`StageRun.release`), so that a
  run that was killed and goes on has one curve.
- A stage that DVC did not run is filled in from its journal when a later stage opens the run. Where
  no later stage runs, `python -m pipeline.tracking sync` does it.
- A server that does not answer costs one warning. The journal is complete all the same, and the
  stage's end, the next stage or `sync` fills in what the run lacks.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.repository import Origin, file_md5
from pipeline.tracking.journal import (
    Journal,
    journal_path,
    logging_stages,
    metric_prefix,
    read_journal,
    write_journal,
)
from pipeline.tracking.server import (
    Point,
    ServerRun,
    connect,
    networks,
    now,
    run_key,
    tracking_uri,
    unreachable,
)
from ssda.params import Params

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

RETRY_AFTER = 60.0  # seconds


@dataclass
class StageRun:
    """What a stage logs goes through it; one thread sends, so that no stage waits for MLflow.

    Attributes:
        journal: what the stage has logged; an interrupted one goes on with its own.
        run: None until it was opened.
        known: metric and step of the points that the run has or that wait to be sent.
        unsent: points that wait for `release` or for the stage's end, by their steps.
        monitor: logs the machine's use beside the stage, where that is asked for.
    """

    journal: Journal
    run: ServerRun | None = None
    known: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    unsent: list[Point] = field(default_factory=list[Point])
    monitor: SystemMetricsMonitor | None = None
    sender: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "mlflow"))
    sending: Future[None] | None = None
    retry_at: float = 0.0
    failed: bool = False

    def metrics(self, values: Mapping[str, float | None], step: int = 0) -> None:
        """Log values at a step; not those that are None, not finite or there already."""
        prefix = metric_prefix(self.journal.stage)
        self.headline({prefix + name: value for name, value in values.items()}, step)

    def headline(self, values: Mapping[str, float | None], step: int = 0) -> None:
        """As `metrics`, but without the stage before the names: what runs are compared by."""
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self.journal.metrics.setdefault(name, {}).setdefault(step, float(value))
                self._wait(name, value, step)

    def timings(self, values: Mapping[str, float | None], step: int) -> None:
        """Log values that differ from run to run: as `metrics`, but the journal does not keep them.

        They are of the time that the stage took in this run: a run that DVC fills in has none.
        """
        for name, value in values.items():
            if value is not None:
                self._wait(metric_prefix(self.journal.stage) + name, value, step)

    def release(self, step: int) -> None:
        """Send the points up to a step whose state is on disk, unless others are on their way."""
        if self.sending is None or self.sending.done():
            ready = list(takewhile(lambda point: point.step <= step, self.unsent))
            if ready:
                self.unsent = self.unsent[len(ready) :]
                self.sending = self.submit(lambda run: run.send(ready))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a finished file of the workspace, below a folder of the run's artifacts."""
        name = Path(os.path.relpath(path)).as_posix()
        self.journal.artifacts[name] = folder
        self.submit(lambda run: run.artifact(Path(name), folder))

    def model(self, network: Path, name: str | None) -> None:
        """Log the adapted network as MLflow's model, and register it where there is a name."""

        def work(run: ServerRun) -> None:
            run.log_model(network)
            if name is not None:
                run.register(name)

        self.submit(work)

    def tag(self, name: str, value: str) -> None:
        """Tag the run; tags are not part of the journal."""
        self.submit(lambda run: run.tag(name, value))

    def text(self, content: Callable[[], str], name: str) -> None:
        """Log a text that is made then as a file among the artifacts; the journal has it not."""
        self.submit(lambda run: run.client.log_text(run.id, content(), name))

    def submit(self, work: Callable[[ServerRun], object]) -> Future[None] | None:
        """Let the sending thread work; where the run could not be opened there is nothing to do."""
        run = self.run
        return self.sender.submit(self._attempt, lambda: work(run)) if run else None

    def open(self, params: Params) -> None:
        """Find or create the run; watch the machine where params say so."""
        self._attempt(lambda: self._open(params))
        if self.run and params.runtime.system_metrics:
            self._attempt(self._watch_machine)

    def close(self, status: str) -> None:
        """End the run; if it is finished, send what is left and all that did not arrive."""
        self.sender.shutdown()
        self.retry_at = 0.0
        if self.monitor:
            self.monitor.finish()
        if run := self.run:
            self._attempt(lambda: self._end(run, status))

    def _wait(self, name: str, value: float, step: int) -> None:
        if (name, step) not in self.known:
            self.known.add((name, step))
            self.unsent.append(Point(name, value, now(), step))

    def _open(self, params: Params) -> None:
        """Find or create the run and fill in the stages before this one."""
        stage = self.journal.stage
        server = connect(params)
        origin = Origin.of_workspace()
        key = run_key(params, Path(), origin.experiment)
        newest = server.newest(key)
        if newest and (self.journal.metrics or not newest.holds(stage)):
            # With a journal the stage goes on, if only to be killed before DVC had the result.
            run = newest
            run.client.update_run(run.id, "RUNNING")
            self.known = run.fill_in(replace(self.journal, artifacts={}), Path())
        else:
            run = server.create(params, key, origin)
            if newest:
                newest.tag("dvc.superseded", run.id)
        # Only DVC vouches that the journals in the workspace belong to its params and code.
        known = logging_stages(Path()) if "DVC_STAGE" in os.environ else []
        for path in map(journal_path, takewhile(lambda earlier: earlier != stage, known)):
            if path.exists() and not run.holds(path.stem):
                run.reuse(read_journal(path), Path())
        if known:
            run.inputs(stage, Path())
        self.run = run

    def _watch_machine(self) -> None:
        """Log the use of processor, memory, disk and GPU (`system/...`) until the end."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        assert self.run is not None
        if shutil.which("nvidia-smi") and find_spec("pynvml") is None:
            print(
                "warning: runtime.system_metrics: the GPU is left out; pip install nvidia-ml-py",
                file=sys.stderr,
            )
        uri = tracking_uri()
        monitor = SystemMetricsMonitor(self.run.id, resume_logging=True, tracking_uri=uri)
        monitor.start()
        self.monitor = monitor

    def _end(self, run: ServerRun, status: str) -> None:
        if status == "FINISHED":
            if self.failed:
                run.fill_in(self.journal, Path())
            else:
                run.send(self.unsent)
            paths = [path for path in networks(self.journal.stage, Path()) if Path(path).exists()]
            run.finish(self.journal.stage, {path: file_md5(Path(path)) for path in paths})
        run.end(status)

    def _attempt(self, work: Callable[[], object]) -> None:
        """Nothing that happens to MLflow reaches the stage; after a failure it rests a while."""
        if time.monotonic() < self.retry_at:
            return
        try:
            work()
        except Exception as error:
            if not self.failed:
                print(f"warning: {unreachable(error)}; the stage goes on", file=sys.stderr)
            self.failed, self.retry_at = True, time.monotonic() + RETRY_AFTER


@contextmanager
def stage_run(stage: str, params: Params, journal: Journal | None = None) -> Generator[StageRun]:
    """The experiment's run, open for a stage that is about to work.

    A stage that ends leaves its journal and a finished run, one that raises a failed run. Of
    several processes only the first logs. A stage that goes on brings the journal it had.
    """
    run = StageRun(journal or Journal(stage))
    if int(os.environ.get("RANK", "0")) > 0:
        yield run
        return
    run.open(params)
    try:
        yield run
    except BaseException as error:
        run.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    write_journal(run.journal, Path())
    run.close("FINISHED")
