"""MLflow's side: where it is, which run belongs to a key, what a run gets.

A run belongs to a key: the hash of params, code and inputs, with the name of the DVC experiment
where there is one. Its tags:

- `dvc.run_key`: the key; `dvc.superseded`: the run that took its place.
- `dvc.stage.<stage>`: `finished` where the run holds all of a stage; `dvc.reused.<stage>`: it came
  from the journal that the stage had left, as DVC did not run it.
- `dvc.md5.<file>`: a network's name in dvc.lock and DVC's cache.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from filelock import FileLock

from pipeline.paths import ADAPTED, CONVERTED, METRICS
from pipeline.repository import Origin, code_of, digest, git, recorded_outputs, root, stages
from pipeline.tracking.journal import Journal, metric_prefix
from pipeline.tracking.moved import take_along
from pipeline.values import changes, flat
from ssda.params import Params
from ssda.sections import parse_yaml, read_yaml, validate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

NETWORK_TAG = "dvc.md5."
"""Followed by a network's path."""
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100  # MLflow's limits
DATABASE = "mlflow.db"
"""The repository's own, where no address is given."""
DATABASES = "sqlite|postgresql|mysql|mssql"
"""Addresses that begin so are of a database that runs write into themselves."""
SERVICES = ("databricks", "databricks-uc", "uc")
"""Addresses that are no folder, though they look like one."""
VIEW = "headline"
"""The name of the saved view of an experiment's runs."""
EXPERIMENT_TAGS = {
    "mlflow.note.content": (
        "A run for each DVC experiment and each `dvc repro`. `mIoU` is the adapted network's, in "
        "per cent on images that no training has seen; `mIoU/source_only` that of the network "
        "before adaptation, `mIoU/gain` the difference. `label_free_score` needs no label. "
        "`changed` says which parameters differ from those of the commit."
    ),
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {
            "orderByKey": "metrics.`mIoU`",
            "orderByAsc": False,
            "selectedColumns": [
                "metrics.`mIoU`",
                "metrics.`mIoU/source_only`",
                "metrics.`mIoU/gain`",
                "metrics.`label_free_score`",
                "tags.`changed`",
            ],
        }
    ),
}
LONGEST = 5000
"""Characters of a tag."""
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


class Point(NamedTuple):
    """A point of a curve, as MLflow has it; its time is in milliseconds."""

    metric: str
    value: float
    time: int
    step: int


def now() -> int:
    """The time of a point."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class ServerRun:
    """A run on MLflow's server."""

    client: MlflowClient
    run: Run

    @property
    def id(self) -> str:
        """What MLflow calls it."""
        return self.run.info.run_id

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self.client.set_tag(self.id, name, value)

    def holds(self, stage: str) -> bool:
        """Whether all of a stage was there when the run was found."""
        return f"dvc.stage.{stage}" in self.run.data.tags

    def send(self, points: Iterable[Point]) -> None:
        """Send points; of one that is there MLflow would keep both, unless the times are equal."""
        from mlflow.entities import Metric

        metrics = [Metric(*point) for point in points]
        for start in range(0, len(metrics), METRICS_A_BATCH):
            self.client.log_batch(self.id, metrics=metrics[start : start + METRICS_A_BATCH])

    def artifact(self, path: Path, folder: str) -> None:
        """Send a file, to a folder among the artifacts."""
        self.client.log_artifact(self.id, str(path), folder or None)

    def fill_in(self, journal: Journal, workspace: Path) -> set[tuple[str, int]]:
        """Send what the run lacks of a journal; returns metric and step of all that it has then."""
        prefix, time = metric_prefix(journal.stage), now()
        there = {
            (name, point.step)
            for name in self.client.get_run(self.id).data.metrics
            if name.startswith(prefix) or name in journal.metrics
            for point in self.client.get_metric_history(self.id, name)
        }
        lacking = [
            Point(name, value, time, step)
            for name, points in journal.metrics.items()
            for step, value in points.items()
            if (name, step) not in there
        ]
        self.send(lacking)
        for name, folder in journal.artifacts.items():
            if (workspace / name).exists():
                self.artifact(workspace / name, folder)
        return there | {(point.metric, point.step) for point in lacking}

    def inputs(self, stage: str, workspace: Path) -> None:
        """Log the converted sets that a stage reads, as dvc.lock and convert's facts have them."""
        if found := datasets(stage, workspace):
            self.client.log_inputs(self.id, found)

    def finish(self, stage: str, networks: Mapping[str, str]) -> None:
        """Say that the run holds all of a stage, and which networks it left, by path and MD5."""
        for path, md5 in networks.items():
            self.tag(NETWORK_TAG + path, md5)
        self.tag(f"dvc.stage.{stage}", "finished")

    def reuse(self, journal: Journal, workspace: Path) -> None:
        """Fill in a stage that DVC did not run."""
        self.fill_in(journal, workspace)
        self.inputs(journal.stage, workspace)
        self.tag(f"dvc.reused.{journal.stage}", "true")
        recorded = recorded_outputs(workspace)
        paths = networks(journal.stage, workspace)
        self.finish(journal.stage, {path: recorded[path] for path in paths if path in recorded})
        if str(ADAPTED) in paths and (workspace / ADAPTED).exists():
            self.log_model(workspace / ADAPTED)

    def log_model(self, network: Path) -> None:
        """Log a network's file as a model that MLflow can load."""
        from mlflow.entities import LoggedModelOutput

        from pipeline.tracking.pyfunc import save_model

        made = self.client.create_logged_model(self.run.info.experiment_id, "adapted", self.id)
        with TemporaryDirectory() as folder:
            save_model(network, Path(folder, "model"))
            self.client.log_model_artifacts(made.model_id, str(Path(folder, "model")))
        self.client.finalize_logged_model(made.model_id, "READY")
        self.client.log_outputs(self.id, [LoggedModelOutput(made.model_id, 0)])

    def models(self) -> list[str]:
        """The ids of its models."""
        outputs = self.client.get_run(self.id).outputs
        return [model.model_id for model in outputs.model_outputs] if outputs else []

    def register(self, name: str) -> str:
        """Register its model under a name, whose alias `adapted` moves to it; returns its version.

        A run has a model to register.
        """
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        model = self.client.get_logged_model(self.models()[-1])
        made = self.client.create_model_version(
            name, model.artifact_location, self.id, model_id=model.model_id
        )
        self.client.set_registered_model_alias(name, "adapted", made.version)
        return made.version

    def end(self, status: str = "FINISHED") -> None:
        """Say how it ended."""
        self.client.set_terminated(self.id, status)


