"""Write the stages' deps on source files and their params into dvc.yaml, from what they import.

`python -m pipeline.dependencies` does it. A stage's other deps, of data, stay as they are, but for
those that may be missing: the target's marker and the network that adaptation starts from.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import command
from pipeline.checks.preflight import optional_dependencies
from pipeline.values import UNTRACKED
from ssda.files import write_text
from ssda.params import Params
from ssda.sections import read_yaml

ROOT = Path(__file__).resolve().parents[1]
STAGES = Path("dvc.yaml")
ROOMS = tuple(f"pipeline/{room}/" for room in ("checks", "drawing", "tracking", "training"))
"""They change no result."""
PACKAGES = ("ssda", "pipeline", "demo")
VIEW = "evaluate"
"""The section that says how images are scored. The validation curve follows it as it is when a
stage trains; a later change redraws no curve, for it would train anew."""


def import_closure(path: Path) -> set[str]:
    """Files of this project that a file imports, itself and what those import included.

    Also of imports inside functions, but not of those for types alone.
    """
    seen: set[str] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        name = file.relative_to(ROOT).as_posix()
        if name not in seen and not name.startswith(ROOMS):
            seen.add(name)
            todo += _imported_files(file)
    return seen


def sections_read(files: set[str]) -> set[str]:
    """Sections of params.yaml that files read as `params.<section>`."""
    return {
        node.attr
        for file in files
        for node in ast.walk(_tree(ROOT / file))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "params"
        and node.attr in Params.model_fields
    } - {UNTRACKED}


def updated(text: str, params: Params) -> str:
    """The text of dvc.yaml with every stage's source files and sections as they are now."""
    for name, stage in read_yaml(ROOT / STAGES)["stages"].items():
        definition: dict[str, Any] = stage.get("do", stage)
        files = import_closure(ROOT / f"pipeline/{name}.py")
        _, optional, value = optional_dependencies(params).get(name, ("", "", None))
        data = [dep for dep in definition["deps"] if not dep.endswith(".py") and dep != optional]
        if value is not None:
            data.append(optional)
        read = sections_read(files) - ({VIEW} if name != VIEW else set())
        sections = [section for section in Params.model_fields if section in read]
        text = _replaced(text, name, "deps", [*data, *sorted(files)])
        text = _replaced(text, name, "params", sections)
    return text


def _replaced(text: str, stage: str, key: str, items: list[str]) -> str:
    """The text with a stage's list of that key holding these items."""
    place = re.compile(rf"(^  {stage}:\n(?:(?!^  \w).*\n)*?^( +){key}:\n)((?:^\2  - .*\n)+)", re.M)
    found = place.search(text)
    assert found is not None, f"{STAGES}: stage {stage} has no {key}"
    lines = "".join(f"{found[2]}  - {item}\n" for item in items)
    return text[: found.start(3)] + lines + text[found.end(3) :]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imported_files(path: Path) -> list[Path]:
    typing_only = {
        id(child)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = (
        ROOT / f"{name.replace('.', '/')}.py" for name in names if name.split(".")[0] in PACKAGES
    )
    return [file for file in files if file.exists()]


def write() -> None:
    """Write dvc.yaml."""
    path = ROOT / STAGES
    params = command.read_params(ROOT / "params.yaml")
    write_text(path, updated(path.read_text(encoding="utf-8"), params))


if __name__ == "__main__":
    command.start(command.tool(__doc__), lambda _: write())
