from pathlib import Path

import pytest

from ssda.labels import CITYSCAPES, LabelSpace, load_space, parse_space

OWN = """\
classes:
  road: [128, 64, 128]
  Straße_2: [1, 2, 3]
  roof top: [4, 5, 6]
things: [roof top]
subsets: {ground: [Straße_2, road], 1: [road]}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_own_classes_have_the_order_of_the_file(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, OWN))
    assert space == LabelSpace(
        names=("road", "Straße_2", "roof top"),
        colours=((128, 64, 128), (1, 2, 3), (4, 5, 6)),
        things=(2,),
        subsets={"ground": (0, 1), "1": (0,)},
    )
    assert space.num_classes == 3
    assert space.palette()[:4].tolist() == [[128, 64, 128], [1, 2, 3], [4, 5, 6], [0, 0, 0]]


@pytest.mark.parametrize("name", ["cityscapes", "own"])
def test_content_comes_back(tmp_path: Path, name: str) -> None:
    space = load_space(name if name == "cityscapes" else write(tmp_path, OWN))
    assert parse_space(space.content(), "x") == space


def test_things_and_subsets_may_be_left_out(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, "classes: {a: [0, 0, 0], b: [1, 1, 1]}\n"))
    assert (space.things, space.subsets) == ((), {})


def test_cityscapes_is_the_benchmark_s_space() -> None:
    assert load_space("cityscapes") is CITYSCAPES
    assert CITYSCAPES.num_classes == 19
    assert CITYSCAPES.things == (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
    left_out = {name: {*range(19)} - {*ids} for name, ids in CITYSCAPES.subsets.items()}
    assert left_out == {"16": {9, 14, 16}, "13": {3, 4, 5, 9, 14, 16}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("classes: {a: [0, 0, 0]}", "classes = {'a': [0, 0, 0]}: dictionary should have at least"),
        ("classes: {a: [0, 0, 0], b: [0, 0, 0]}", "classes must differ in colour"),
        ("classes: {a: [0, 0, 0], b: [0, 0, 256]}", "classes.b.2 = 256: input should be less"),
        ("classes: {a: [0, 0, 0], b: [0, 0]}", "classes.b.2: missing"),
        (
            "classes: {a: [0, 0, 0], b.c: [1, 1, 1]}",
            "classes.b.c.[key] = 'b.c': string should",
        ),
        ("classes: [a, b]", "classes = ['a', 'b']: input should be a valid dictionary"),
        (f"{OWN}things: [car]", "duplicate key"),
        (
            OWN.replace("[roof top]", "[car]"),
            "things = ['car']: no class 'car': allowed are road, ",
        ),
        (OWN.replace("[Straße_2, road]", "[a]"), "no class 'a': allowed are road, Straße_2, roof"),
        (OWN.replace("[Straße_2, road]", "[]"), "subsets.ground = []: "),
        (OWN.replace("things", "thing"), "thing = ['roof top']: no such key"),
        ("things: []", "classes: missing"),
    ],
)
def test_bad_spaces_give_one_line(tmp_path: Path, text: str, expected: str) -> None:
    name = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        load_space(name)
    message = str(caught.value)
    assert message.startswith(name) and "\n" not in message
    assert expected in message


def test_unknown_names_and_files() -> None:
    with pytest.raises(ValueError, match="labels = 'camvid': allowed are cityscapes and paths of"):
        load_space("camvid")
    with pytest.raises(ValueError, match=r"none\.yaml: No such file"):
        load_space("none.yaml")
