"""MLflow: one run an experiment, shared by its stages. sync.py beside it is for runs that are over.

A run belongs to a key: the hash of params, code and inputs, with the name of the DVC experiment
where there is one. The run carries it as the tag `dvc.run_key`.

- The first stage that runs creates the run, each later one resumes the newest run of the key.
- A run holds a stage once: `dvc.stage.<stage>` is `finished` when all of it is there. A stage that
  runs again after that (`dvc repro --force`) starts a fresh run, and the old one's tag
  `dvc.superseded` names it. A stage that was interrupted goes on in its run; it may log its history
  again, for a point that the run has is not sent twice.
- Points of a curve are sent once the state of their step is on disk (`StageRun.release`), so that a
  run that was killed and goes on has one curve.
- Each stage leaves a journal of what it logged, an output that DVC caches. A stage that DVC did not
  run is filled in from its journal when a later stage opens the run, and tagged
  `dvc.reused.<stage>`. Where no later stage runs, `python -m pipeline.tracking sync` does it.
- The tags `dvc.md5.<file>` name the networks that a stage left as dvc.lock and DVC's cache name
  them: `python -m pipeline.tracking checkout RUN` gets them back.
- A server that does not answer costs one warning. The journal is complete all the same, and the
  stage's end, the next stage or `sync` fills in what the run lacks.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import logging
import math
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from pipeline.command import guard
from pipeline.repository import (
    Origin,
    dependencies,
    file_md5,
    git,
    locked,
    outputs,
    recorded_outputs,
    root,
    stages,
)
from ssda.files import write_text
from ssda.params import Params, load_params
from ssda.sections import dotted, parse_yaml, validate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

PREFIXES = {"convert": "convert/", "pretrain": "pretrain/", "adapt": "adapt/", "evaluate": "eval/"}
"""The stages in their order, with the prefix of their metrics."""
JOURNALS = Path("metrics/logged")
NETWORK_TAG = "dvc.md5."
"""Of a run, followed by a network's path: its MD5, which is its name in dvc.lock and the cache."""
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100  # MLflow's limits
RETRY_AFTER = 60.0  # seconds
DATABASES = "sqlite|postgresql|mysql|mssql"
"""Addresses that begin so are of a database that runs write into themselves."""
SERVICES = ("databricks", "databricks-uc", "uc")
"""Addresses that are no folder, though they look like one."""

Points = dict[str, dict[int, float]]
"""{metric: {step: value}}."""


@dataclass
class Journal:
    """What a stage logged: points, and {file: folder among the run's artifacts}."""

    stage: str
    points: Points = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)


def journal_path(stage: str) -> Path:
    """Where a stage leaves its journal in a workspace."""
    return JOURNALS / f"{stage}.json"


def read_journal(path: Path) -> Journal:
    """The journal that a stage left."""
    return from_json(json.loads(path.read_text(encoding="utf-8")))


def write_journal(journal: Journal, workspace: Path) -> None:
    """Write a journal; equal journals are equal files."""
    text = json.dumps(to_json(journal), sort_keys=True) + "\n"
    write_text(workspace / journal_path(journal.stage), text)


def to_json(journal: Journal) -> dict[str, Any]:
    """A copy of a journal, as JSON has it."""
    metrics = {name: sorted(points.items()) for name, points in journal.points.items()}
    return {"stage": journal.stage, "metrics": metrics, "artifacts": dict(journal.artifacts)}


def from_json(content: dict[str, Any]) -> Journal:
    """The journal that `to_json` copied."""
    points = {name: dict(points) for name, points in content["metrics"].items()}
    return Journal(content["stage"], points, content["artifacts"])


