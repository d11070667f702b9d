"""YAML that is checked: frozen sections that know all their keys, and errors of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.tokens import AliasToken

SectionType = TypeVar("SectionType", bound=BaseModel)


class Section(BaseModel):
    """A frozen section that knows all its keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def read_yaml(path: Path) -> Any:
    """Content of a YAML 1.2 file, as plain Python objects.

    Raises ValueError with one line that names the file where it is missing, no YAML or holds an
    alias: a few lines of aliases can stand for billions of values.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        text = path.read_text(encoding="utf-8")
        for token in yaml.scan(text):
            if isinstance(token, AliasToken):
                line = token.start_mark.line + 1
                raise ValueError(f"{path}: line {line} alias *{token.value}: write the value out")
        return yaml.load(text)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}:{place} not valid YAML: {problem}") from error


def validate(model: type[SectionType], values: Any, name: str) -> SectionType:
    """The values as a checked model.

    Raises ValueError with one line that names the file, the key, the value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f" = {first['input']!r}"
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
