import glob
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from ssda.datasets.layouts import (
    LAYOUTS,
    check_classes,
    find_images,
    find_labels,
    left_out,
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
    assert find_labels(LAYOUTS["gta"], tmp_path, "train", images) == {
        "labels/00001.png": "images/00001.png"
    }


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
    found = find_labels(LAYOUTS["cityscapes"], tmp_path, "val", images)
    assert found == {image.label: image.path}


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
    assert (moved.images, moved.labels) == (("rgb/*.jpg",), "labels/{name}.png")
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
    assert find_labels(layout, tmp_path, "train", images) == {"a[1]/x_L.png": "a[1]/x.png"}


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
    assert [*find_labels(layout, tmp_path, "train", images)] == ["ids/1.png", "ids/a/b/1.png"]
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
        ("images: []", "images = []: missing: needed where there is no `like`"),
        ("images: ['a/*.jpg', 'a.png']", "needs exactly one * after the last /"),
        ("ids: {}", "ids = {}: dictionary should have at least 1 item"),
        ("ids: null\ncolours: {}", "colours = {}: dictionary should have at least 1 item"),
        ("ids: null\ncolours: {road: []}", "colours.road = []: tuple should have at least 1 item"),
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


CUSTOM = "ids: {0: road}\n"


def found(folder: Path, text: str, split: str = "train") -> list[str]:
    """Images that a custom layout finds below folder / "raw"."""
    layout = load_layout(custom(folder, CUSTOM + text))
    return [image.path for image in find_images(layout, folder / "raw", split)]


@pytest.mark.parametrize(
    ("files", "text", "expected"),
    [
        (
            ["day/image_0/1.png", "day/image_1/1.png", "day/semantic/1.png"],
            "images: '{split}/image_*/*.png'\nlabels: '{split}/semantic/{name}.png'\n",
            "day/image_0/1.png and day/image_1/1.png share the label day/semantic/1.png of layout "
            "LAYOUT: labels needs {folder}, or images must match only one of them",
        ),
        (
            ["day/a/1.jpg", "day/b/c/1.jpg", "L/1.png"],
            "images: '{split}/**/*.jpg'\nlabels: 'L/{name}.png'\n",
            "day/a/1.jpg and day/b/c/1.jpg share the label L/1.png of layout LAYOUT: "
            "labels needs {folder}, or images must match only one of them",
        ),
        (
            ["day/1.jpg", "day/1.png", "L/1.png"],
            "images: ['{split}/*.jpg', '{split}/*.png']\nlabels: 'L/{folder}/{name}.png'\n",
            "day/1.jpg and day/1.png share a name and label L/1.png: rename one of them",
        ),
        (
            ["day/1.jpg", "day/1.JPG", "L/1.png"],
            "images: '{split}/*.jpg'\nlabels: 'L/{name}.png'\n",
            "day/1.JPG and day/1.jpg share a name and label L/1.png: rename one of them",
        ),
        (
            ["day/left_1.png", "day/right_1.png", "L/1.png"],
            "images: ['{split}/left_*.png', '{split}/right_*.png']\nlabels: 'L/{name}.png'\n",
            "day/left_1.png and day/right_1.png share a name and label L/1.png: rename one of them",
        ),
        (
            ["day/1.jpg", "L/1.png", "L/1.PNG"],
            "images: '{split}/*.jpg'\nlabels: 'L/{name}.png'\n",
            "L/1.PNG and L/1.png are labels of day/1.jpg: remove one of them",
        ),
    ],
)
def test_no_label_is_shared(tmp_path: Path, files: list[str], text: str, expected: str) -> None:
    root = touch(tmp_path / "raw", *files)
    name = custom(tmp_path, CUSTOM + text)
    layout = load_layout(name)
    with pytest.raises(ValueError) as caught:
        find_labels(layout, root, "day", find_images(layout, root, "day"))
    assert str(caught.value) == f"{root}: {expected.replace('LAYOUT', name)}"


def test_several_patterns_and_endings_in_any_case(tmp_path: Path) -> None:
    touch(tmp_path / "raw", "a/1.jpg", "a/2.JPG", "a/3.jpeg", "a/4.Png", "b/5.png", "a/6.heic")
    labels = "labels: 'L/{folder}/{name}.png'\n"
    assert found(tmp_path, "images: 'a/*.jpg'\n" + labels) == ["a/1.jpg", "a/2.JPG"]
    assert found(tmp_path, "images: ['a/*.jpg', 'a/*.jpeg', 'a/*.png', 'b/*.png']\n" + labels) == [
        *("a/1.jpg", "a/2.JPG", "a/3.jpeg", "a/4.Png", "b/5.png"),
    ]
    with pytest.raises(ValueError, match=r"raw/c: no such folder; layout .* needs c/\*\.png"):
        found(tmp_path, "images: ['a/*.jpg', 'c/*.png']\n" + labels)


def test_folders_of_several_patterns_tell_images_apart(tmp_path: Path) -> None:
    root = touch(tmp_path / "raw", "a/1.jpg", "b/x/1.png", "L/a/1.png", "L/b/x/1.PNG")
    text = "images: ['a/*.jpg', 'b/**/*.png']\nlabels: 'L/{folder}/{name}.png'\n"
    layout = load_layout(custom(tmp_path, CUSTOM + text))
    images = find_images(layout, root, "train")
    assert [image.name for image in images] == ["a_1", "b_x_1"]
    assert find_labels(layout, root, "train", images) == {
        "L/a/1.png": "a/1.jpg",
        "L/b/x/1.PNG": "b/x/1.png",
    }


@pytest.mark.parametrize("pattern", ["a/*.png", "a/*/*.png", "a/**/*.png"])
def test_links_are_followed_alike(tmp_path: Path, pattern: str) -> None:
    root = touch(tmp_path / "raw", "a/x/1.png", "a/2.png")
    touch(tmp_path / "far", "3.png")
    (root / "a/y").symlink_to(tmp_path / "far")
    (root / "a/4.png").symlink_to(tmp_path / "far/3.png")
    text = f"images: {pattern!r}\nlabels: 'L/{{name}}.png'\n"
    expected = {
        "a/*.png": ["a/2.png", "a/4.png"],
        "a/*/*.png": ["a/x/1.png", "a/y/3.png"],
        "a/**/*.png": ["a/2.png", "a/4.png", "a/x/1.png", "a/y/3.png"],
    }
    assert sorted(found(tmp_path, text)) == expected[pattern]
    (root / "a/z").symlink_to("x")
    if pattern != "a/*.png":
        with pytest.raises(ValueError, match=r"raw/a/[xz]: a link to .*, whose files would come"):
            found(tmp_path, text)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    root = touch(tmp_path / "raw", "a/x/1.png", "a/y/1.png")
    (root / "a/y").chmod(0)
    with pytest.raises(OSError, match="Permission denied"):
        found(tmp_path, "images: 'a/*/*.png'\nlabels: 'L/{name}.png'\n")


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "raw",
        *("a/1.jpg", "a/2.heic", "a/3.HEIC", "a/x/notes", "a/.DS_Store", "a/4.png"),
        *("L/1.png", "L/1_labelTrainIds.png", "L/7.png", "L/1.json"),
    )
    text = "images: 'a/**/*.jpg'\nlabels: 'L/{name}.png'\n"
    layout = load_layout(custom(tmp_path, CUSTOM + text))
    files = "4 files beside the images left out (.heic 2, .png 1, no ending 1)"
    assert left_out(layout, root, "train", with_labels=True) == [
        "2 labels without image left out",
        files,
    ]
    assert left_out(layout, root, "train", with_labels=False) == [files]
    for name in ("2.heic", "3.HEIC", "x/notes", "4.png"):
        (root / "a" / name).unlink()
    assert left_out(layout, root, "train", with_labels=False) == []