@dataclass(frozen=True)
class Server:
    """MLflow, and the id of the experiment that params name."""

    client: MlflowClient
    experiment: str

    def find(self, condition: str) -> list[ServerRun]:
        """The experiment's runs, the newest first."""
        runs = self.client.search_runs([self.experiment], condition, order_by=["start_time DESC"])
        return [ServerRun(self.client, run) for run in runs]

    def newest(self, key: str) -> ServerRun | None:
        """The newest run of a key, in which `%` stands for anything."""
        return next(iter(self.find(f"tags.`dvc.run_key` LIKE '{key}'")), None)

    def create(self, params: Params, key: str, origin: Origin) -> ServerRun:
        """A new run that says where it comes from and has the parameters."""
        from mlflow.entities import Param

        tags = {
            "mlflow.source.git.commit": origin.commit,
            "dvc.exp_name": origin.experiment,
            "dvc.run_key": key,
            "host": socket.gethostname(),
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "dvc exp run" if origin.experiment else "dvc repro",
        }
        tags = {name: value for name, value in tags.items() if value or name == "mlflow.user"}
        name = origin.experiment or f"repro-{(origin.commit or key)[:7]}"
        run = ServerRun(
            self.client, self.client.create_run(self.experiment, tags=tags, run_name=name)
        )
        values = [Param(*pair) for pair in flat(params.model_dump(mode="json")).items()]
        for start in range(0, len(values), PARAMS_A_BATCH):
            self.client.log_batch(run.id, params=values[start : start + PARAMS_A_BATCH])
        changed = _changed_params(params, origin.commit)
        if changed:
            run.tag(
                "changed", ", ".join(option.removeprefix("-S ") for option in changed)[:LONGEST]
            )
        run.tag("mlflow.note.content", _description(changed, origin, run.id))
        self.client.log_dict(run.id, params.model_dump(mode="json", by_alias=True), "params.yaml")
        return run


def connect(params: Params) -> Server:
    """MLflow with the experiment of params; database and experiment are made where missing.

    Raises ValueError for an experiment that was deleted, and what MLflow raises.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):  # what they raise is told in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri, name = tracking_uri(), params.runtime.experiment
    with FileLock(root() / ".ssda/mlflow.lock"):  # two processes must not both create the tables
        client = MlflowClient(uri)
        if found := client.get_experiment_by_name(name):
            for tag in EXPERIMENT_TAGS.keys() - found.tags.keys():
                client.set_experiment_tag(found.experiment_id, tag, EXPERIMENT_TAGS[tag])
            if found.lifecycle_stage == "deleted":
                raise ValueError(
                    f"experiment {name!r} was deleted; `mlflow experiments restore "
                    f"--experiment-id {found.experiment_id}` brings it back, or give "
                    "runtime.experiment another name"
                )
            _look_for_artifacts_here(found.artifact_location, name)
            return Server(client, found.experiment_id)
        # Without a server MLflow would put artifacts below the working directory.
        local = re.match(DATABASES, uri)
        location = _artifacts(root(), name) if local else None
        return Server(client, client.create_experiment(name, location, EXPERIMENT_TAGS))


def _artifacts(folder: Path, experiment: str) -> str:
    """Where a repository keeps an experiment's artifacts."""
    return (folder / "mlruns" / experiment).as_uri()


