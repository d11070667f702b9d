"""Write docs/parameters.md and the comments in params.yaml and its copy from ssda/params.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import command
from pipeline.overlays import BASE, FOLDER, load_preset
from ssda.files import write_text
from ssda.params import Params
from ssda.sections import read_yaml

PAGE = Path("docs/parameters.md")
DEFAULTS = Path("params.yaml")
PAPER = "gta_resnet101"
ANY = "NAME"
"""Stands for the name of a source."""
RERUNS = "A change reruns the stages from `{}` on."
COLUMN = 29
"""Where comments begin, unless a value is longer."""


@dataclass(frozen=True)
class Parameter:
    """A key of params.yaml.

    Attributes:
        key: as in adapt.trucrf.radius.
        text: what it means.
        node: its JSON schema.
        section: whether it is nothing but the keys below it.
    """

    key: str
    text: str
    node: dict[str, Any]
    section: bool


def parameters() -> dict[str, Parameter]:
    """Every key of the typed model, in its order."""
    schema = Params.model_json_schema()
    found = _walk(schema, schema["$defs"], "")
    return {parameter.key: parameter for parameter in found}


def _walk(schema: dict[str, Any], definitions: dict[str, Any], above: str) -> Iterator[Parameter]:
    for name, node in schema["properties"].items():
        key = f"{above}{name}"
        below = _definition(node, definitions)
        text = node.get("description") or (below or {}).get("description", "")
        section = "$ref" in node or "patternProperties" in node
        yield Parameter(key, " ".join(text.split()), node, section)
        if below is not None:
            yield from _walk(below, definitions, f"{key}.")
        for each in node.get("patternProperties", {}).values():
            below = _definition(each, definitions)
            assert below is not None
            yield Parameter(f"{key}.{ANY}", "", each, True)
            yield from _walk(below, definitions, f"{key}.{ANY}.")


def _definition(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a node stands for, if it does."""
    for option in (node, *node.get("anyOf", [])):
        if "$ref" in option:
            return definitions[option["$ref"].rpartition("/")[2]]
    return None


def interval(node: dict[str, Any]) -> str:
    """The bounds of a number, as in (0, 1] or >= 2; empty for one without."""
    opened, closed = node.get("exclusiveMinimum"), node.get("minimum")
    below, most = node.get("exclusiveMaximum"), node.get("maximum")
    if below is None and most is None:
        return f"> {opened}" if opened is not None else f">= {closed}" if closed is not None else ""
    lower = f"[{closed}" if closed is not None else f"({opened}"
    return f"{lower}, {most}]" if most is not None else f"{lower}, {below})"


def allowed(node: dict[str, Any]) -> str:
    """What a key may be, in Markdown."""
    if "anyOf" in node:
        return f"{allowed(node['anyOf'][0]) or 'keys as below'} or `null`"
    if "enum" in node:
        return ", ".join(f"`{choice}`" for choice in node["enum"])
    if "prefixItems" in node:
        return f"two, each a {allowed(node['prefixItems'][0])}"
    kinds = {"integer": "whole number", "number": "number", "string": "text", "array": "list"}
    if node.get("type") == "boolean":
        return "`true`, `false`"
    return f"{kinds.get(node.get('type', ''), '')} {interval(node)}".strip()


def comment(parameter: Parameter) -> str:
    """What stands behind a key in YAML: choices or bounds that one must know, and the meaning."""
    node = dict(parameter.node.get("anyOf", [parameter.node])[0])
    if node.get("maximum", 0) > 1:  # a bound that nobody meets: it is on the page
        node.pop("maximum")
    known = " | ".join(str(choice) for choice in node.get("enum", [])) or interval(node)
    text = parameter.text.rstrip(".")
    rest = text.split(" ")[0][1:]
    if rest == rest.lower():  # not AdamW
        text = text[:1].lower() + text[1:]
    return text if known in ("", ">= 0", ">= 1") else f"{known}; {text}"


def commented(text: str) -> str:
    """The YAML of parameters with the comment of each key as `comment` has it."""
    known = parameters()
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    for line in text.splitlines():
        match = re.match(r"( *)([\w-]+):( +[^#\s][^#]*?)?\s*(#.*)?$", line)
        if match:
            indent, name, value = len(match[1]), match[2], match[3] or ""
            path = [(depth, key) for depth, key in path if depth < indent]
            inside = [key for _, key in path]
            path.append((indent, ANY if inside == ["sources"] else name))
            key = ".".join(part for _, part in path)
            what = comment(known[key]) if key in known else ""
            line = f"{match[1]}{name}:{value}"
            if what:
                line = f"{line + '  ':<{COLUMN}}# {what}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/parameters.md."""
    defaults = read_yaml(DEFAULTS)
    paper = load_preset(PAPER).model_dump(mode="json", by_alias=True)
    reruns = {
        param: name
        for name, stage in reversed(read_yaml(Path("dvc.yaml"))["stages"].items())
        for param in stage.get("params", [])
    }
    lines = [
        "# Parameters",
        "",
        "<!-- Written by python -m pipeline.parameters from ssda/params.py: edit that. -->",
        "",
        "Every key of [`params.yaml`](../params.yaml): its default there (the built-in benchmark), "
        f"its value in the preset [`{PAPER}`](../{FOLDER}/{PAPER}.yaml) (the paper's network and "
        "weights on real data) and what it may be. A wrong key, type or value is refused, with one "
        "line, before any work starts. There is no other place with defaults: `make use` writes a "
        "complete file.",
        "",
        "`dvc exp run -S adapt.trucrf.radius=3` sets one for one experiment.",
    ]
    tables: dict[str, list[Parameter]] = {}
    known = parameters()
    for parameter in known.values():
        if not parameter.section:
            above = parameter.key.rpartition(".")[0]
            tables.setdefault(above, []).append(parameter)
    for above, rows in tables.items():
        lines += ["", f"## {above}" if above else "## At the top"]
        text = known[above].text or known["sources"].text if above else ""
        stage = reruns.get(above.split(".")[0])
        follows = RERUNS.format(stage) if stage else ""
        lines += ["", f"{text} {follows}".strip()] if text or follows else []
        lines += ["", "| key | default | paper | allowed | meaning |", "| --- " * 5 + "|"]
        for row in rows:
            meaning = row.text
            if not above:
                meaning += " " + RERUNS.format(reruns[row.key])
            lines.append(
                f"| `{row.key.rpartition('.')[2]}` | {_value(defaults, row.key)} "
                f"| {_value(paper, row.key)} | {allowed(row.node)} | {meaning} |"
            )
    return "\n".join(lines) + "\n"


def _value(values: Any, key: str) -> str:
    """The value of a key in a file, in Markdown; of the first source; empty where there is none."""
    for part in key.split("."):
        if values is None:
            return ""
        values = next(iter(values.values())) if part == ANY else values[part]
    if values is None or isinstance(values, bool):
        return f"`{'null' if values is None else str(values).lower()}`"
    return f"`{values:g}`" if isinstance(values, float) else f"`{values}`"


def write() -> None:
    """Write the page and the comments; a file that is right already stays untouched."""
    texts = {path: commented(path.read_text(encoding="utf-8")) for path in commented_files()}
    for path, text in {**texts, PAGE: page()}.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(f"wrote {path}")


def commented_files() -> list[Path]:
    """The files whose comments the typed model gives."""
    return [DEFAULTS, BASE]


if __name__ == "__main__":
    command.start(command.tool(__doc__), lambda _: write())
