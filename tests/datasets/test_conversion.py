import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ssda.datasets import conversion
from ssda.datasets.conversion import check_split, convert_split, write_field_statistics
from ssda.datasets.index import (
    Index,
    Record,
    check_raw_files,
    class_frequencies,
    read_index,
    write_index,
)
from ssda.datasets.layouts import LAYOUTS, Layout, load_layout
from ssda.datasets.loading import EvaluationSamples
from ssda.labels import CITYSCAPES, IGNORE

HEIGHT, WIDTH = 6, 8


def some_ids(layout: str, seed: int = 0) -> np.ndarray:
    largest = 22 if layout == "synthia" else 34
    return np.random.default_rng(seed).integers(0, largest + 1, (HEIGHT, WIDTH), np.uint8)


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def write_label(path: Path, raw: np.ndarray, layout: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "synthia":
        pixels = np.full((*raw.shape, 3), 700, np.uint16)
        pixels[..., 2] = raw
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    else:
        image = Image.fromarray(raw)
        if layout == "gta":
            image.putpalette([value * 5 % 256 for value in range(768)])
        image.save(path)


def convert_gta(folder: Path) -> Index:
    """What becomes of the raw set of layout gta in `folder`."""
    return convert_split(
        LAYOUTS["gta"],
        folder / "raw",
        "train",
        folder / "out",
        space=CITYSCAPES,
        with_labels=True,
    )


def write_raw(root: Path, layout: str, count: int = 3) -> list[np.ndarray]:
    """A small raw set of split train; returns the raw ids of its labels."""
    paths = {
        "gta": ("images/{:05}.png", "labels/{:05}.png"),
        "synthia": ("RGB/{:07}.png", "GT/LABELS/{:07}.png"),
        "cityscapes": (
            "leftImg8bit/train/ulm/ulm_{:06}_leftImg8bit.png",
            "gtFine/train/ulm/ulm_{:06}_gtFine_labelIds.png",
        ),
    }[layout]
    raws = [some_ids(layout, seed) for seed in range(count)]
    for number, raw in enumerate(raws):
        write_image(root / paths[0].format(number))
        write_label(root / paths[1].format(number), raw, layout)
    return raws


def slow_train_ids(layout: Layout, raw: np.ndarray) -> np.ndarray:
    """Pixel by pixel, from the map alone."""
    trains = {raw: CITYSCAPES.names.index(name) for raw, name in layout.ids.items()}
    return np.array([[trains.get(int(value), IGNORE) for value in row] for row in raw], np.uint8)


def read_label(index: Index, record: Record) -> np.ndarray:
    with Image.open(index.label_path(record)) as label:
        assert label.mode == "L"
        return np.asarray(label)


@pytest.mark.parametrize("name", ["gta", "synthia", "cityscapes"])
def test_labels_and_counts_equal_a_slow_form(tmp_path: Path, name: str) -> None:
    layout, out = LAYOUTS[name], tmp_path / "out"
    raws = write_raw(tmp_path / "raw", name)
    index = convert_split(
        layout, tmp_path / "raw", "train", out, space=CITYSCAPES, with_labels=True
    )
    assert len(index.records) == len(raws)
    total = np.zeros(19)
    for record, raw in zip(index.records, raws, strict=True):
        expected = slow_train_ids(layout, raw)
        assert record.label == record.name + ".png"
        assert (read_label(index, record) == expected).all()
        counts = tuple(int((expected == class_id).sum()) for class_id in range(19))
        assert record.class_pixels == counts
        assert (record.width, record.height) == (WIDTH, HEIGHT)
        assert record.bytes == index.image_path(record).stat().st_size
        total += counts
    assert class_frequencies([index]) == pytest.approx(total / total.sum())
    assert class_frequencies([index]).sum() == pytest.approx(1)
    assert read_index(out) == index
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_custom_set_with_ids_jpegs_and_odd_file_names(tmp_path: Path) -> None:
    yaml = tmp_path / "set.yaml"
    yaml.write_text(
        "images: 'rgb/{split}/*.jpg'\nlabels: 'ids/{split}/{name}_ids.png'\n"
        "ids: {1: road, 2: car}\nvoid: [0, 255]\nsize: [8, 6]\n"
    )
    raw = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (HEIGHT, WIDTH))
    write_image(tmp_path / "rgb/day/Zürich Nr 1.jpg")
    write_label(tmp_path / "ids/day/Zürich Nr 1_ids.png", raw, "custom")
    layout = load_layout(str(yaml))
    index = convert_split(
        layout, tmp_path, "day", tmp_path / "out", space=CITYSCAPES, with_labels=True
    )
    (record,) = index.records
    assert (record.name, record.image) == ("Zürich Nr 1", "rgb/day/Zürich Nr 1.jpg")
    assert (read_label(index, record) == slow_train_ids(layout, raw)).all()
    assert read_index(tmp_path / "out") == index


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_custom_set_with_colours(tmp_path: Path, mode: str) -> None:
    yaml = tmp_path / "set.yaml"
    yaml.write_text(
        "images: 'rgb/*.png'\nlabels: 'truth/{name}.png'\n"
        "colours: {road: [128, 64, 128], car: [0, 0, 142]}\nvoid: [[0, 0, 0]]\n"
    )
    colours = np.array([(0, 0, 0), (128, 64, 128), (0, 0, 142)], np.uint8)
    choice = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH))
    write_image(tmp_path / "rgb/a.png")
    (tmp_path / "truth").mkdir()
    image = Image.fromarray(colours[choice])
    image = image.quantize(3) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "truth/a.png")
    layout = load_layout(str(yaml))
    index = convert_split(
        layout, tmp_path, "train", tmp_path / "out", space=CITYSCAPES, with_labels=True
    )
    expected = np.array([IGNORE, 0, 13], np.uint8)[choice]
    assert (read_label(index, index.records[0]) == expected).all()


