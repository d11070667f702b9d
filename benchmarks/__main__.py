"""All questions of speed, each part in a process of its own, as one table.

python -m benchmarks
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.measure import HEADER, rows

PARTS = ("trucrf", "step", "data", "conversion", "evaluation", "startup", "growth")


def main() -> None:
    """Run the parts, or those named on the command line; print one table."""
    parts = sys.argv[1:] or PARTS
    for part in parts:
        print(f"benchmarks.{part} ...", file=sys.stderr)
        command = [sys.executable, "-m", f"benchmarks.{part}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(HEADER, *(row for part in parts for row in rows(part)), sep="\n")


if __name__ == "__main__":
    main()
