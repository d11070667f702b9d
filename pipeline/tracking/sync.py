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

from ruamel.yaml import YAML

from pipeline.paths import ADAPTED
from pipeline.repository import (
    Origin,
    cached,
    code_of,
    experiments,
    extract,
    file_md5,
    git,
    outdated,
    recorded_outputs,
)
from pipeline.tracking.journal import journal_path, logging_stages, read_journal
from pipeline.tracking.server import NETWORK_TAG, ServerRun, connect, run_key, unreachable
from pipeline.values import nested
from ssda.files import write_atomically, write_text
from ssda.params import Params, Runtime, load_params
from ssda.sections import validate

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

    def tell(name: str, filled: list[str]) -> None:
        if filled:
            lines.append(f"{name}: filled in {', '.join(filled)}")

    with _mlflow_errors():
        for origin in [*known, Origin(head, revision=head)]:
            name = origin.experiment or f"commit {head[:7]}"
            try:
                tell(name, _fill_in_revision(origin))
            except ValueError as error:
                lines.append(f"{name}: left out, {error}")
        changed = outdated(head)
        tell("workspace", _fill_in(params, Path(), Origin.of_workspace(), changed))
        if any(changed.values()):
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
    run = _find(params, name)
    name, data = run.run.info.run_name or run.id, run.run.data
    files = _networks(run)
    folder = out or Path("runs", name.replace("/", "-"))
    text = StringIO()
    runtime = params.runtime.model_dump(mode="json", by_alias=True)
    YAML().dump(nested(data.params) | {"runtime": runtime}, text)
    write_text(folder / "params.yaml", text.getvalue())
    for path, source in files.items():
        write_atomically(folder / path, partial(shutil.copyfile, source))
    return [str(folder / path) for path in ("params.yaml", *files)]


def register(params: Params, run_name: str, name: str) -> list[str]:
    """Register the adapted network of a run; where the run has no model, DVC's cache has the file.

    Args:
        params: of the workspace.
        run_name: the run's id or name.
        name: what MLflow registers it under; its alias `adapted` moves to it.

    Returns:
        A line that says how it is loaded.

    Raises:
        ValueError: the name cannot be one, there is no such run, it left no adapted network, DVC
            does not have it any more.
    """
    runtime = params.runtime.model_dump(mode="json", by_alias=True)
    validate(Runtime, runtime | {"register": name}, "name")
    run = _find(params, run_name)
    with _mlflow_errors():
        if not run.models():
            files = _networks(run)
            if str(ADAPTED) not in files:
                raise ValueError(f"run {run_name}: has left no {ADAPTED}")
            with TemporaryDirectory() as folder:
                network = Path(folder, ADAPTED.name)
                shutil.copyfile(files[str(ADAPTED)], network)
                run.log_model(network)
        version = run.register(name)
    load = f'mlflow.pyfunc.load_model("models:/{name}@adapted")'
    return [f"{name}: version {version}; {load} in Python"]


def _find(params: Params, name: str) -> ServerRun:
    """The one run of an id or a name; ValueError where there are none or several."""
    with _mlflow_errors():
        key = "run_id" if re.fullmatch("[0-9a-f]{32}", name) else "run_name"
        found = connect(params).find(f"attributes.{key} = '{name}'")
    if len(found) != 1:
        ids = ", ".join(run.id for run in found)
        several = f"{len(found)} runs have the name {name}, give an id: {ids}"
        raise ValueError(several if found else f"no run has the name or id {name}")
    return found[0]


def _networks(run: ServerRun) -> dict[str, Path]:
    """Where DVC has the networks of a run, by their paths; ValueError where there is none."""
    name = run.run.info.run_name or run.id
    networks = {
        tag.removeprefix(NETWORK_TAG): md5
        for tag, md5 in run.run.data.tags.items()
        if tag.startswith(NETWORK_TAG)
    }
    if not networks:
        raise ValueError(f"run {name}: no stage of it has left a network")
    try:
        return cached(networks)
    except ValueError as error:
        raise ValueError(f"run {name}: {error}; its page says how it is made again") from error


def _fill_in_revision(origin: Origin) -> list[str]:
    """Fill in what a revision holds; DVC's cache has what git has not."""
    changed = outdated(origin.commit, origin.revision)
    with TemporaryDirectory() as folder:
        workspace = Path(folder)
        extract(origin.revision, CONTENT, workspace)
        extract(origin.revision, code_of(workspace), workspace)
        try:
            params = load_params(workspace / "params.yaml")
        except ValueError as error:  # parameters of other code
            raise ValueError(str(error).replace(f"{folder}/", "")) from error
        return _fill_in(params, workspace, origin, changed)


def _fill_in(
    params: Params, workspace: Path, origin: Origin, changed: dict[str, list[str]]
) -> list[str]:
    """Fill in the finished stages that the run of a workspace lacks; returns their names.

    Finished are the stages up to the first of which dvc.lock has not all as it is. The run of a
    named experiment has its name; without a name any of the same content will do, and one is made
    only where all is finished.

    Args:
        params: those of the workspace.
        workspace: any folder with code, dvc.lock, inventories and what the stages left in metrics.
        origin: where it comes from.
        changed: what `outdated` says of it.
    """
    server = connect(params)
    key = run_key(params, workspace, origin.experiment)
    run = server.newest(key if origin.experiment else f"{key}%")
    if run is None and not origin.experiment and any(changed.values()):
        return []
    logging = logging_stages(workspace)
    inputs = [stage for stage in changed if stage not in logging]
    finished = takewhile(lambda stage: not changed.get(stage), [*inputs, *logging])
    recorded = recorded_outputs(workspace)
    filled: list[str] = []
    for stage in finished:
        path = workspace / journal_path(stage)
        if not path.exists() or (run and run.holds(stage)):
            continue
        if file_md5(path) == recorded.get(journal_path(stage).as_posix()):
            run = run or server.create(params, key, origin)
            run.reuse(read_journal(path), workspace)
            filled.append(stage)
    if run and filled:
        run.end()
    return filled


@contextmanager
def _mlflow_errors() -> Generator[None]:
    """What MLflow raises becomes a ValueError of one line."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(unreachable(error)) from error