def test_gta_labels_of_another_size_are_resized_and_counted(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", "gta")
    large = np.repeat(np.repeat(some_ids("gta"), 2, axis=0), 2, axis=1)
    write_label(tmp_path / "raw/labels/00001.png", large, "gta")
    index = convert_gta(tmp_path)
    assert index.labels_resized == read_index(tmp_path / "out").labels_resized == 1
    expected = slow_train_ids(LAYOUTS["gta"], some_ids("gta"))
    assert (read_label(index, index.records[1]) == expected).all()


def test_a_label_of_another_shape_is_not_squashed(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", "gta")
    write_label(tmp_path / "raw/labels/00001.png", some_ids("gta").T, "gta")
    with pytest.raises(ValueError, match=r"labels/00001.png: 6 x 8 pixels, needed are the image's"):
        convert_gta(tmp_path)


def test_a_label_fits_the_image_as_it_is_shown(tmp_path: Path) -> None:
    """The photograph lies in its file; who drew the mask saw it upright."""
    upright = np.zeros((96, 64), np.uint8) + 7
    upright[:48, :32] = 26
    photo = np.repeat(upright[..., None], 3, 2) * 8
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / "raw/images/1.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.rot90(photo)).save(path, exif=exif)
    write_label(tmp_path / "raw/labels/1.png", upright, "gta")
    index = convert_gta(tmp_path)
    assert index.labels_resized == 0
    assert [(record.width, record.height) for record in index.records] == [(64, 96)]
    image, label = EvaluationSamples(index, None)[0]
    assert label is not None and image.shape[1:] == label.shape == (96, 64)
    assert np.array_equal(image[0].numpy() == 26 * 8, label.numpy() == 13)


def test_without_labels_no_label_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(tmp_path / "raw", "cityscapes")
    for label in (tmp_path / "raw/gtFine").rglob("*.png"):
        label.write_bytes(b"garbage")
    touched: list[str] = []
    real_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: touched.append(str(path)) or real_scandir(path))
    index = convert_split(
        LAYOUTS["cityscapes"],
        tmp_path / "raw",
        "train",
        tmp_path / "out",
        space=CITYSCAPES,
        with_labels=False,
    )
    assert touched and not any("gtFine" in path for path in touched)
    assert [(record.label, record.class_pixels) for record in index.records] == [(None, None)] * 3
    assert all((record.width, record.height) == (WIDTH, HEIGHT) for record in index.records)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.json"]
    assert read_index(tmp_path / "out") == index
    with pytest.raises(ValueError, match="no labelled pixel"):
        class_frequencies([index])


def test_a_set_needs_no_label_folder_where_labels_are_not_read(tmp_path: Path) -> None:
    write_image(tmp_path / "images/1.png")
    index = convert_split(
        LAYOUTS["gta"], tmp_path, "train", tmp_path / "out", space=CITYSCAPES, with_labels=False
    )
    assert [record.name for record in index.records] == ["1"]


def test_index_is_the_same_every_time_and_has_one_record_a_line(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", "gta", count=12)
    texts: list[str] = []
    for _ in range(2):
        convert_gta(tmp_path)
        texts.append((tmp_path / "out/index.json").read_text())
    assert texts[0] == texts[1]
    assert sum('"name"' in line for line in texts[0].splitlines()) == 12
    assert len(texts[0].splitlines()) == 12 + 6
    assert str(tmp_path / "out") not in texts[0]


def test_relative_roots_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(tmp_path / "raw", "gta")
    monkeypatch.chdir(tmp_path)
    convert_split(
        LAYOUTS["gta"], Path("raw"), "train", Path("out"), space=CITYSCAPES, with_labels=True
    )
    assert str(tmp_path) not in Path("out/index.json").read_text()
    assert read_index("out").root == Path("raw")


def test_field_statistics(tmp_path: Path) -> None:
    def record(name: str, counts: tuple[int, ...]) -> Record:
        return Record(name, f"images/{name}.png", 1, "", f"{name}.png", 2, 2, counts)

    index = Index(
        tmp_path, Path("raw"), CITYSCAPES, (record("a", (3, 0, 1)), record("b", (0, 0, 4)))
    )
    write_field_statistics(index, tmp_path)
    assert json.loads((tmp_path / "sample_class_stats.json").read_text()) == [
        {"0": 3, "2": 1, "file": "a.png"},
        {"2": 4, "file": "b.png"},
    ]
    assert json.loads((tmp_path / "samples_with_class.json").read_text()) == {
        "0": [["a.png", 3]],
        "2": [["a.png", 1], ["b.png", 4]],
    }


def test_changed_raw_files_are_noticed(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", "gta")
    index = convert_gta(tmp_path)
    check_raw_files(index)
    (tmp_path / "raw/images/00000.png").unlink()
    write_image(tmp_path / "raw/images/00002.png", size=(9, 9))
    with pytest.raises(ValueError) as caught:
        check_raw_files(index)
    assert str(caught.value) == (
        f"raw data changed since convert: 2 of 3 images below {tmp_path / 'raw'} "
        "(images/00000.png, images/00002.png); run dvc repro"
    )


def test_images_changed_in_place_are_noticed_and_copies_are_not(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", "gta")
    index = convert_gta(tmp_path)
    path = tmp_path / "raw/images/00001.png"
    content = bytearray(path.read_bytes())
    path.write_bytes(content)
    check_raw_files(index)
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"changed since convert: 1 of 3 .*\(images/00001\.png\)"):
        check_raw_files(index)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"root": "x"}', '{"records": [{"a": 1}]}'])
def test_missing_and_foreign_indexes(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json: (no such file|not an index).*dvc repro"):
        read_index(tmp_path)


def test_records_are_written_in_order(tmp_path: Path) -> None:
    records = [Record(name, name, 1, "", None, 2, 2, None) for name in "ba"]
    write_index(Index(tmp_path, Path("raw"), CITYSCAPES, tuple(records)))
    assert [record.name for record in read_index(tmp_path).records] == ["a", "b"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def jpeg(path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, "jpeg")


def rgb8(path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def rgb16(path: Path) -> None:
    write_label(path, some_ids("synthia"), "synthia")


def grey16(path: Path) -> None:
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(path)


def image_of_9_by_9(path: Path) -> None:
    write_image(path, size=(9, 9))


def label_of_4_by_2(path: Path) -> None:
    write_label(path, np.zeros((2, 4), np.uint8), "cityscapes")


def id_35_and_99(path: Path) -> None:
    raw = some_ids("gta")
    raw[2, 3:5] = 35, 99
    write_label(path, raw, "gta")


def id_300(path: Path) -> None:
    raw = some_ids("synthia").astype(np.uint16)
    raw[0, 0] = 300
    write_label(path, raw, "synthia")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


GTA_IMAGE, GTA_LABEL = "images/00001.png", "labels/00001.png"
SYNTHIA_LABEL = "GT/LABELS/0000001.png"
CITY_IMAGE = "leftImg8bit/train/ulm/ulm_000001_leftImg8bit.png"
CITY_LABEL = "gtFine/train/ulm/ulm_000001_gtFine_labelIds.png"


@pytest.mark.parametrize(
    ("layout", "path", "damage", "expected"),
    [
        ("gta", GTA_LABEL, Path.unlink, f"{GTA_IMAGE}: no label {GTA_LABEL}"),
        ("gta", GTA_IMAGE, truncate, f"{GTA_IMAGE}: truncated: the image's end marker"),
        ("gta", GTA_IMAGE, lambda path: path.write_bytes(b""), f"{GTA_IMAGE}: not a readable PNG"),
        ("gta", GTA_LABEL, truncate, f"{GTA_LABEL}: truncated: the image's end marker"),
        ("gta", GTA_LABEL, flip_a_byte, f"{GTA_LABEL}: damaged: wrong checksum"),
        ("gta", GTA_LABEL, jpeg, f"{GTA_LABEL}: not a readable PNG"),
        ("gta", GTA_LABEL, a_folder, f"{GTA_IMAGE}: no label {GTA_LABEL}"),
        ("gta", GTA_LABEL, rgb8, f"{GTA_LABEL}: 8-bit RGB PNG, needed is 8-bit grey or palette"),
        ("gta", GTA_LABEL, rgb16, f"{GTA_LABEL}: 16-bit RGB PNG, needed is 8-bit grey or palette"),
        ("gta", GTA_LABEL, id_35_and_99, f"{GTA_LABEL}: id 35, 99: allowed are 0-34"),
        ("synthia", SYNTHIA_LABEL, rgb8, f"{SYNTHIA_LABEL}: 8-bit RGB PNG, needed is 16-bit RGB"),
        ("synthia", SYNTHIA_LABEL, grey16, f"{SYNTHIA_LABEL}: 16-bit grey PNG, needed is 16-bit"),
        ("synthia", SYNTHIA_LABEL, id_300, f"{SYNTHIA_LABEL}: id 300: allowed are 0-22"),
        ("synthia", SYNTHIA_LABEL, truncate, f"{SYNTHIA_LABEL}: truncated: the image's end"),
        ("synthia", SYNTHIA_LABEL, flip_a_byte, f"{SYNTHIA_LABEL}: damaged: wrong checksum"),
        ("cityscapes", CITY_LABEL, grey16, f"{CITY_LABEL}: 16-bit grey PNG, needed is 8-bit"),
        ("cityscapes", CITY_LABEL, label_of_4_by_2, f"{CITY_LABEL}: 4 x 2 pixels, needed are"),
        ("cityscapes", CITY_IMAGE, image_of_9_by_9, f"{CITY_LABEL}: 8 x 6 pixels, needed are"),
    ],
)
def test_bad_files_give_one_clear_line(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    layout: str,
    path: str,
    damage: Callable[[Path], object],
    expected: str,
) -> None:
    root, out = tmp_path / "raw", tmp_path / "out"
    write_raw(root, layout)
    damage(root / path)
    with pytest.raises(ValueError) as caught:
        convert_split(LAYOUTS[layout], root, "train", out, space=CITYSCAPES, with_labels=True)
    message = str(caught.value)
    assert message.startswith(f"{root} ({layout}, split train): {expected}")
    assert "\n" not in message
    assert [child.name for child in tmp_path.iterdir()] == ["raw"]
    assert capfd.readouterr().err == ""


def test_sizes_and_colours_outside_a_custom_layout(tmp_path: Path) -> None:
    yaml = tmp_path / "set.yaml"
    text = "images: 'rgb/*.png'\nlabels: 'truth/{name}.png'\ncolours: {road: [1, 2, 3]}\n"
    yaml.write_text(text + "size: [640, 480]\n")
    write_image(tmp_path / "rgb/a.png")
    (tmp_path / "truth").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 4)).save(tmp_path / "truth/a.png")
    with pytest.raises(ValueError) as caught:
        convert_split(
            load_layout(str(yaml)),
            tmp_path,
            "train",
            tmp_path / "out",
            space=CITYSCAPES,
            with_labels=True,
        )
    assert str(caught.value).splitlines()[1:] == [
        "  rgb/a.png: 8 x 6 pixels, allowed is 640 x 480",
        f"  truth/a.png: colour (1, 2, 4): allowed are the colours in {yaml}",
    ]


def test_all_bad_files_are_counted_and_twenty_listed(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", "gta", count=25)
    for path in (tmp_path / "raw/images").iterdir():
        truncate(path)
    (tmp_path / "raw/labels/00007.png").unlink()
    with pytest.raises(ValueError) as caught:
        convert_gta(tmp_path)
    first, *lines, last = str(caught.value).splitlines()
    assert first.endswith("split train): 26 problems")
    assert len(lines) == 20 and lines[0].startswith("  images/00000.png: truncated")
    assert "  images/00007.png: no label labels/00007.png" in lines
    assert last == "  ... and 6 more"


def test_the_check_can_decode_images(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", "gta")
    flip_a_byte(tmp_path / "raw" / GTA_IMAGE)
    arguments = LAYOUTS["gta"], tmp_path / "raw", "train"
    found = [
        check_split(*arguments, space=CITYSCAPES, with_labels=True, decode=decode)[1]
        for decode in (False, True)
    ]
    assert found[0] == []
    assert len(found[1]) == 1 and found[1][0].startswith(f"{GTA_IMAGE}: damaged: wrong checksum")


def test_a_set_without_labels_or_with_void_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "raw/images/1.png")
    arguments = LAYOUTS["gta"], tmp_path / "raw", "train", tmp_path / "out"
    with pytest.raises(ValueError, match=r"no label matches labels/\{name\}\.png"):
        convert_split(*arguments, space=CITYSCAPES, with_labels=True)
    write_label(tmp_path / "raw/labels/1.png", np.zeros((HEIGHT, WIDTH), np.uint8), "gta")
    with pytest.raises(ValueError, match=r"gta, split train\): all pixels of all labels are void"):
        convert_split(*arguments, space=CITYSCAPES, with_labels=True)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(tmp_path / "raw", "gta", count=50)
    arguments = LAYOUTS["gta"], tmp_path / "raw", "train", tmp_path / "out"
    convert_split(*arguments, space=CITYSCAPES, with_labels=True)
    real, started = conversion._convert_image, threading.Event()

    def interrupted(task, image):
        started.set()
        if image.name == "00020":
            raise KeyboardInterrupt
        return real(task, image)

    monkeypatch.setattr(conversion, "_convert_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_split(*arguments, space=CITYSCAPES, with_labels=True)
    assert started.is_set()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["out", "raw"]
    assert len(list((tmp_path / "out/labels").iterdir())) == 50


def test_an_old_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", "gta")
    arguments = LAYOUTS["gta"], tmp_path / "raw", "train", tmp_path / "out"
    convert_split(*arguments, space=CITYSCAPES, with_labels=True)
    (tmp_path / "out/labels/stale.png").touch()
    (tmp_path / "out.partial/labels").mkdir(parents=True)
    convert_split(
        replace(arguments[0], name="again"), *arguments[1:], space=CITYSCAPES, with_labels=True
    )
    assert len(list((tmp_path / "out/labels").iterdir())) == 3
