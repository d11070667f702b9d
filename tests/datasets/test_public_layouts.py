"""Public sets as their archives and the field's scripts leave them: all images find their labels.

Trees are made up, with a few names of each kind; no file has content.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from ssda.datasets.layouts import find_images, find_labels, left_out, load_layout

CLASSES = "ids: {0: road}\n"
CITY = "leftImg8bit/val/ulm/ulm_000000_00001"
FINE = "gtFine/val/ulm/ulm_000000_00001"


@dataclass(frozen=True)
class PublicSet:
    layout: str
    """A known one, or the text of a YAML file."""
    split: str
    pairs: dict[str, str]
    """Image -> label."""
    beside: tuple[str, ...]
    """Other files that are there."""
    lost: int = 0
    """Of those, how many look like labels."""
    others: int = 0
    """Of those, how many lie in folders of images."""


SETS = {
    "GTA after the scripts": PublicSet(
        "gta",
        "train",
        {f"images/0000{n}.png": f"labels/0000{n}.png" for n in (1, 2)},
        (
            *(f"labels/0000{n}_labelTrainIds.png" for n in (1, 2)),
            *("sample_class_stats.json", "sample_class_stats_dict.json", "samples_with_class.json"),
            *("split.mat", "read_mapping/mapping.mat", ".DS_Store", "images/.DS_Store"),
        ),
        lost=2,
    ),
    "SYNTHIA after the scripts": PublicSet(
        "synthia",
        "train",
        {f"RGB/000000{n}.png": f"GT/LABELS/000000{n}.png" for n in (0, 1)},
        (
            *(f"GT/LABELS/000000{n}_labelTrainIds.png" for n in (0, 1)),
            *("GT/COLOR/0000000.png", "Depth/Depth/0000000.png", "README.txt"),
            *("sample_class_stats.json", "sample_class_stats_dict.json", "samples_with_class.json"),
        ),
        lost=2,
    ),
    "Cityscapes after the scripts": PublicSet(
        "cityscapes",
        "val",
        {f"{CITY}{n}_leftImg8bit.png": f"{FINE}{n}_gtFine_labelIds.png" for n in (1, 2)},
        (
            *(
                f"{FINE}{n}_gtFine_{kind}"
                for n in (1, 2)
                for kind in ("color.png", "instanceIds.png", "labelTrainIds.png", "polygons.json")
            ),
            *("license.txt", "README", "camera/val/ulm/ulm_000000_000011_camera.json"),
            *("sample_class_stats.json", "gtFine/train/ulm/ulm_0_gtFine_labelIds.png"),
            "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png",
        ),
    ),
    "Cityscapes by train ids": PublicSet(
        "like: cityscapes\nlabels: 'gtFine/{split}/{folder}/{name}_gtFine_labelTrainIds.png'\n"
        "ids: {0: road}\nvoid: [255]\n",
        "val",
        {f"{CITY}{n}_leftImg8bit.png": f"{FINE}{n}_gtFine_labelTrainIds.png" for n in (1, 2)},
        tuple(f"{FINE}{n}_gtFine_labelIds.png" for n in (1, 2)),
    ),
    "Foggy Cityscapes, one of three densities": PublicSet(
        "like: cityscapes\n"
        "images: 'leftImg8bit_foggy/{split}/*/*_leftImg8bit_foggy_beta_0.02.png'\n",
        "val",
        {
            f"leftImg8bit_foggy/val/ulm/ulm_{n}_leftImg8bit_foggy_beta_0.02.png": (
                f"gtFine/val/ulm/ulm_{n}_gtFine_labelIds.png"
            )
            for n in (1, 2)
        },
        tuple(
            f"leftImg8bit_foggy/val/ulm/ulm_{n}_leftImg8bit_foggy_beta_0.0{density}.png"
            for n in (1, 2)
            for density in ("05", "1")
        ),
        others=4,
    ),
    "ACDC": PublicSet(
        "like: cityscapes\nimages: 'rgb_anon/*/{split}/*/*_rgb_anon.png'\n"
        "labels: 'gt/{folder}/{name}_gt_labelIds.png'\n",
        "val",
        {
            f"rgb_anon/{weather}/val/GOPR1/GOPR1_frame_{n}_rgb_anon.png": (
                f"gt/{weather}/val/GOPR1/GOPR1_frame_{n}_gt_labelIds.png"
            )
            for n, weather in enumerate(("fog", "night", "rain", "snow"))
        },
        (
            *("gt/fog/val/GOPR1/GOPR1_frame_0_gt_" + kind + ".png" for kind in ("labelColor",)),
            "gt/fog/val/GOPR1/GOPR1_frame_0_gt_invIds.png",
            *("rgb_anon/fog/train/GOPR2/GOPR2_frame_0_rgb_anon.png", "rgb_anon/License.pdf"),
            "gt/fog/train/GOPR2/GOPR2_frame_0_gt_labelIds.png",
            "rgb_anon/fog/val_ref/GOPR1/GOPR1_frame_0_ref_rgb_anon.png",
        ),
        others=1,
    ),
    "Dark Zurich": PublicSet(
        "like: cityscapes\nimages: 'rgb_anon/{split}/night/*/*_rgb_anon.png'\n"
        "labels: 'gt/{split}/night/{folder}/{name}_gt_labelTrainIds.png'\n"
        "ids: {0: road}\nvoid: [255]\n",
        "val",
        {
            "rgb_anon/val/night/GOPR1/GOPR1_frame_1_rgb_anon.png": (
                "gt/val/night/GOPR1/GOPR1_frame_1_gt_labelTrainIds.png"
            )
        },
        (
            *("gt/val/night/GOPR1/GOPR1_frame_1_gt_labelIds.png", "corresp/train/night/a.csv"),
            "rgb_anon/val_ref/day/GOPR2/GOPR2_frame_1_ref_rgb_anon.png",
        ),
    ),
    "BDD100K": PublicSet(
        CLASSES + "images: 'images/10k/{split}/*.jpg'\n"
        "labels: 'labels/sem_seg/masks/{split}/{name}.png'\nvoid: [255]\n",
        "val",
        {f"images/10k/val/7d{n}.jpg": f"labels/sem_seg/masks/val/7d{n}.png" for n in (1, 2)},
        (
            *("labels/sem_seg/colormaps/val/7d1.png", "labels/sem_seg/rles/sem_seg_val.json"),
            *("labels/sem_seg/masks/val/lost.png", "images/10k/train/7d3.jpg"),
        ),
        lost=1,
    ),
    "Mapillary Vistas": PublicSet(
        CLASSES + "images: '{split}/images/*.jpg'\nlabels: '{split}/v1.2/labels/{name}.png'\n",
        "validation",
        {"validation/images/a-1.jpg": "validation/v1.2/labels/a-1.png"},
        (
            *("validation/v1.2/instances/a-1.png", "validation/v2.0/labels/a-1.png"),
            *("config_v1.2.json", "training/images/b.jpg", "testing/images/c.jpg"),
        ),
    ),
    "IDD, both parts in one": PublicSet(
        CLASSES + "images: ['leftImg8bit/{split}/*/*_leftImg8bit.png', "
        "'leftImg8bit/{split}/*/*_leftImg8bit.jpg']\n"
        "labels: 'gtFine/{split}/{folder}/{name}_gtFine_labellevel3Ids.png'\n",
        "val",
        {
            "leftImg8bit/val/119/9_leftImg8bit.png": "gtFine/val/119/9_gtFine_labellevel3Ids.png",
            "leftImg8bit/val/7/9_leftImg8bit.jpg": "gtFine/val/7/9_gtFine_labellevel3Ids.png",
        },
        ("gtFine/val/119/9_gtFine_polygons.json", "gtFine/val/119/9_gtFine_labelids.png"),
    ),
    "CamVid": PublicSet(
        "images: '{split}/*.png'\nlabels: '{split}_labels/{name}_L.png'\n"
        "colours: {road: [128, 64, 128]}\nvoid: [[0, 0, 0]]\n",
        "val",
        {f"val/0016E5_0{n}.png": f"val_labels/0016E5_0{n}_L.png" for n in (1, 2)},
        ("class_dict.csv", "train/0001TP_1.png", "train_labels/0001TP_1_L.png"),
    ),
    "img_dir and ann_dir": PublicSet(
        CLASSES + "images: 'img_dir/{split}/*.png'\nlabels: 'ann_dir/{split}/{name}.png'\n",
        "val",
        {"img_dir/val/2_13_0_0_512_512.png": "ann_dir/val/2_13_0_0_512_512.png"},
        ("img_dir/train/1.png", "ann_dir/train/1.png", "img_dir/val/Thumbs.db"),
        others=1,
    ),
    "LoveDA, one of two domains": PublicSet(
        CLASSES + "images: '{split}/Urban/images_png/*.png'\n"
        "labels: '{split}/Urban/masks_png/{name}.png'\nvoid: [255]\n",
        "Val",
        {"Val/Urban/images_png/3514.png": "Val/Urban/masks_png/3514.png"},
        ("Val/Rural/images_png/2522.png", "Val/Rural/masks_png/2522.png"),
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_every_image_has_its_label(tmp_path: Path, name: str) -> None:
    case, root = SETS[name], tmp_path / "raw"
    for path in (*case.pairs, *case.pairs.values(), *case.beside):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    known = "\n" not in case.layout
    if not known:
        (tmp_path / "set.yaml").write_text(case.layout)
    layout = load_layout(case.layout if known else str(tmp_path / "set.yaml"))
    images = find_images(layout, root, case.split)
    assert sorted(image.path for image in images) == sorted(case.pairs)
    labels = find_labels(layout, root, case.split, images)
    assert {image: label for label, image in labels.items() if image} == case.pairs
    assert sum(image is None for image in labels.values()) == case.lost
    lines = left_out(layout, root, case.split, with_labels=True)
    assert [line.split()[0] for line in lines] == [f"{n}" for n in (case.lost, case.others) if n]
