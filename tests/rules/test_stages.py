"""Every stage's deps name the source files it imports, and its params the sections it reads."""

import ast
import json
import re
from pathlib import Path

import pytest

from ssda.params import Params
from ssda.sections import read_yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    name: stage.get("do", stage)  # a stage a source
    for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items()
}
# They change no result.
OUTSIDE = {f"pipeline/{name}.py" for name in ("tracking", "report", "resume", "launch", "check")}
OURS = ("ssda", "pipeline", "demo")


def imported_files(path: Path) -> set[Path]:
    """Files of this project that a file imports, also inside functions, not for types alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {ROOT / f"{name.replace('.', '/')}.py" for name in names if name.split(".")[0] in OURS}
    return {file for file in files if file.exists()}


def import_closure(path: Path) -> set[str]:
    seen: set[Path] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        name = file.relative_to(ROOT).as_posix()
        if file in seen or name in OUTSIDE:
            continue
        seen.add(file)
        todo += imported_files(file)
    return {file.relative_to(ROOT).as_posix() for file in seen}


def sections_read(files: set[str]) -> set[str]:
    """Sections of params.yaml that code reads as `params.<section>`."""
    return {
        node.attr
        for file in files
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "params"
        and node.attr in Params.model_fields
    } - {"runtime"}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_import_closure(stage: str) -> None:
    deps = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert deps == import_closure(ROOT / f"pipeline/{stage}.py")


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_sections_that_are_read(stage: str) -> None:
    listed = {param.split(".")[0] for param in STAGES[stage]["params"]}
    assert listed == sections_read(import_closure(ROOT / f"pipeline/{stage}.py"))


def test_stages_are_the_paper_s_in_order() -> None:
    assert list(STAGES) == ["inventory", "convert", "pretrain", "adapt", "evaluate"]


def test_demo_stage_names_its_sources() -> None:
    deps = set(read_yaml(ROOT / "demo/dvc.yaml")["stages"]["scenes"]["deps"])
    assert import_closure(ROOT / "demo/scenes.py") <= deps


def test_no_stage_keeps_outputs_between_runs_or_names_gpus() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert "persist" not in text
    assert "nproc" not in text.lower()


def test_packages_run_no_code_when_imported() -> None:
    for folder in ("ssda", "pipeline", "demo"):
        for path in (ROOT / folder).rglob("__init__.py"):
            body = ast.parse(path.read_text()).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), path


def test_a_stage_s_section_reruns_no_earlier_stage() -> None:
    order = ["pretrain", "adapt", "evaluate"]
    for stage in ("convert", *order):
        later = order[order.index(stage) + 1 :] if stage in order else order
        assert not set(later) & set(STAGES[stage]["params"]), stage


def test_no_parameter_has_a_name_that_the_run_cache_overlooks() -> None:
    """DVC looks a run up by its parameters, but for those that are called like a file's facts."""
    names = re.findall(r'"(size|nfiles)":', json.dumps(Params.model_json_schema()["$defs"]))
    assert names == []


def test_only_metrics_are_kept_out_of_the_cache() -> None:
    """DVC's run cache skips a stage with any other output that is not cached."""
    for stage in STAGES.values():
        for out in stage.get("outs", []):
            assert isinstance(out, str), out
