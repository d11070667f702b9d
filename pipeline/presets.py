"""Take a preset as params.yaml: python -m pipeline.presets gta_mit_b5 method/dacs.

Overlays behind the preset's name take the place of its own in the same folder. Without a name all
presets are listed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline import command
from pipeline.overlays import load_preset, preset_names, preset_text
from pipeline.parameters import commented
from ssda.files import write_text


def use(names: Sequence[str], params: Path) -> None:
    """Write a preset as the parameters; raises ValueError as `load_preset` does."""
    if not names:
        print("presets:", ", ".join(preset_names()))
        return
    load_preset(*names)
    write_text(params, commented(preset_text(*names)))
    print(f"{params} is now {' with '.join(names)}; git diff shows what changed, dvc repro runs it")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a preset, and overlays of it")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_args()
    command.guard(lambda: use(arguments.names, arguments.params), debug=arguments.debug)


if __name__ == "__main__":
    main()
