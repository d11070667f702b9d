import glob
import pickle
from pathlib import Path

import pytest

from ssda.datasets.layouts import (
    LAYOUTS,
    check_classes,
    find_images,
    find_labels,
    load_layout,
    pack,
)
from ssda.labels import CITYSCAPES, parse_space


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def custom(folder: Path, text: str) -> str:
    path = folder / "layout.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_gta_pairs_images_and_labels_of_the_same_name(tmp_path: Path) -> None:
    touch(
        tmp_path, "images/00002.png", "images/00001.png", "images/.hidden.png", "labels/00001.png"
    )
    images = find_images(LAYOUTS["gta"], tmp_path, "train")
    assert [image.name for image in images] == ["00001", "00002"]
    assert [image.path for image in images] == ["images/00001.png", "images/00002.png"]
    assert [image.label for image in images] == ["labels/00001.png", "labels/00002.png"]
    assert find_labels(LAYOUTS["gta"], tmp_path, "train", images) == ["labels/00001.png"]


def test_synthia_lies_in_its_own_folders(tmp_path: Path) -> None:
    touch(tmp_path, "RGB/0000000.png")
    (image,) = find_images(LAYOUTS["synthia"], tmp_path, "train")
    assert (image.name, image.label) == ("0000000", "GT/LABELS/0000000.png")


def test_cityscapes_keeps_city_folders(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png",
        "leftImg8bit/train/bonn/bonn_000000_000019_leftImg8bit.png",
        "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png",
        "gtFine/val/ulm/ulm_000000_000019_gtFine_color.png",
    )
    (image,) = images = find_images(LAYOUTS["cityscapes"], tmp_path, "val")
    assert image.name == "ulm_000000_000019"
    assert image.label == "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png"
    assert find_labels(LAYOUTS["cityscapes"], tmp_path, "val", images) == [image.label]


# The label table of cityscapesScripts, id and trainId; the other ids are void there, and so is the
# licence plate: id -1 there, palette index 34 of GTA.
CITYSCAPES_TABLE = [
    *((7, 0), (8, 1), (11, 2), (12, 3), (13, 4), (17, 5), (19, 6), (20, 7), (21, 8), (22, 9)),
    *((23, 10), (24, 11), (25, 12), (26, 13), (27, 14), (28, 15), (31, 16), (32, 17), (33, 18)),
]
CITYSCAPES_VOID = [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 34]
SYNTHIA_TABLE = [
    *((3, 0), (4, 1), (2, 2), (21, 3), (5, 4), (7, 5), (15, 6), (9, 7), (6, 8), (16, 9)),
    *((1, 10), (10, 11), (17, 12), (8, 13), (18, 14), (19, 15), (20, 16), (12, 17), (11, 18)),
]
SYNTHIA_VOID = [0, 13, 14, 22]


@pytest.mark.parametrize(
    ("name", "table", "void"),
    [
        ("gta", CITYSCAPES_TABLE, CITYSCAPES_VOID),
        ("cityscapes", CITYSCAPES_TABLE, CITYSCAPES_VOID),
        ("synthia", SYNTHIA_TABLE, SYNTHIA_VOID),
    ],
)
def test_id_maps_equal_the_published_tables(
    name: str, table: list[tuple[int, int]], void: list[int]
) -> None:
    layout = LAYOUTS[name]
    trains = {raw: CITYSCAPES.names.index(train) for raw, train in layout.ids.items()}
    assert trains == dict(table)
    assert sorted(layout.void) == void


def test_layouts_travel_between_processes() -> None:
    assert pickle.loads(pickle.dumps(LAYOUTS["gta"])) == LAYOUTS["gta"]


def test_custom_layout_with_ids(tmp_path: Path) -> None:
    name = custom(
        tmp_path,
        'images: "rgb/{split}/*.jpg"\nlabels: "ids/{split}/{name}_ids.png"\n'
        "ids: {0: road, 7: building}\nvoid: [255]\nsize: [640, 480]\n",
    )
    layout = load_layout(name)
    assert (layout.name, layout.values, layout.size) == (name, "index", (640, 480))
    assert (layout.ids, layout.void) == ({0: "road", 7: "building"}, (255,))
    touch(tmp_path, "rgb/day/é 1.jpg", "rgb/day/b.png")
    (image,) = find_images(layout, tmp_path, "day")
    assert (image.name, image.label) == ("é 1", "ids/day/é 1_ids.png")


