"""The documents: links lead somewhere, names are where they are said to be, commands parse."""

import argparse
import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.overlays import load_preset
from pipeline.parameters import ANY, parameters
from ssda.params import load_params
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("research/**/*.md")])
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROGRAMS = {"python", "make", "dvc"}

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@cache
def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    return FENCE.sub("", read(path))


@cache
def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    names: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", prose(path), re.M):
        text = LINK.sub(r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        again = sum(other.rpartition("-")[0] == name or other == name for other in names)
        names.add(f"{name}-{again}" if name in names else name)
    return names


@cache
def defined(path: Path) -> set[str]:
    """Functions, classes, methods as Class.method, and constants of a module."""
    names: set[str] = set()
    for node in ast.parse(read(path)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return names


@page
def test_links_lead_somewhere(path: Path) -> None:
    for text, target in LINK.findall(prose(path)):
        url = urlsplit(target)
        if url.scheme:
            assert url.scheme in ("http", "https") and url.netloc and not url.query, target
            continue
        file = (path.parent / url.path).resolve() if url.path else path
        assert file.exists() and file.is_relative_to(ROOT), f"[{text}]({target})"
        if url.fragment:
            assert file.suffix == ".md" and url.fragment in anchors(file), f"[{text}]({target})"


@page
def test_names_are_in_the_file_that_is_linked(path: Path) -> None:
    for text, target in LINK.findall(prose(path)):
        name = text.strip("`")
        if text.startswith("`") and target.endswith(".py") and not name.endswith(".py"):
            assert name in defined((path.parent / target).resolve()), f"[{text}]({target})"


def test_every_box_of_the_method_is_linked() -> None:
    """A public function of the method that the page does not name is a page out of date."""
    linked = {
        (Path(target).name, text.strip("`"))
        for text, target in LINK.findall(read(ROOT / "docs/method.md"))
    }
    files = {
        path
        for path in (ROOT / "ssda/method").glob("*.py")
        if path.stem in ("losses", "mixing", "subdomains", "trucrf", "uncertainty")
    }
    for path in files:
        functions = {
            node.name
            for node in ast.parse(read(path)).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        }
        assert {name for name in functions if (path.name, name) not in linked} == set(), path.name


@page
def test_every_page_is_reached_from_the_readme(path: Path) -> None:
    reached, todo = set[Path](), [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    while todo:
        file = todo.pop()
        if file not in reached:
            reached.add(file)
            mentioned = [file.parent / target for _, target in LINK.findall(read(file))]
            mentioned += [ROOT / name for name in re.findall(r"`([\w/-]+\.md)`", read(file))]
            todo += [f.resolve() for f in mentioned if f.suffix == ".md" and f.exists()]
    assert path in reached


@page
def test_formulas_survive_markdown(path: Path) -> None:
    """Markdown takes the backslash off punctuation, but not in blocks of mathematics."""
    text = re.sub(r"`[^`]*`", "", prose(path))
    for formula in re.findall(r"\$([^$\n]+)\$", text):
        assert not re.search(r"\\[^a-zA-Z\s]", formula), formula
        assert formula.count("{") == formula.count("}"), formula
    for kind, block in FENCE.findall(read(path)):
        if kind == "math":
            assert len(re.findall(r"\\left\b", block)) == len(re.findall(r"\\right\b", block)), (
                block
            )


def commands(path: Path) -> Iterator[list[str]]:
    """The commands of a page, word by word; what they set in the environment is left out."""
    lines = [line for kind, block in FENCE.findall(read(path)) if kind in ("", "bash", "sh")
             for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip
    lines += re.findall(r"`([^`\n]+)`", prose(path))
    for line in lines:
        for part in re.split(r" && |; |\| ", re.sub(r" # .*| {2,}#.*", "", line)):
            words = re.findall(r"(?:[^\s'\"]|'[^']*'|\"[^\"]*\")+", part.strip())
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words and words[0].rpartition("/")[2] in PROGRAMS:
                yield shlex.split(" ".join(words))


def parse_only(monkeypatch: pytest.MonkeyPatch, module: str, arguments: list[str]) -> None:
    """Let a module parse its arguments; SystemExit where it refuses them."""
    if (ROOT / module.replace(".", "/")).is_dir():
        module += ".__main__"
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *given: object) -> object:
        parse(parser)
        raise SystemExit("parsed")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    if (ROOT / module.replace(".", "/")).is_dir():
        module += ".__main__"
    path = ROOT / f"{module.replace('.', '/')}.py"
    started = next(
        node
        for node in ast.parse(read(path)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
    )
    with pytest.raises(SystemExit) as end:
        exec(ast.unparse(ast.Module(started.body, [])), vars(importlib.import_module(module)))
    assert end.value.code == (0 if "--help" in arguments else "parsed"), f"{module} {arguments}"


@page
def test_commands_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = set(re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.M))
    for words in commands(path):
        line = " ".join(words)
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word]
            assert set(named) <= targets, line
        elif words[0].endswith("python") and words[1:2] == ["-m"]:
            if words[2].split(".")[0] in ("pipeline", "benchmarks", "research", "demo"):
                module = ROOT / words[2].replace(".", "/")
                assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), line
                if words[3:]:
                    with monkeypatch.context() as patch:
                        parse_only(patch, words[2], words[3:])
        elif words[0] == "dvc":
            known_to_dvc(words[1:])
        for key in re.findall(r"(?:-S|--set-param) '?([\w.]+)=", line):
            assert known_key(key), line


def known_key(key: str) -> bool:
    return re.sub(r"^sources\.[\w-]+", f"sources.{ANY}", key) in parameters()


def known_to_dvc(words: list[str]) -> None:
    from dvc.cli.parser import get_main_parser

    get_main_parser().parse_args(words)


@page
def test_parameters_that_are_named_exist(path: Path) -> None:
    """In prose and tables: `adapt.trucrf.radius`, and `.sigma_xy` right after it."""
    sections = {key.split(".")[0] for key in parameters()} - {"evaluate", "sources", "labels"}
    for line in prose(path).splitlines():
        last = ""
        for key in re.findall(r"`(\.?[a-z_]+(?:\.[a-z_]+)*(?:\.\*)?)`", line):
            if key.split(".")[0] in sections and "." in key:
                last = key.removesuffix(".*").rpartition(".")[0]
                assert known_key(key.removesuffix(".*")), key
            elif last and key.startswith("."):
                assert known_key(f"{last}{key}"), f"{last} {key}"


def test_messages_that_are_quoted_are_those_of_the_code() -> None:
    said = "\n".join(
        str(node.value)
        for folder in ("ssda", "pipeline")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    quoted = [
        text
        for text in re.findall(
            r"`([a-z][\w', -]* [\w', -]*)`", prose(ROOT / "docs/troubleshooting.md")
        )
        if text.split()[0] not in PROGRAMS | {"docker", "git", "pip"}
    ]
    assert len(quoted) > 5
    assert [text for text in quoted if text not in said] == []


def test_scripts_for_the_shell_parse() -> None:
    for path in PAGES:
        for kind, block in FENCE.findall(read(path)):
            if kind == "bash":
                subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_presets_that_are_named_are_valid() -> None:
    topics = {"PRESET": "{}", "DATA": "data/{}", "NETWORK": "network/{}", "METHOD": "method/{}"}
    named = {
        tuple(
            topics[key].format(name)
            for key, names in (word.split("=") for word in words[2:])
            for name in names.split()
        )
        for path in PAGES
        for words in commands(path)
        if words[:2] == ["make", "use"]
    }
    assert any(len(names) > 1 for names in named)
    for names in named - {()}:
        load_preset(*names)


def test_the_file_tree_is_the_repository() -> None:
    """Every module is in the tree, and what the tree names is there."""
    blocks = [block for _, block in FENCE.findall(read(ROOT / "CONTRIBUTING.md"))]
    tree = next(block for block in blocks if "ssda/" in block)
    named = set(re.findall(r"[\w/]+\.(?:py|yaml)", tree))
    tracked = subprocess.run(
        ["git", "ls-files", "--", "pipeline", "ssda", "benchmarks", "research", "demo"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    names = {Path(name).name for name in tracked}
    assert named - {"params.yaml", "dvc.yaml"} <= names
    ours = [name for name in tracked if not name.startswith(("ssda/engine/", "demo/"))]
    modules = {Path(name).name for name in ours if name.endswith(".py")}
    assert {name for name in modules if not name.startswith("__")} <= named


def test_defaults_beside_the_paper_are_those_of_the_files() -> None:
    table = read(ROOT / "docs/method.md").partition("## Defaults and the paper")[2]
    rows = re.findall(r"^\| `(adapt[\w.]+)`[^|]*\| ([^|]+) \| ([^|]+) \|", table, re.M)
    assert len(rows) == 6
    files = [params.model_dump() for params in (load_params(), load_preset("gta_resnet101"))]
    for key, *cells in rows:
        for cell, values in zip(cells, files, strict=True):
            for name in key.split("."):
                values = values[name]
            said = {"on": "True", "off": "False"}.get(cell) or cell.strip("`")
            assert said == str(values) or float(said) == values, key
