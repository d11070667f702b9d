"""What changed against another commit, as Markdown: python -m pipeline.diff main.

Metrics and parameters come from the files that DVC tracks, so nothing is run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from pipeline import command

MARKER = "<!-- ssda metrics -->"
"""First line of the text, by which a comment is found again and edited."""


def difference(base: str) -> str:
    """Markdown with DVC's tables of metrics and parameters, base against the workspace.

    Raises ValueError with what DVC says where it cannot compare.
    """
    parts = [MARKER, f"### Against `{base}`"]
    for title, kind in (("Metrics", "metrics"), ("Parameters", "params")):
        table = _dvc(kind, "diff", "--md", base)
        rows = table.splitlines()[2:]
        parts += ["", f"**{title}**", "", table if rows else "No change."]
    return "\n".join(parts) + "\n"


def _dvc(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ValueError(f"dvc {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("base", help="a git commit, branch or tag")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_args()
    command.guard(lambda: print(difference(arguments.base), end=""), debug=arguments.debug)


if __name__ == "__main__":
    main()
