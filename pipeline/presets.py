"""Take a preset as params.yaml: python -m pipeline.presets gta_small; without a name, list them."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import command
from ssda.files import write_text
from ssda.params import load_params

FOLDER = Path("presets")


def use(name: str | None, params: Path) -> None:
    """Copy presets/NAME.yaml over the parameters; ValueError for an unknown or invalid preset."""
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name is None:
        print("presets:", ", ".join(known))
        return
    if name not in known:
        raise ValueError(f"preset {name!r}: allowed are {', '.join(known)}")
    preset = FOLDER / f"{name}.yaml"
    load_params(preset)
    write_text(params, preset.read_text(encoding="utf-8"))
    print(f"{params} is now {preset}; git diff shows what changed, dvc repro runs it")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", nargs="?", help="a file of presets/ without its ending")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_args()
    command.guard(lambda: use(arguments.name, arguments.params), debug=arguments.debug)


if __name__ == "__main__":
    main()
