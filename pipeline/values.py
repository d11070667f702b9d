"""Parameters as a table of texts, as MLflow, the report page and options of DVC have them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from ssda.sections import dotted

UNTRACKED = "runtime"
"""The section that changes no result."""


def flat(section: Mapping[str, Any]) -> dict[str, str]:
    """{"adapt.trucrf.radius": "5", ...}, without `runtime`; `nested` takes it back."""
    values = dict(dotted({name: v for name, v in section.items() if name != UNTRACKED}))
    return {name: _text(value) for name, value in values.items()}


def nested(texts: Mapping[str, str]) -> dict[str, Any]:
    """Sections with values from what `flat` gave."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        section = values
        *path, last = name.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = _value(text)
    return values


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What differs of two flat tables, as options of `dvc exp run`."""
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    return [f"-S {shlex.quote(f'{name}={value}')}" for name, value in changed.items()]


def _text(value: Any) -> str:
    plain = isinstance(value, str) and _value(value) == value
    return value if plain else json.dumps(value)


def _value(text: str) -> Any:
    """A JSON value; a text that is none stands for itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