def test_void_ids_join_those_of_a_known_layout(tmp_path: Path) -> None:
    """What the file says comes before the layout that it is like."""
    cityscapes = LAYOUTS["cityscapes"]
    more = load_layout(custom(tmp_path, "like: cityscapes\nvoid: [255]\n"))
    assert more.ids == cityscapes.ids
    assert {*more.void} == {*cityscapes.void, 255}
    less = load_layout(custom(tmp_path, "like: cityscapes\nvoid: [7]\n"))
    assert {*cityscapes.ids} - {*less.ids} == {7} and {*less.void} == {*cityscapes.void, 7}
    own = load_layout(custom(tmp_path, "like: gta\nids: {0: road}\nvoid: [200]\n"))
    assert own.ids == {0: "road"} and {*own.void} == {*range(1, 35), 200}
    sized = load_layout(custom(tmp_path, "like: gta\nsize: [8, 6]\n"))
    assert replace(sized, name="gta", size=None) == LAYOUTS["gta"] and sized.size == (8, 6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (os.fsdecode(b"stra\xdfe"), r"'stra\udcdfe.png': not UTF-8 in a name: rename it"),
        ("two\nlines", r"'two\nlines.png': control characters in a name: rename it"),
        ("\x1b[31m", r"'\x1b[31m.png': control characters in a name: rename it"),
    ],
)
def test_names_that_cannot_be_written_down(tmp_path: Path, name: str, expected: str) -> None:
    root = touch(tmp_path, f"images/{name}.png", f"labels/{name}.png")
    with pytest.raises(ValueError) as caught:
        find_images(LAYOUTS["gta"], root, "train")
    assert str(caught.value) == f"{root}: " + expected.replace("'", "'images/", 1)
    folder = touch(tmp_path, f"leftImg8bit/train/{name}/1_leftImg8bit.png")
    with pytest.raises(ValueError, match="in a name: rename it"):
        find_images(LAYOUTS["cityscapes"], folder, "train")


def test_names_beyond_ascii_are_fine(tmp_path: Path) -> None:
    names = ["Straße 1", "日本\u3000語", "Bildschirmfoto 9.41\u202fAM", "👩\u200d🚒", "e\u0301"]
    root = touch(tmp_path, *(f"images/{name}.png" for name in names))
    assert {image.name for image in find_images(LAYOUTS["gta"], root, "train")} == {*names}