@dataclass
class StageRun:
    """A stage's hand on the run; one thread sends, so that the stage never waits for MLflow.

    Attributes:
        journal: what the stage has logged; an interrupted one goes on with its own.
        there: points that the run had when it was opened.
        unsent: points that wait for `release` or for the stage's end.
        monitor: logs the machine's use beside the stage, where that is asked for.
    """

    journal: Journal
    client: MlflowClient | None = None
    run_id: str = ""
    there: Points = field(default_factory=dict)
    unsent: Points = field(default_factory=dict)
    monitor: SystemMetricsMonitor | None = None
    sender: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "mlflow"))
    sending: Future[None] | None = None
    released: int = 0
    retry_at: float = 0.0
    failed: bool = False

    def metrics(self, values: Mapping[str, float | None], step: int | None = None) -> None:
        """Log values at a step; not those that are None, not finite or there already."""
        step = step or 0
        for name, value in values.items():
            name = PREFIXES[self.journal.stage] + name
            if value is None or not math.isfinite(value):
                continue
            if step not in self.journal.points.setdefault(name, {}):
                self.journal.points[name][step] = float(value)
                if step not in self.there.get(name, {}):
                    self.unsent.setdefault(name, {})[step] = float(value)

    def timings(self, values: Mapping[str, float | None], step: int) -> None:
        """Log values that differ from run to run: as `metrics`, but the journal does not keep them.

        They are of the time that the stage took in this run: a run that DVC fills in has none.
        """
        for name, value in values.items():
            name = PREFIXES[self.journal.stage] + name
            if value is not None and step not in self.there.get(name, {}):
                self.unsent.setdefault(name, {})[step] = value

    def release(self, step: int) -> None:
        """Send the points up to a step whose state is on disk, unless others are on their way."""
        if step > self.released and not (self.sending and not self.sending.done()):
            self.released = step
            ready, self.unsent = _parted(self.unsent, step)
            self.sending = self.submit(lambda client: _send_points(client, self.run_id, ready))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a finished file of the workspace, below a folder of the run's artifacts."""
        name = Path(os.path.relpath(path)).as_posix()
        self.journal.artifacts[name] = folder
        self.submit(lambda client: client.log_artifact(self.run_id, name, folder or None))

    def tag(self, name: str, value: str) -> None:
        """Tag the run; tags are not part of the journal."""
        self.submit(lambda client: client.set_tag(self.run_id, name, value))

    def submit(self, work: Callable[[MlflowClient], object]) -> Future[None] | None:
        """Let the sending thread work; where the run could not be opened there is nothing to do."""
        client = self.client
        return self.sender.submit(self._attempt, lambda: work(client)) if client else None

    def open(self, params: Params) -> None:
        """Find or create the run; watch the machine where params say so."""
        self._attempt(lambda: _open(self, params))
        if self.client and params.runtime.system_metrics:
            self._attempt(lambda: _watch_machine(self))

    def close(self, status: str) -> None:
        """End the run; if it is finished, send what is left and all that did not arrive."""
        self.sender.shutdown()
        self.retry_at = 0.0
        if self.monitor:
            self.monitor.finish()
        if client := self.client:
            self._attempt(lambda: self._end(client, status))

    def _end(self, client: MlflowClient, status: str) -> None:
        if status == "FINISHED":
            if self.failed:
                _fill_in(client, client.get_run(self.run_id), self.journal, Path())
            else:
                _send_points(client, self.run_id, self.unsent)
            paths = _networks(self.journal.stage, Path())
            digests = {path: file_md5(Path(path)) for path in paths if Path(path).exists()}
            _finish(client, self.run_id, self.journal.stage, digests)
        client.set_terminated(self.run_id, status)

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


def register_model(params: Params, run: StageRun, path: Path) -> None:
    """Register a network's file under the name in params, if any; the alias is `adapted`."""
    name = params.runtime.register_as
    if name is None:
        return

    def register(client: MlflowClient) -> None:
        client.log_artifact(run.run_id, str(path), "model")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{client.get_run(run.run_id).info.artifact_uri}/model"
        version = client.create_model_version(name, source, run.run_id)
        client.set_registered_model_alias(name, "adapted", version.version)

    run.submit(register)


