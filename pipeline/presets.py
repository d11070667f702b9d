"""Take a preset as params.yaml: python -m pipeline.presets gta_mit_b5 method/dacs.

Overlays behind the preset's name take the place of its own in the same folder. Without a name all
presets are listed.
"""

from __future__ import annotations

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
    options = command.parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help="a preset, and overlays of it")
    command.start(options, lambda given: use(given.names, given.params))


if __name__ == "__main__":
    main()
