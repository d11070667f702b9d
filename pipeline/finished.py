"""A stage that a person runs by hand does nothing where its result is there already.

DVC decides for the stages that it runs. By hand, `dvc.lock` answers for what DVC ran, and a note in
`.ssda/finished` for what was run by hand.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pipeline.repository import dependencies, digest, outputs, root, stages, unchanged
from pipeline.resume import CODE, state_key
from ssda.params import Params, load_params

NOTES = Path(".ssda/finished")


def by_hand() -> bool:
    """Whether a person started this process: not DVC, torchrun, nor as one of several machines."""
    return not {"DVC_STAGE", "RANK", "NNODES"} & os.environ.keys()


def is_finished(stage: str, params: Params) -> bool:
    """Whether the stage's outputs are there and are those of its params, code and inputs."""
    definition = stages(CODE)[stage]
    needed = [*dependencies(definition), *outputs(definition)]
    if not all(Path(name).exists() for name in needed if not name.endswith((".py", "}"))):
        return False
    note = _note(stage)
    if note.exists() and json.loads(note.read_text()) == _facts(stage, params):
        return True
    ours = Path("params.yaml")
    return ours.exists() and params == load_params(ours) and unchanged(stage)


def note_finished(stage: str, params: Params) -> None:
    """Note that the stage's outputs are those of its params, code and inputs."""
    from ssda.files import write_json

    write_json(_note(stage), _facts(stage, params))


def _note(stage: str) -> Path:
    """Notes of one workspace never stand for another's: the name has the folder."""
    place = digest(str(Path.cwd()), {})[:16]
    return root() / NOTES / f"{stage}-{place}.json"


def _facts(stage: str, params: Params) -> dict[str, str]:
    left = {name: Path(name) for name in outputs(stages(CODE)[stage])}
    return {"key": state_key(stage, params), "outputs": digest("", left)}