def run_key(params: Params, workspace: Path, experiment: str) -> str:
    """A hash of params, code and inputs, then one of the experiment's name where it has one."""
    digest = hashlib.sha256(params.model_dump_json(exclude={"runtime"}).encode())
    inventories = sorted((workspace / "data/inventory").glob("*.json"))
    inputs = [workspace / "demo/params.yaml", *inventories]
    for path in [*_code(workspace), *inputs]:
        if path.is_file():
            digest.update(f"\n{path.relative_to(workspace).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    ending = "-" + hashlib.sha256(experiment.encode()).hexdigest()[:8] if experiment else ""
    return digest.hexdigest()[:16] + ending


def _code(workspace: Path) -> list[Path]:
    """The Python files that the stages of dvc.yaml depend on."""
    names = {name for stage in stages(workspace).values() for name in dependencies(stage)}
    return [workspace / name for name in sorted(names) if name.endswith(".py")]


def _open(stage_run: StageRun, params: Params) -> None:
    """Find or create the run and fill in the stages before this one."""
    stage = stage_run.journal.stage
    client, experiment = connect(params)
    origin = Origin.of_workspace()
    key = run_key(params, Path(), origin.experiment)
    run = newest = newest_run(client, experiment, key)
    goes_on = bool(stage_run.journal.points)  # if only to be killed before DVC had the result
    if run is None or (is_in(run, stage) and not goes_on):
        run = create_run(client, experiment, params, key, origin)
        if newest:
            client.set_tag(newest.info.run_id, "dvc.superseded", run.info.run_id)
    else:
        client.update_run(run.info.run_id, "RUNNING")
        stage_run.there = _points_in(client, run, stage)
        stage_run.unsent = _lacking(stage_run.journal.points, stage_run.there)
    # Only DVC vouches that the journals in the workspace belong to its params and code.
    known = list(PREFIXES) if "DVC_STAGE" in os.environ else [stage]
    for earlier in known[: known.index(stage)]:
        path = journal_path(earlier)
        if path.exists() and not is_in(run, earlier):
            reuse(client, run, read_journal(path), Path())
    stage_run.client, stage_run.run_id = client, run.info.run_id


def _watch_machine(stage_run: StageRun) -> None:
    """Log the use of processor, memory, disk and GPU to the run (`system/...`) until it closes."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    if shutil.which("nvidia-smi") and find_spec("pynvml") is None:
        print(
            "warning: runtime.system_metrics: the GPU is left out; pip install nvidia-ml-py",
            file=sys.stderr,
        )
    uri = tracking_uri()
    monitor = SystemMetricsMonitor(stage_run.run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    stage_run.monitor = monitor


def connect(params: Params) -> tuple[MlflowClient, str]:
    """A client and the experiment's id; database and experiment are made where they are missing."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):  # errors reach `_attempt`, which tells one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri, name = tracking_uri(), params.runtime.experiment
    with locked(root() / ".ssda/mlflow.lock"):  # two processes must not both create the tables
        client = MlflowClient(uri)
        if found := client.get_experiment_by_name(name):
            if found.lifecycle_stage == "deleted":
                raise ValueError(
                    f"experiment {name!r} was deleted; `mlflow experiments restore "
                    f"--experiment-id {found.experiment_id}` brings it back, or give "
                    "runtime.experiment another name"
                )
            return client, found.experiment_id
        # Without a server MLflow would put artifacts below the working directory.
        local = re.match(DATABASES, uri)
        location = (root() / "mlruns" / name).as_uri() if local else None
        return client, client.create_experiment(name, location)


def newest_run(client: MlflowClient, experiment: str, key: str) -> Run | None:
    """The newest run of a key, in which `%` stands for anything."""
    condition = f"tags.`dvc.run_key` LIKE '{key}'"
    runs = client.search_runs([experiment], condition, max_results=1, order_by=["start_time DESC"])
    return runs[0] if runs else None


def create_run(
    client: MlflowClient, experiment: str, params: Params, key: str, origin: Origin
) -> Run:
    """A new run that says where it comes from and has the parameters."""
    from mlflow.entities import Param

    tags = {"mlflow.source.git.commit": origin.commit, "dvc.exp_name": origin.experiment}
    tags = {name: value for name, value in tags.items() if value}
    tags |= {
        "dvc.run_key": key,
        "host": socket.gethostname(),
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc exp run" if origin.experiment else "dvc repro",
    }
    name = origin.experiment or f"repro-{(origin.commit or key)[:7]}"
    run = client.create_run(experiment, tags=tags, run_name=name)
    run_id = run.info.run_id
    for batch in _batches([Param(*pair) for pair in flat(params).items()], PARAMS_A_BATCH):
        client.log_batch(run_id, params=batch)
    client.set_tag(run_id, "mlflow.note.content", _description(params, origin, run_id))
    return run


def _description(params: Params, origin: Origin, run_id: str) -> str:
    """Markdown: where a run comes from, and the commands that bring its params and outputs back."""
    commit, experiment = origin.commit, origin.experiment
    changed = _changed_params(params, commit)
    lines = [f"    git checkout {commit}"] if commit else []
    lines.append("    " + " ".join(["dvc exp run" if changed else "dvc repro", *changed]))
    start = f"commit `{commit[:12] or 'none'}`"
    if experiment:
        start, lines = (
            f"DVC experiment `{experiment}` on {start}",
            [f"    dvc exp apply {experiment}"],
        )
    if origin.code_differs():
        start += ", with changes of the code that were not committed"
    differences = ", ".join(f"`{change[3:]}`" for change in changed) or "none"
    commands = "\n".join(lines)
    return (
        f"From {start}. Parameters changed: {differences}. It comes back by\n\n{commands}\n\n"
        "and its networks and parameters alone, into a folder of their own, by\n\n"
        f"    python -m pipeline.tracking checkout {run_id}\n"
    )


def _changed_params(params: Params, commit: str) -> list[str]:
    """Options of `dvc exp run` for the parameters that differ from those of a commit."""
    text = git("show", f"{commit}:./params.yaml")
    try:
        before = flat(validate(Params, parse_yaml(text.encode(), "params.yaml"), "params.yaml"))
    except ValueError:  # parameters of other code
        return []
    return [
        f"-S {shlex.quote(f'{name}={value}')}"
        for name, value in flat(params).items()
        if before.get(name) != value
    ]


def reuse(client: MlflowClient, run: Run, journal: Journal, workspace: Path) -> None:
    """Fill in a stage that DVC did not run."""
    _fill_in(client, run, journal, workspace)
    client.set_tag(run.info.run_id, f"dvc.reused.{journal.stage}", "true")
    recorded = recorded_outputs(workspace)
    paths = _networks(journal.stage, workspace)
    digests = {path: recorded[path] for path in paths if path in recorded}
    _finish(client, run.info.run_id, journal.stage, digests)


def _finish(client: MlflowClient, run_id: str, stage: str, networks: Mapping[str, str]) -> None:
    """Say that a run holds all of a stage, and which networks, by path and MD5, the stage left."""
    for path, md5 in networks.items():
        client.set_tag(run_id, NETWORK_TAG + path, md5)
    client.set_tag(run_id, _holds(stage), "finished")


def _networks(stage: str, workspace: Path) -> list[str]:
    """Paths of the networks that a stage of dvc.yaml leaves."""
    paths = outputs(stages(workspace).get(stage, {}))
    return [path for path in paths if path.endswith(".safetensors")]


def _fill_in(client: MlflowClient, run: Run, journal: Journal, workspace: Path) -> None:
    """Send what the run lacks of a journal."""
    there = _points_in(client, run, journal.stage)
    _send_points(client, run.info.run_id, _lacking(journal.points, there))
    for name, folder in journal.artifacts.items():
        if (workspace / name).exists():
            client.log_artifact(run.info.run_id, str(workspace / name), folder or None)


def _send_points(client: MlflowClient, run_id: str, points: Points) -> None:
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    metrics = [
        Metric(name, value, now, step)
        for name, values in points.items()
        for step, value in values.items()
    ]
    for batch in _batches(metrics, METRICS_A_BATCH):
        client.log_batch(run_id, metrics=batch)


def _points_in(client: MlflowClient, run: Run, stage: str) -> Points:
    """What a run has of a stage."""
    run_id, names = run.info.run_id, run.data.metrics
    return {
        name: {point.step: point.value for point in client.get_metric_history(run_id, name)}
        for name in names
        if name.startswith(PREFIXES[stage])
    }


def _lacking(points: Points, there: Points) -> Points:
    """Points that are not there, by name and step."""
    return {
        name: {step: value for step, value in values.items() if step not in there.get(name, {})}
        for name, values in points.items()
    }


def _parted(points: Points, step: int) -> tuple[Points, Points]:
    """Points up to a step, and those after it; names without points are left out."""
    parts: tuple[Points, Points] = {}, {}
    for name, values in points.items():
        for at, value in values.items():
            parts[at > step].setdefault(name, {})[at] = value
    return parts


def _batches(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _holds(stage: str) -> str:
    """The tag of a run that holds all of a stage."""
    return f"dvc.stage.{stage}"


def is_in(run: Run | None, stage: str) -> bool:
    """Whether a run holds all of a stage."""
    return run is not None and _holds(stage) in run.data.tags


def flat(params: Params) -> dict[str, str]:
    """{"adapt.trucrf.radius": "5", ...}, without `runtime`; `nested` takes it back."""

    def text(value: Any) -> str:
        plain = isinstance(value, str) and _from_text(value) == value
        return value if plain else json.dumps(value)

    values = dotted(params.model_dump(mode="json", exclude={"runtime"}))
    return {name: text(value) for name, value in values}


def nested(texts: Mapping[str, str]) -> dict[str, Any]:
    """Sections with values from what `flat` gave."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        section = values
        *path, last = name.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = _from_text(text)
    return values


def _from_text(text: str) -> Any:
    """A JSON value; a text that is none stands for itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def tracking_uri() -> str:
    """MLflow's address; paths in it are relative to the main repository, wherever a stage runs."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return f"sqlite:///{quote(str(root() / 'mlflow.db'))}"
    if database := re.fullmatch(r"(sqlite[^:]*):///([^/?][^?]*)(.*)", given):
        scheme, path, options = database.groups()
        return f"{scheme}:///{quote(str(root() / unquote(path)))}{options}"
    if folder := re.fullmatch(r"(?:file:)?((?![a-z][a-z0-9+.-]+:)[^/].*)", given):
        return given if given in SERVICES else (root() / folder[1]).as_uri()
    return given


def _user() -> str:
    """Who runs this; empty where the system has no name for it, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def unreachable(error: Exception) -> str:
    """What went wrong with MLflow, in one line without the user name and password of an address."""
    reason = (str(error).splitlines() or [""])[0]
    line = f"MLflow ({tracking_uri()}): {type(error).__name__}: {reason}"
    return re.sub(r"//[^/\s]*@", "//", line)


def main() -> None:
    """The command line: `python -m pipeline.tracking sync` and `checkout RUN`."""
    parser = argparse.ArgumentParser(description="MLflow runs and what DVC keeps of them.")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "fill in what MLflow lacks of the workspace and of DVC's experiments"
    syncing = commands.add_parser("sync", help=text, description=text)
    syncing.add_argument(
        "-A", "--all-commits", action="store_true", help="not only experiments of this commit"
    )
    text = "get the networks and parameters of a run"
    checking_out = commands.add_parser("checkout", help=text, description=text)
    checking_out.add_argument("run", help="its name or id")
    checking_out.add_argument("--out", type=Path, help="folder (default: runs/NAME)")
    for command in (syncing, checking_out):
        command.add_argument("--params", default="params.yaml", help="default: params.yaml")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_args()

    def work() -> None:
        from pipeline.sync import checkout, sync

        params = load_params(arguments.params)
        lines = (
            sync(params, all_commits=arguments.all_commits)
            if arguments.command == "sync"
            else checkout(params, arguments.run, arguments.out)
        )
        print("\n".join(lines))

    guard(work, debug=arguments.debug)


if __name__ == "__main__":
    main()
