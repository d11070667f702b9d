"""One HTML page of an experiment, or of several side by side: python -m pipeline.page A B.

All of it comes from files that git and DVC track: nothing is run, MLflow is not asked, and the page
holds its pictures, so that it can be sent and read without a network.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipeline import command
from pipeline.drawing.report import WORKSPACE, page
from ssda.files import write_text


def write_page(names: Sequence[str], out: Path) -> None:
    """Write the page; raises what `page` does."""
    write_text(out, page(names) + "\n")


def main() -> None:
    """The command line."""
    options = command.tool(__doc__)
    text = "DVC experiments, branches, tags or commits (default: what lies in the workspace)"
    options.add_argument("experiments", nargs="*", default=[WORKSPACE], help=text)
    options.add_argument("--out", type=Path, default=Path("report.html"))

    def work(given: Namespace) -> None:
        write_page(given.experiments, given.out)
        print(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB, for any browser")

    command.start(options, work)


if __name__ == "__main__":
    main()
