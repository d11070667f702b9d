"""Ours beside the methods that it stands on: as many steps each, one table.

    python -m research.baselines --targets city camvid --states 0 1 2 --jobs 2

The methods are the overlays of presets/method; runs are kept as those of `research.ablation`.
"""

from __future__ import annotations

from research.ablation import options, read_results, run
from research.summary import markdown
from research.variants import BASELINES

SETTING = "default"
OURS = "method/corrected_ratios"


def main() -> None:
    """Run what is missing, print the table of each target."""
    arguments = options(__doc__).parse_args()
    run(arguments, [*BASELINES], SETTING)
    results = [each for each in read_results(arguments.out) if each.variant in BASELINES]
    for target in arguments.targets:
        here = [each for each in results if (each.setting, each.target) == (SETTING, target)]
        print(markdown(f"Methods, target {target}", here, OURS))


if __name__ == "__main__":
    main()
