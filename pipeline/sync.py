"""Runs that are over: fill in what MLflow lacks of them, get back what DVC keeps of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from io import StringIO
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from pipeline.repository import (
    Origin,
    cached,
    dependencies,
    experiments,
    extract,
    file_md5,
    git,
    outdated,
    recorded_outputs,
    stages,
)
from pipeline.tracking import (
    NETWORK_TAG,
    PREFIXES,
    connect,
    create_run,
    is_in,
    journal_path,
    nested,
    newest_run,
    read_journal,
    reuse,
    run_key,
    unreachable,
)
from ssda.files import write_atomically, write_text
from ssda.params import Params, load_params

if TYPE_CHECKING:
    from mlflow.entities import Run

RUNS = Path("runs")
CONTENT = ("dvc.yaml", "dvc.lock", "params.yaml", "demo/params.yaml", "data/inventory", "metrics")


def sync(params: Params, *, all_commits: bool = False) -> list[str]:
    """Fill in what MLflow lacks of DVC's experiments, of the commit and of the workspace.

    Args:
        params: of the workspace.
        all_commits: not only experiments that started from the commit that is checked out.

    Returns:
        Lines for people: what was filled in, what could not be and why.

    Raises:
        ValueError: MLflow or DVC does not answer.
    """
    head = git("rev-parse", "HEAD")
    if not head:
        raise ValueError("git has no commit here: `git commit` first, DVC's experiments need one")
    known = [found for found in experiments() if all_commits or found.commit == head]
    lines: list[str] = []
    with _mlflow_errors():
        for origin in [*known, Origin(head, revision=head)]:
            name = origin.experiment or f"commit {head[:7]}"
            try:
                filled = _fill_in_revision(origin)
            except ValueError as error:
                lines.append(f"{name}: left out, {error}")
            else:
                lines += _told(name, filled)
        finished = _finished(head, "workspace")
        lines += _told("workspace", _fill_in(params, Path(), Origin.of_workspace(), finished))
        if finished != list(PREFIXES):
            lines.append("workspace: changed since its stages ran, `dvc repro` first")
    return lines or ["nothing to fill in"]


def checkout(params: Params, name: str, out: Path | None) -> list[str]:
    """Write a run's params.yaml and networks into a folder.

    Args:
        params: of the workspace; `runtime`, which no run has, is theirs.
        name: the run's id or name.
        out: the folder; `runs/<name>` if None.

    Returns:
        The files, a line each.

    Raises:
        ValueError: there is no such run, it left no network, or DVC does not have it any more.
    """
    with _mlflow_errors():
        run = _find(params, name)
    name, tags = run.info.run_name or run.info.run_id, run.data.tags
    networks = {
        tag.removeprefix(NETWORK_TAG): md5
        for tag, md5 in tags.items()
        if tag.startswith(NETWORK_TAG)
    }
    if not networks:
        raise ValueError(f"run {name}: no stage of it has left a network")
    try:
        found = cached(networks)
    except ValueError as error:
        raise ValueError(f"run {name}: {error}; its page says how it is made again") from error
    folder = out or RUNS / name.replace("/", "-")
    text = StringIO()
    values = nested(run.data.params) | {
        "runtime": params.runtime.model_dump(mode="json", by_alias=True)
    }
    YAML().dump(values, text)
    write_text(folder / "params.yaml", text.getvalue())
    for path, source in found.items():
        write_atomically(folder / path, partial(shutil.copyfile, source))
    return [str(folder / path) for path in ("params.yaml", *found)]


def _fill_in_revision(origin: Origin) -> list[str]:
    """Fill in what a revision holds; DVC's cache has what git has not."""
    finished = _finished(origin.commit, origin.revision)
    with TemporaryDirectory() as folder:
        workspace = Path(folder)
        extract(origin.revision, CONTENT, workspace)
        code = {path for stage in stages(workspace).values() for path in dependencies(stage)}
        extract(origin.revision, [path for path in code if path.endswith(".py")], workspace)
        try:
            params = load_params(workspace / "params.yaml")
        except ValueError as error:  # parameters of other code
            raise ValueError(str(error).replace(f"{folder}/", "")) from error
        return _fill_in(params, workspace, origin, finished)


def _fill_in(params: Params, workspace: Path, origin: Origin, finished: list[str]) -> list[str]:
    """Fill in the finished stages that the run of a workspace lacks; returns their names.

    The workspace is any folder with code, dvc.lock, inventories and what the stages left in
    metrics. The run of a named experiment has its name; without a name any of the same content
    will do, and one is made only where all is finished.
    """
    client, experiment = connect(params)
    key = run_key(params, workspace, origin.experiment)
    run = newest_run(client, experiment, key if origin.experiment else f"{key}%")
    if run is None and not origin.experiment and finished != list(PREFIXES):
        return []
    recorded = recorded_outputs(workspace)
    filled: list[str] = []
    for stage in finished:
        path = journal_path(stage)
        there = (workspace / path).exists() and not is_in(run, stage)
        if there and file_md5(workspace / path) == recorded.get(path.as_posix()):
            run = run or create_run(client, experiment, params, key, origin)
            reuse(client, run, read_journal(workspace / path), workspace)
            filled.append(stage)
    if run and filled:
        client.set_terminated(run.info.run_id)
    return filled


def _finished(base: str, revision: str) -> list[str]:
    """The stages up to the first whose code or parameters dvc.lock does not have as they are."""
    changed = outdated(base, revision)
    inputs = [stage for stage in changed if stage not in PREFIXES]
    finished = takewhile(lambda stage: not changed.get(stage), [*inputs, *PREFIXES])
    return [stage for stage in finished if stage in PREFIXES]


def _find(params: Params, name: str) -> Run:
    """The run of an id or a name."""
    client, experiment = connect(params)
    key = "run_id" if re.fullmatch("[0-9a-f]{32}", name) else "run_name"
    runs = client.search_runs([experiment], f"attributes.{key} = '{name}'")
    if len(runs) != 1:
        ids = ", ".join(run.info.run_id for run in runs)
        several = f"{len(runs)} runs have the name {name}, give an id: {ids}"
        raise ValueError(several if runs else f"no run has the name or id {name}")
    return runs[0]


def _told(name: str, stages: list[str]) -> list[str]:
    return [f"{name}: filled in {', '.join(stages)}"] if stages else []


@contextmanager
def _mlflow_errors() -> Generator[None]:
    """What MLflow raises becomes a ValueError of one line."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(unreachable(error)) from error