def _look_for_artifacts_here(location: str, experiment: str) -> None:
    """Where the repository's own database says that it is another's, as after a copy, mend it."""
    here, end = root(), _artifacts(Path("/"), experiment).removeprefix("file://")
    before = location.removesuffix(end)
    if os.environ.get("MLFLOW_TRACKING_URI") or before in (location, here.as_uri()):
        return
    take_along(here / DATABASE, before, here.as_uri())
    print(
        f"MLflow: this folder was {unquote(before.removeprefix('file://'))}; artifacts of its runs "
        f"are looked for in {here / 'mlruns'}, new ones go there",
        file=sys.stderr,
    )


def tracking_uri() -> str:
    """MLflow's address; paths in it are relative to the main repository, wherever a stage runs."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return f"sqlite:///{quote(str(root() / DATABASE))}"
    if database := re.fullmatch(r"(sqlite[^:]*):///([^/?][^?]*)(.*)", given):
        scheme, path, options = database.groups()
        return f"{scheme}:///{quote(str(root() / unquote(path)))}{options}"
    if folder := re.fullmatch(r"(?:file:)?((?![a-z][a-z0-9+.-]+:)[^/].*)", given):
        return given if given in SERVICES else (root() / folder[1]).as_uri()
    return given


def unreachable(error: Exception) -> str:
    """What went wrong with MLflow, in one line without the user name and password of an address."""
    reason = (str(error).splitlines() or [""])[0]
    line = f"MLflow ({tracking_uri()}): {type(error).__name__}: {reason}"
    return re.sub(r"//[^/\s]*@", "//", line)


def run_key(params: Params, workspace: Path, experiment: str) -> str:
    """A hash of params, code and inputs, then one of the experiment's name where it has one."""
    names = [*code_of(workspace), "demo/params.yaml", "data/inventory"]
    files = {name: workspace / name for name in names}
    key = digest(params.model_dump_json(exclude={"runtime"}), files)[:16]
    return f"{key}-{digest(experiment, {})[:8]}" if experiment else key


def networks(stage: str, workspace: Path) -> list[str]:
    """Paths of the networks that a stage of dvc.yaml leaves."""
    found = stages(workspace).get(stage)
    return [path for path in found.outs if path.endswith(".safetensors")] if found else []


def datasets(stage: str, workspace: Path) -> list[DatasetInput]:
    """The converted sets that a stage of dvc.yaml reads: their number of images, DVC's MD5."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    facts, recorded = workspace / METRICS / "convert.json", recorded_outputs(workspace)
    if stage not in (known := stages(workspace)) or not facts.exists():
        return []
    found: list[DatasetInput] = []
    for domain, splits in read_yaml(facts).items():
        for name in splits if domain in ("sources", "target") else ():
            path = str(CONVERTED / (domain if domain == "sources" else f"{domain}/{name}"))
            if path in known[stage].deps and path in recorded:
                digest = recorded[path].removesuffix(".dir")
                source = json.dumps({"uri": path})
                profile = json.dumps({"num_rows": splits[name]["images"]})
                dataset = Dataset(f"{domain}/{name}", digest, "local", source, profile=profile)
                context = "training" if domain == "sources" or name == "train" else name
                found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return found


def _description(changed: list[str], origin: Origin, run_id: str) -> str:
    """Markdown: where a run comes from, and the commands that bring its params and outputs back."""
    commit, experiment = origin.commit, origin.experiment
    start = f"commit `{commit[:12] or 'none'}`"
    lines = [f"    git checkout {commit}"] if commit else []
    lines.append(" ".join(["    dvc exp run" if changed else "    dvc repro", *changed]))
    if experiment:
        start = f"DVC experiment `{experiment}` on {start}"
        lines = [f"    dvc exp apply {experiment}"]
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
        before = validate(Params, parse_yaml(text.encode(), "params.yaml"), "params.yaml")
    except ValueError:  # parameters of other code
        return []
    return changes(*(flat(values.model_dump(mode="json")) for values in (before, params)))


def _user() -> str:
    """Who runs this; empty where the system has no name for it, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