def test_custom_layout_with_colours(tmp_path: Path) -> None:
    layout = load_layout(
        custom(
            tmp_path,
            'images: "*.png"\nlabels: "truth/{name}.png"\n'
            "colours: {road: [128, 64, 128], car: [0, 0, 142]}\nvoid: [[0, 0, 0]]\n",
        )
    )
    assert layout.values == "colours"
    assert layout.ids == {pack((128, 64, 128)): "road", pack((0, 0, 142)): "car"}
    assert layout.void == (0,)


def test_a_class_may_have_several_colours(tmp_path: Path) -> None:
    text = "images: 'i/*.png'\nlabels: 'l/{name}.png'\n"
    layout = load_layout(
        custom(tmp_path, text + "colours: {car: [[1, 1, 1], [2, 2, 2]], road: [3, 3, 3]}\n")
    )
    expected = {pack((1, 1, 1)): "car", pack((2, 2, 2)): "car", pack((3, 3, 3)): "road"}
    assert layout.ids == expected


def test_a_custom_layout_may_be_like_a_known_one(tmp_path: Path) -> None:
    synthia = LAYOUTS["synthia"]
    merged = load_layout(custom(tmp_path, "like: synthia\nids: {3: ground, 4: ground}\n"))
    assert (merged.images, merged.labels, merged.values) == (
        synthia.images,
        synthia.labels,
        "red16",
    )
    assert merged.ids == {3: "ground", 4: "ground"}
    assert sorted([*merged.ids, *merged.void]) == list(range(23))
    moved = load_layout(custom(tmp_path, "like: gta\nimages: 'rgb/*.jpg'\n"))
    assert (moved.images, moved.labels) == ("rgb/*.jpg", "labels/{name}.png")
    assert (moved.ids, moved.void) == (LAYOUTS["gta"].ids, LAYOUTS["gta"].void)
    assert moved.resize_labels


def test_classes_that_the_label_space_lacks_are_named(tmp_path: Path) -> None:
    space = parse_space({"classes": {"road": (0, 0, 0), "tree": (1, 1, 1)}}, "x")
    with pytest.raises(ValueError) as caught:
        check_classes(LAYOUTS["gta"], space, "own.yaml")
    assert str(caught.value) == (
        "layout gta: 8 is 'sidewalk', which is no class of labels own.yaml: allowed are road, tree"
    )
    check_classes(load_layout(custom(tmp_path, "like: gta\nids: {7: road}\n")), space, "own.yaml")


def test_labels_beside_the_images_are_no_images(tmp_path: Path) -> None:
    layout = load_layout(
        custom(tmp_path, 'images: "a[1]/*.png"\nlabels: "a[1]/{name}_L.png"\nids: {0: road}\n')
    )
    touch(tmp_path, "a[1]/x.png", "a[1]/x_L.png")
    (image,) = images = find_images(layout, tmp_path, "train")
    assert image.path == "a[1]/x.png"
    assert find_labels(layout, tmp_path, "train", images) == ["a[1]/x_L.png"]


def test_repeated_names_take_their_folder(tmp_path: Path) -> None:
    layout = load_layout(
        custom(
            tmp_path, 'images: "rgb/**/*.png"\nlabels: "ids/{folder}/{name}.png"\nids: {0: road}\n'
        )
    )
    touch(tmp_path, "rgb/a/b/1.png", "rgb/1.png", "rgb/a/2.png", "ids/a/b/1.png", "ids/1.png")
    images = find_images(layout, tmp_path, "train")
    assert [image.name for image in images] == ["1", "a_2", "a_b_1"]
    assert [image.label for image in images] == ["ids/1.png", "ids/a/2.png", "ids/a/b/1.png"]
    assert find_labels(layout, tmp_path, "train", images) == ["ids/1.png", "ids/a/b/1.png"]
    touch(tmp_path, "rgb/a_b/1.png")
    with pytest.raises(ValueError, match=r"a/b/1\.png and rgb/a_b/1\.png share a name"):
        find_images(layout, tmp_path, "train")


