"""How the studies write what they found."""

from __future__ import annotations

from typing import Any


def rounded(value: Any, digits: int) -> Any:
    """The same dicts and lists, fractions rounded."""
    if isinstance(value, dict):
        return {name: rounded(inner, digits) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner, digits) for inner in value]
    return round(value, digits) if isinstance(value, float) else value


def table(title: str, rows: list[dict[str, object]]) -> str:
    """Markdown."""
    names = list(rows[0])
    lines = [f"\n{title}\n", f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]
    for row in rows:
        cells = [
            f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
