"""Ours beside the methods that it stands on: as many steps each, one table.

    python -m research.baselines --targets city camvid --states 0 1 2 --jobs 2

The methods are the overlays of presets/method; runs are those of `research.ablation`, in a file of
their own.
"""

from __future__ import annotations

from pathlib import Path

from research.ablation import options, read_results, run
from research.summary import markdown
from research.variants import BASELINES

RUNS = Path("research/results/baselines.jsonl")
OURS = "method/corrected_ratios"


def main() -> None:
    """Run what is missing, print the table of each target."""
    arguments = options(__doc__, RUNS).parse_args()
    run(arguments, [*BASELINES])
    results = read_results(arguments.out)
    for target in arguments.targets:
        chosen = (arguments.setting, target)
        here = [each for each in results if (each.setting, each.target) == chosen]
        print(markdown(f"Methods, setting {arguments.setting}, target {target}", here, OURS))


if __name__ == "__main__":
    main()