def test_any_folder_means_what_it_means_to_glob(tmp_path: Path) -> None:
    folders = ("", "b/", "b/c/", ".hidden/", "b.d/", "x/b/")
    touch(tmp_path, *(f"a/{folder}{name}" for folder in folders for name in ("1.png", ".2.png")))
    touch(tmp_path, "a/b/1_png", "1.png", "a/b/3.jpg")
    for pattern in ("**/*.png", "a/**/*.png", "a/**/b/*.png", "a/*/**/1.p*", "a/b*/**/*g"):
        expected = glob.glob(pattern, root_dir=tmp_path, recursive=True)
        layout = load_layout(custom(tmp_path, f"like: gta\nimages: '{pattern}'\n"))
        found = [image.path for image in find_images(layout, tmp_path, "train")]
        assert sorted(found) == sorted(expected) and found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("images: '../*.png'", "images = '../*.png': '../*.png' must lie below root"),
        ("images: '/data/*.png'", "images = '/data/*.png': '/data/*.png' must lie below root"),
        ("images: 'a.png'", "images = 'a.png': needs exactly one * after the last /"),
        ("images: '{city}/*.png'", "images = '{city}/*.png': allowed in braces are {split}"),
        ("labels: '../{name}.png'", "labels = '../{name}.png': '../{name}.png' must lie below"),
        ("labels: 'a.png'", "labels = 'a.png': needs {name} and no *"),
        ("labels: '{name}.jpg'", "labels = '{name}.jpg': labels must be .png files"),
        ("ids: {256: road}", "input should be less than or equal to 255"),
        ("ids: {0: 19}", "ids.0 = 19: input should be a valid string"),
        ("ids: null", "colours = None: give either ids or colours"),
        ("colours: {road: [0, 0, 0]}", "give either ids or colours"),
        ("ids: null\ncolours: {road: [0, 0, 0], car: [0, 0, 0]}", "classes must differ in colour"),
        ("ids: null\ncolours: {road: [0, 0, 300]}", "colours.road.0.2 = 300: input should be less"),
        ("void: [0]", "void = [0]: 0 is a class as well"),
        ("void: [[0, 0, 0]]", "void = [[0, 0, 0]]: must hold ids beside ids"),
        ("size: [0, 480]", "size.0 = 0: input should be greater than or equal to 1"),
        ("sise: [640, 480]", "sise = [640, 480]: no such key"),
        ("images: [", "not valid YAML"),
        ("like: camvid", "like = 'camvid': input should be 'gta', 'synthia' or 'cityscapes'"),
        ("labels: null", "labels = None: missing: needed where there is no `like`"),
        ("ids: [7, 11]", "ids = [7, 11]: input should be a valid dictionary"),
    ],
)
def test_bad_custom_layouts_give_one_line(tmp_path: Path, change: str, expected: str) -> None:
    lines = {"images": "'*.jpg'", "labels": "'{name}.png'", "ids": "{0: road}"}
    lines |= dict(line.split(": ", 1) for line in change.split("\n"))
    name = custom(tmp_path, "".join(f"{key}: {value}\n" for key, value in lines.items()))
    with pytest.raises(ValueError) as caught:
        load_layout(name)
    message = str(caught.value)
    assert message.startswith(name) and "\n" not in message
    assert expected in message


def test_unknown_names_and_files() -> None:
    with pytest.raises(ValueError, match="layout 'gat': allowed are gta, synthia, cityscapes and"):
        load_layout("gat")
    with pytest.raises(ValueError, match=r"missing\.yaml: No such file"):
        load_layout("missing.yaml")


def test_colours_may_name_every_class(tmp_path: Path) -> None:
    colours = dict(zip(CITYSCAPES.names, map(list, CITYSCAPES.colours), strict=True))
    text = f"images: '*.png'\nlabels: 'l/{{name}}.png'\ncolours: {colours}\n"
    assert tuple(load_layout(custom(tmp_path, text)).ids.values()) == CITYSCAPES.names


@pytest.mark.parametrize(
    ("layout", "split", "expected"),
    [
        ("gta", "val", "split 'val' of layout gta: allowed is train"),
        ("gta", "train", r"images: no such folder; layout gta needs images/\*\.png"),
        ("cityscapes", "val", r"no image matches leftImg8bit/val/\*/\*_leftImg8bit\.png of layout"),
        ("cityscapes", "../val", r"'leftImg8bit/\.\./val/.*' must lie below root"),
    ],
)
def test_splits_that_are_not_there(tmp_path: Path, layout: str, split: str, expected: str) -> None:
    (tmp_path / "leftImg8bit/val").mkdir(parents=True)
    with pytest.raises(ValueError, match=expected):
        find_images(LAYOUTS[layout], tmp_path, split)
