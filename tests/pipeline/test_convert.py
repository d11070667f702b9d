import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.convert import convert
from pipeline.inventory import INVENTORY, inventory
from ssda.datasets.index import read_index
from ssda.labels import CITYSCAPES
from ssda.params import Params, load_params

REPOSITORY = Path(__file__).parents[2]


def write_pair(image: Path, label: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    for path, shape in ((image, (4, 6, 3)), (label, (4, 6))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 35, shape, np.uint8)).save(path)


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The default parameters, in a folder with small raw sets where they point at."""
    defaults = load_params(REPOSITORY / "params.yaml")
    game, city = tmp_path / defaults.source.root, tmp_path / defaults.target.root
    for seed in range(3):
        write_pair(game / f"images/{seed:05}.png", game / f"labels/{seed:05}.png", seed)
    for split in (defaults.target.train, defaults.target.validation, defaults.target.report):
        name = f"{split}/town/{split}_000000"
        write_pair(
            city / f"leftImg8bit/{name}_leftImg8bit.png",
            city / f"gtFine/{name}_gtFine_labelIds.png",
            seed=len(split),
        )
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return defaults


def run_stage(stage: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"pipeline.{stage}", *options],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_convert_writes_four_splits_and_metrics(params: Params) -> None:
    metrics = convert(params)
    assert json.loads(Path("metrics/convert.json").read_text()) == metrics
    assert metrics["source"]["train"]["images"] == 3
    assert metrics["source"]["train"]["labels_resized"] == 0
    assert metrics["target"]["train"] == {"images": 1}
    for split in ("train", "validation", "report"):
        index = read_index(f"data/converted/target/{split}")
        assert (index.records[0].label is None) == (split == "train")
    source = read_index("data/converted/source/train")
    shares = metrics["source"]["train"]["class_shares"]
    assert list(shares) == list(CITYSCAPES.names)
    assert list(shares.values()) == pytest.approx(source.class_frequencies.tolist(), abs=1e-6)
    statistics = json.loads(Path("data/converted/source/train/sample_class_stats.json").read_text())
    assert [entry["file"] for entry in statistics] == ["00000.png", "00001.png", "00002.png"]
    assert Path("data/converted/source/train/samples_with_class.json").exists()


def test_a_bad_file_ends_the_command_with_one_error(params: Params) -> None:
    (Path(params.source.root) / "labels/00001.png").write_bytes(b"garbage")
    done = run_stage("convert")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: demo/raw/game (gta, split train): labels/00001.png: not a readable PNG\n"
    )
    assert not Path("data/converted/source/train").exists()
    assert not Path("metrics/convert.json").exists()


def test_inventory_changes_when_and_only_when_raw_data_do(params: Params) -> None:
    def digests() -> dict[str, str]:
        inventory(params)
        return {name: files["sha256"] for name, files in json.loads(INVENTORY.read_text()).items()}

    game, city = Path(params.source.root), Path(params.target.root)
    before = digests()
    written = INVENTORY.stat().st_mtime_ns
    assert list(before) == ["source/train", "target/train", "target/validation", "target/report"]

    for path in game.rglob("*.png"):
        os.utime(path, (0, 0))
    train_labels = city / f"gtFine/{params.target.train}/town"
    for path in train_labels.iterdir():
        path.write_bytes(b"garbage")
    (train_labels / "extra_gtFine_labelIds.png").touch()
    assert digests() == before
    assert INVENTORY.stat().st_mtime_ns == written

    (game / "labels/00002.png").write_bytes(b"other size")
    resized = digests()
    assert {name for name in before if before[name] != resized[name]} == {"source/train"}

    write_pair(
        city / "leftImg8bit/val/town/val_000001_leftImg8bit.png",
        city / "gtFine/val/town/val_000001_gtFine_labelIds.png",
        seed=9,
    )
    added = digests()
    assert {name for name in before if resized[name] != added[name]} == {"target/validation"}


def test_inventory_says_what_is_missing_and_loads_nothing_heavy(params: Params) -> None:
    heavy = "import sys, pipeline.inventory; print({'torch', 'cv2', 'PIL'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", heavy],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
    for path in (Path(params.source.root) / "images").iterdir():
        path.unlink()
    done = run_stage("inventory")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: demo/raw/game: no image matches images/*.png of layout gta\n"
    assert not INVENTORY.exists()


def test_inventory_of_many_files_is_quick(params: Params) -> None:
    for number in range(3000):
        (Path(params.source.root) / f"images/{number:06}x.png").touch()
    start = time.process_time()
    inventory(params)
    assert time.process_time() - start < 1
