"""All questions of speed, each part in a process of its own, as one table, and in the documents.

python -m benchmarks
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.documents import PARTS, figures
from benchmarks.measure import HEADER, rows
from pipeline.drawing.tables import fill_documents


def main() -> None:
    """Run the parts, or those named on the command line; print one table."""
    parts = sys.argv[1:] or PARTS
    for part in parts:
        print(f"benchmarks.{part} ...", file=sys.stderr)
        command = [sys.executable, "-m", f"benchmarks.{part}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(HEADER, *(row for part in parts for row in rows(part)), sep="\n")
    fill_documents("benchmarks", figures())


if __name__ == "__main__":
    main()
