"""Imports run one way: facts <- bricks <- method <- engine <- pipeline."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACTS = {
    f"ssda.{name}"
    for name in ("files", "labels", "params", "processes", "randomness", "sections", "tensors")
}
ALLOWED = {
    "ssda/datasets": {"ssda.datasets"},
    "ssda/networks": {"ssda.networks"},
    "ssda/method": {"ssda.datasets", "ssda.networks", "ssda.method"},
    "ssda/engine": {"ssda.datasets", "ssda.networks", "ssda.method", "ssda.engine"},
    "pipeline": {"ssda", "pipeline"},
    "demo": {"demo"},
    "benchmarks": {"ssda", "pipeline", "demo", "benchmarks"},
    "research": {"ssda", "pipeline", "demo", "research"},
}

OURS = ("ssda", "pipeline", "demo", "benchmarks", "research", "tests")


HELPERS = {f"pipeline.{name}" for name in ("command", "paths", "repository", "splits", "values")}
ROOMS = {
    "checks": {"drawing"},
    "drawing": set[str](),
    "tracking": set[str](),
    "training": {"checks", "drawing", "tracking"},
}


def imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules


@pytest.mark.parametrize("folder", ALLOWED)
def test_each_layer_imports_only_what_lies_below(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for module in imports(path):
            if module.split(".")[0] in OURS:
                allowed = ALLOWED[folder] | FACTS
                assert any(module == a or module.startswith(a + ".") for a in allowed), (
                    f"{path.relative_to(ROOT)} imports {module}"
                )


def test_facts_import_no_more_than_facts() -> None:
    for name in FACTS:
        path = ROOT / f"{name.replace('.', '/')}.py"
        ours = {module for module in imports(path) if module.split(".")[0] in ("ssda", "pipeline")}
        assert ours <= FACTS, path


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_pipeline_knows_helpers_and_the_rooms_that_it_may(room: str) -> None:
    """No stage and no command: those know the rooms."""
    allowed = HELPERS | {f"pipeline.{other}" for other in ROOMS[room] | {room}}
    for path in (ROOT / "pipeline" / room).glob("*.py"):
        for module in imports(path):
            named = module.split(".")[0] == "pipeline" and module != "pipeline"
            assert not named or any(f"{module}.".startswith(f"{a}.") for a in allowed), path


def test_every_room_of_the_pipeline_has_its_rule() -> None:
    assert {path.parent.name for path in (ROOT / "pipeline").glob("*/*.py")} == {*ROOMS}


def test_only_the_pipeline_knows_dvc_and_only_its_room_for_tracking_knows_mlflow() -> None:
    for folder in ("ssda", "demo", "pipeline"):
        for path in (ROOT / folder).rglob("*.py"):
            heads = {module.split(".")[0] for module in imports(path)}
            assert "dvc" not in heads or folder == "pipeline", path
            assert "mlflow" not in heads or path.parent.name == "tracking", path


def test_command_lines_import_nothing_heavy_before_they_work() -> None:
    modules = [f"pipeline.{path.stem}" for path in (ROOT / "pipeline").glob("[a-z]*.py")]
    code = (
        f"import sys, {', '.join(modules)}, pipeline.tracking.__main__, pipeline.tracking.run\n"
        "print([name for name in ('torch', 'mlflow', 'matplotlib', 'dvc') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
