"""Pages: a template and what goes into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def rendered(template: Path, **values: Any) -> str:
    """A template's page; text in it is escaped, and a name that it lacks a value for is a fault."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
