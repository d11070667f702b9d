"""Tables of numbers as files, and figures in documents."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssda.files import write_text

Row = Mapping[str, float | int | str]
MARKED = re.compile(r"(<!-- (\w+): ([^>]+) -->)(.*?)(<!-- end -->)", re.S)
"""A figure or a table in Markdown: who writes it, its name, and what is written now."""


def rounded(values: Mapping[str, float | None], digits: int) -> dict[str, float]:
    """Rounded numbers, without what is none."""
    return {
        name: round(value, digits)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Rows as CSV, with all keys as columns in order of appearance; a missing value is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(columns)]
    lines += [",".join(str(row.get(column, "")) for column in columns) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def documents() -> list[Path]:
    """The pages that may hold figures, below the working directory."""
    return [Path("README.md"), *sorted(Path("docs").glob("*.md"))]


def filled(text: str, writer: str, figures: Mapping[str, str]) -> str:
    """A page of Markdown with what a writer has for each of its marks; ValueError for others."""

    def fill(match: re.Match[str]) -> str:
        start, by, name, _, end = match.groups()
        if by != writer:
            return match[0]
        if name not in figures:
            raise ValueError(f"{start}: {writer} has no such figure")
        content = figures[name]
        return f"{start}\n{content}\n{end}" if "\n" in content else f"{start}{content}{end}"

    return MARKED.sub(fill, text)


def fill_documents(writer: str, figures: Mapping[str, str]) -> None:
    """Write a writer's figures into the pages; one that is right already stays untouched."""
    texts = {path: path.read_text(encoding="utf-8") for path in documents()}
    for path, new in {path: filled(text, writer, figures) for path, text in texts.items()}.items():
        if new != texts[path]:
            write_text(path, new)
            print(f"wrote {path}")
