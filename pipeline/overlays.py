"""Presets: overlays of presets/demo.yaml, each only what it changes.

A preset may stand on others, `overlays: [data/gta, network/mit_b5, method/dacs]`, which must not
contradict one another, and lays what it says itself over them. Sources that are named take the
place of the demo's. Overlays that a user names beside a preset lie over those it stands on.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from ssda.params import Params
from ssda.sections import dotted, parse_yaml, read_yaml, validate

FOLDER = Path("presets")
BASE = FOLDER / "demo.yaml"
OVERLAYS = "overlays"


@dataclass(frozen=True)
class Overlay:
    """What a preset says, with what it stands on.

    Attributes:
        name: its path below presets/, without the ending.
        heads: the comments at the heads of its file and of those that it stands on.
        changes: sections of parameters.
    """

    name: str
    heads: tuple[str, ...]
    changes: dict[str, Any]


class _Representer(RoundTripRepresenter):
    """Writes null as it is in the base."""

    def represent_none(self, data: None) -> Any:
        """A null is a word."""
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def preset_names() -> list[str]:
    """The presets, then the overlays by topic, as in method/dacs."""
    topics = (FOLDER / topic for topic in ("data", "network", "method"))
    paths = [path for folder in (FOLDER, *topics) for path in sorted(folder.glob("*.yaml"))]
    return [path.relative_to(FOLDER).with_suffix("").as_posix() for path in paths]


def load_preset(name: str, *instead: str) -> Params:
    """The parameters of a preset; raises ValueError as `preset_text` does."""
    title = " with ".join((name, *instead))
    return validate(Params, parse_yaml(preset_text(name, *instead).encode(), title), title)


def overlay_changes(name: str) -> dict[str, Any]:
    """What an overlay and those that it stands on change, by dotted key; ValueError likewise."""
    return dict(dotted(_overlay(name, (), _read(BASE)[1]).changes))


def preset_text(name: str, *instead: str) -> str:
    """A complete params.yaml, with the comments of the base.

    Args:
        name: of a preset.
        instead: overlays that take the place of those in the same folder that it stands on, and
            lie over the others.

    Raises:
        ValueError: one line, where a preset is not known or not well formed, has a key that the
            base lacks, or where overlays that it stands on, or that are laid over it, contradict
            one another.
    """
    head, values = _read(BASE)
    overlay = _overlay(name, instead, values)
    if "sources" in overlay.changes:
        values["sources"] = {}
    _lay(values, overlay.changes)
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 10_000
    text = io.StringIO()
    yaml.dump(values, text)
    lines = [line for line in text.getvalue().splitlines() if line and not line.startswith("#")]
    body = "".join(f"\n{line}\n" if line[0].isalpha() else f"{line}\n" for line in lines)
    return "#\n".join(dict.fromkeys((head, *overlay.heads))) + body


def _overlay(
    name: str, instead: Sequence[str], base: dict[str, Any], above: tuple[str, ...] = ()
) -> Overlay:
    path = FOLDER / f"{name}.yaml"
    if name not in (known := preset_names()):
        alike = [each for each in known if _topic(each) == _topic(name)] or known
        raise ValueError(f"preset {name!r}: allowed are {', '.join(alike)}")
    if name in above:
        raise ValueError(f"{path}: stands on itself")
    head, changes = _read(path)
    if path == BASE:  # all lies over it
        changes = {}
    names: Any = changes.pop(OVERLAYS, [])
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise ValueError(f"{path}: {OVERLAYS} = {names!r}: must be a list of names")
    _check_keys(path, changes, base)
    replaced = {_topic(each) for each in instead}
    names = [each for each in names if _topic(each) not in replaced]
    own, asked = (
        [_overlay(each, (), base, (*above, name)) for each in group] for group in (names, instead)
    )
    below = [*own, *asked]
    together: dict[str, Any] = {}
    for one, other in (*combinations(own, 2), *combinations(asked, 2)):
        said = dict(dotted(one.changes))
        for key, value in dotted(other.changes):
            if said.get(key, value) != value:
                raise ValueError(
                    f"{path}: {key} is {said[key]} in {one.name} and {value} in {other.name}"
                )
    for each in below:
        _lay(together, each.changes)
    _lay(together, changes)
    heads = dict.fromkeys(each for overlay in below for each in overlay.heads)
    return Overlay(name, (*filter(None, [head]), *heads), together)


def _topic(name: str) -> str:
    return name.rpartition("/")[0]


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """The comment at the head of a file, and what it says, numbers as they are written there."""
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be sections of parameters")
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:count]), YAML().load(text) or {}


def _check_keys(path: Path, changes: dict[str, Any], base: dict[str, Any], above: str = "") -> None:
    for key, value in changes.items():
        if key not in base:
            raise ValueError(f"{path}: {above}{key}: no such key")
        if key != "sources" and isinstance(value, dict) and isinstance(base[key], dict):
            _check_keys(path, value, base[key], f"{above}{key}.")


def _lay(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Change nested values in place, section by section."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _lay(values[key], value)
        else:
            values[key] = value
