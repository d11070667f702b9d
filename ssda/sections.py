"""YAML that is checked: frozen sections that know all their keys, and errors of one line."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError, YAMLStreamError
from ruamel.yaml.tokens import (
    AliasToken,
    BlockEndToken,
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingEndToken,
    FlowMappingStartToken,
    FlowSequenceEndToken,
    FlowSequenceStartToken,
)

SectionType = TypeVar("SectionType", bound=BaseModel)
LARGEST_TEXT = 256 * 1024
"""Bytes of YAML; more would take many seconds to read."""
DEEPEST = 50
"""Levels of YAML; a few hundred are more than ruamel's recursion can take."""
LONGEST = 160
"""Characters of a value in a message."""
OPENING = (
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingStartToken,
    FlowSequenceStartToken,
)
CLOSING = (BlockEndToken, FlowMappingEndToken, FlowSequenceEndToken)


class Section(BaseModel):
    """A frozen section that knows all its keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def read_yaml(path: Path) -> Any:
    """Content of a YAML 1.2 file, as plain Python objects.

    Raises ValueError with one line that names the file where it is missing, and as `parse_yaml`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TEXT + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, name: str) -> Any:
    """Content of a YAML 1.2 text, as plain Python objects.

    Raises ValueError with one line that names the text where it is no YAML, larger than
    LARGEST_TEXT, nested deeper than DEEPEST or holds an alias: a few lines of aliases can stand for
    billions of values.
    """
    if len(content) > LARGEST_TEXT:
        raise ValueError(f"{name}: not valid YAML: larger than {LARGEST_TEXT // 1024} KiB")
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        text = content.decode("utf-8")
        _check_tokens(yaml.scan(text), name)
        return yaml.load(text)
    except (YAMLError, YAMLStreamError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise ValueError(f"{name}:{place} not valid YAML: {_short(problem)}") from error


def parse_json(content: str | bytes, name: str) -> Any:
    """Content of a JSON text; ValueError with one line that names the text where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not valid JSON: {_short(str(error))}") from error


class _Constructor(SafeConstructor):
    """Says the line of a value that is none of its kind."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A node's value."""
        with _naming_line(node):
            return super().construct_object(node, deep)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping's keys and values."""
        with _naming_line(node):
            return super().construct_mapping(node, deep)


@contextmanager
def _naming_line(node: Any) -> Generator[None]:
    """What ruamel trips over (!!bool maybe, an empty !!int, a 13th month) is an error of a line."""
    try:
        yield
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        problem = f"no {node.tag.rpartition(':')[2]}: {error}"
        raise ConstructorError(None, None, problem, node.start_mark) from error


def _check_tokens(tokens: Iterable[Any], name: str) -> None:
    """Raise as `parse_yaml` does; tokens come one by one, so that no depth takes long."""
    depth = 0
    for token in tokens:
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        problem = None
        if isinstance(token, AliasToken):
            problem = f"alias *{token.value}: write the value out"
        elif depth > DEEPEST:
            problem = f"not valid YAML: nested deeper than {DEEPEST}"
        if problem:
            raise ValueError(f"{name}: line {token.start_mark.line + 1} {_short(problem)}")


def dotted(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("adapt.trucrf.radius", 5), ...: the values in a section and in those below it."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def set_values(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, changed in place at dotted keys, as in {"adapt.trucrf.radius": 3}."""
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return values


def changed(section: SectionType, changes: Mapping[str, Any]) -> SectionType:
    """The section with other values at dotted keys, as for `set_values`; they are not checked."""
    for key, value in changes.items():
        name, _, below = key.partition(".")
        inner = changed(getattr(section, name), {below: value}) if below else value
        section = section.model_copy(update={name: inner})
    return section


def validate(model: type[SectionType], values: Any, name: str) -> SectionType:
    """The values as a checked model.

    Raises ValueError with one line that names the file, the key, the value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = _short(".".join(str(part) for part in first["loc"]))
        given = "" if first["type"] == "missing" else f" = {_short(repr(first['input']))}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        place = f"{key}{given}: " if key else ""
        raise ValueError(f"{name}: {place}{_allowed(first)}{more}") from error


def _allowed(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "no such key"
    if error["type"] == "missing":
        return "missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _short(text: str) -> str:
    """On one line, cut in the middle where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
