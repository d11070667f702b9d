"""Tables of numbers as files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssda.files import write_text

Row = Mapping[str, float | int | str]


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
