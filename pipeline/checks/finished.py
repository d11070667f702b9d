"""A stage that a person runs by hand does nothing where its result is there already.

DVC decides for the stages that it runs. By hand, `dvc.lock` answers for what DVC ran, and a note in
`.ssda/finished` for what was run by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from pipeline import command
from pipeline.repository import CODE, digest, root, stages, unchanged
from ssda.files import write_json
from ssda.params import Params, load_params

NOTES = Path(".ssda/finished")


def unless_finished(
    stage: str, params: Params, work: Callable[[Params], object], *, force: bool
) -> None:
    """Do a stage's work; by hand not where its result is there already, unless forced to."""
    if not by_hand():
        work(params)
    elif not force and is_finished(stage, params):
        command.say(f"{stage}: up to date; --force runs it anyway")
    else:
        work(params)
        write_json(_note(stage), _facts(stage, params))


def by_hand() -> bool:
    """Whether a person started this process: not DVC, torchrun, nor as one of several machines."""
    return not {"DVC_STAGE", "RANK", "NNODES"} & os.environ.keys()


def is_finished(stage: str, params: Params) -> bool:
    """Whether the stage's outputs are there and are those of its params, code and inputs."""
    definition = stages(CODE)[stage]
    needed = [*definition.deps, *definition.outs]
    if not all(Path(name).exists() for name in needed if not name.endswith((".py", "}"))):
        return False
    note = _note(stage)
    if note.exists() and json.loads(note.read_text()) == _facts(stage, params):
        return True
    ours = Path("params.yaml")
    return ours.exists() and params == load_params(ours) and unchanged(stage)


def stage_key(stage: str, params: Params) -> str:
    """A hash of a stage's params, code and inputs, as dvc.yaml lists them."""
    definition = stages(CODE)[stage]
    sections = {name.split(".")[0] for name in definition.params}
    paths = {dep: (CODE if dep.endswith(".py") else Path()) / dep for dep in definition.deps}
    if params.model.weights is not None:
        paths["weights"] = Path(params.model.weights)
    if stage == "adapt" and params.adapt.start is not None:
        paths["start"] = Path(params.adapt.start)
    return digest(params.model_dump_json(include=sections), paths)[:16]


def _note(stage: str) -> Path:
    """Notes of one workspace never stand for another's: the name has the folder."""
    place = digest(str(Path.cwd()), {})[:16]
    return root() / NOTES / f"{stage}-{place}.json"


def _facts(stage: str, params: Params) -> dict[str, str]:
    left = {name: Path(name) for name in stages(CODE)[stage].outs}
    return {"key": stage_key(stage, params), "outputs": digest("", left)}
