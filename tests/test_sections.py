"""YAML and JSON of users: what is none of them is told in one line, and soon."""

import time
from pathlib import Path

import pytest

from ssda.sections import LARGEST_TEXT, changed, parse_json, read_yaml
from tests.conftest import make_params

BROKEN = {
    "a: 1\nb: !!bool maybe": "line 2 not valid YAML: no bool: 'maybe'",
    "a: 1\nb: !!int": "line 2 not valid YAML: no int",
    "b: !!float ''": "line 1 not valid YAML: no float",
    "b: !!bool": "line 1 not valid YAML: no bool",
    "b: !!int _": "line 1 not valid YAML: no int",
    "b: !!timestamp x": "line 1 not valid YAML: .*timestamp",
    "b: !!omap x": "line 1 not valid YAML",
    "a: 1\n\nb: 2001-13-01": "line 3 not valid YAML: no timestamp: month",
    "b: 2001-02-31": "line 1 not valid YAML: no timestamp: day",
    "b: " + "9" * 5000: "line 1 not valid YAML: no int",
    "? [1, {a: 2}]\n: 2": "line 1 not valid YAML: no map: unhashable",
    "a: \x01": "not valid YAML: unacceptable character",
    "".join(f"{'  ' * level}a:\n" for level in range(400)): "line 51 not valid YAML: nested",
    "[" * 10_000: "line 1 not valid YAML: nested deeper than 50",
    "[\n" * 10_000: "line 51 not valid YAML: nested deeper than 50",
    "{a: " * 10_000: "line 1 not valid YAML: nested deeper than 50",
    "- " * 10_000: "line 1 not valid YAML: nested deeper than 50",
    "? " * 10_000: "line 1 not valid YAML: nested deeper than 50",
    "a: 1\n" * (LARGEST_TEXT // 4): "not valid YAML: larger than 256 KiB",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: repr(text[:20]))
def test_what_is_no_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    before = time.process_time()
    with pytest.raises(ValueError, match=rf"^{path}: ?{BROKEN[text]}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert time.process_time() - before < 5


def test_what_is_as_deep_and_large_as_may_be_is_read(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("[" * 50 + "]" * 50 + "#" * (LARGEST_TEXT - 100))
    assert str(read_yaml(path)) == "[" * 50 + "]" * 50


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": ' * 100_000, "9" * 5000, b"\xff"])
def test_what_is_no_json_is_one_line(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^index\.json: not valid JSON: ") as caught:
        parse_json(text, "index.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_section_with_other_values_leaves_the_first_as_it_was() -> None:
    params = make_params()
    other = changed(params, {"adapt.trucrf.radius": 3, "random_state": 4})
    assert (other.adapt.trucrf.radius, other.random_state) == (3, 4)
    assert (params.adapt.trucrf.radius, params.random_state) == (5, 0)
    assert other.adapt.losses == params.adapt.losses
