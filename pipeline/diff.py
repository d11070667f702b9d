"""What changed against another commit, and whether it may be merged: python -m pipeline.diff main.

Prints Markdown from the files that git keeps: nothing is run, and no data need be there. Exit code
1, after the tables, where the adapted network's mIoU fell by more than `ALLOWED_FALL`, or where
dvc.lock is stale: then the metrics are those of other code or other parameters.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import command
from pipeline.repository import git, outdated

MARKER = "<!-- ssda metrics -->"
"""First line of the text, by which a comment is found again and edited."""
SCORES = "metrics/evaluate.json"
ALLOWED_FALL = 2.0
"""Points of mIoU. Over random states the default's standard deviation is 1.0, and that of the
difference to another variant in the same state 0.1 to 1.5: a larger fall is hardly chance."""


def compare(base: str) -> None:
    """Print what changed; raises ValueError, after that, where it should not be merged."""
    tables = difference(base)
    reasons = fallen(base) + stale(base)
    verdict = "\n".join(f"- **Not to be merged:** {reason}" for reason in reasons)
    print(f"{MARKER}\n### Against `{base}`\n\n{verdict or 'Nothing against it.'}\n\n{tables}")
    if reasons:
        raise ValueError("; ".join(reasons))


def difference(base: str) -> str:
    """Markdown with DVC's tables of metrics and parameters, base against the workspace.

    The adapted network's classes are folded away. Raises ValueError with what DVC says where it
    cannot compare.
    """
    parts = ["**Metrics**", "", *_table("metrics", base)]
    before, after = (scores.get("iou", {}) for scores in _adapted_scores(base))
    changed = [name for name in after if before.get(name) != after[name]]
    if changed:
        parts += ["", "<details><summary>Classes</summary>", ""]
        parts += [f"| IoU | {base} | workspace |", "| --- | --- | --- |"]
        parts += [f"| {name} | {before.get(name, '-')} | {after[name]} |" for name in changed]
        parts += ["", "</details>"]
    return "\n".join([*parts, "", "**Parameters**", "", *_table("params", base)])


def fallen(base: str) -> list[str]:
    """A reason if the adapted network's mIoU fell by more than chance; none without one in base."""
    old, new = _adapted_scores(base)
    # The first subset of classes, where both have it; what the validation curve shows.
    key = next((key for key in new if key.startswith("miou_") and key in old), "miou")
    before, after = old.get(key), new.get(key)
    if before is None or (after is not None and after >= before - ALLOWED_FALL):
        return []
    return [f"{SCORES}: adapted.{key} was {before} and is {after}; it may fall by {ALLOWED_FALL}"]


def stale(base: str) -> list[str]:
    """A reason if dvc.lock has other code, parameters, commands or metrics than the workspace."""
    found = outdated(base)
    changed = [f"{stage} ({', '.join(names)})" for stage, names in found.items() if names]
    return [f"dvc.lock is stale, `dvc repro` first: {'; '.join(changed)}"] if changed else []


def _adapted_scores(base: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The adapted network's scores in base and here; empty where there are none."""
    path = Path(SCORES)
    texts = git("show", f"{base}:./{SCORES}"), path.read_text("utf-8") if path.exists() else ""
    old, new = (json.loads(text)["adapted"] if text else {} for text in texts)
    return old, new


def _table(kind: str, base: str) -> list[str]:
    """Lines of a table that `dvc diff` draws; one that says so where nothing changed."""
    command = ["dvc", kind, "diff", "--md", base]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    lines = done.stdout.strip().splitlines()
    return lines if lines[2:] else ["No change."]


def main() -> None:
    """The command line."""
    options = command.tool(__doc__)
    options.add_argument("base", help="a git commit, branch or tag")
    command.start(options, lambda given: compare(given.base))


if __name__ == "__main__":
    main()
