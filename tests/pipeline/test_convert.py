import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.checks.conversion import check, untracked
from pipeline.convert import convert, main, run
from pipeline.dependencies import updated
from pipeline.inventory import INVENTORY, inventory
from pipeline.inventory import main as run_inventory
from ssda.datasets.index import class_frequencies, read_index, read_sources
from ssda.files import fingerprint
from ssda.labels import CITYSCAPES
from ssda.params import Params, load_params
from ssda.sections import read_yaml

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
    game, city = tmp_path / defaults.sources["game"].root, tmp_path / defaults.target.root
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


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_convert_writes_four_splits_and_metrics(params: Params) -> None:
    metrics = convert(params)
    assert json.loads(Path("metrics/convert.json").read_text()) == metrics
    assert metrics["sources"]["game"]["images"] == 3
    assert metrics["sources"]["game"]["labels_resized"] == 0
    assert metrics["target"]["train"] == {"images": 1}
    for split in ("train", "validation", "report"):
        index = read_index(f"data/converted/target/{split}")
        assert (index.records[0].label is None) == (split == "train")
    source = read_index("data/converted/sources/game")
    shares = metrics["sources"]["game"]["class_shares"]
    assert metrics["class_shares"] == shares
    assert list(shares) == list(CITYSCAPES.names)
    assert list(shares.values()) == pytest.approx(class_frequencies([source]).tolist(), abs=1e-6)
    statistics = json.loads(Path("data/converted/sources/game/sample_class_stats.json").read_text())
    assert [entry["file"] for entry in statistics] == ["00000.png", "00001.png", "00002.png"]
    assert Path("data/converted/sources/game/samples_with_class.json").exists()


def test_several_sources_are_pooled_and_old_ones_go(params: Params) -> None:
    convert(params)
    game = params.sources["game"]
    for seed in range(2):
        write_pair(Path(f"other/images/{seed}.png"), Path(f"other/labels/{seed}.png"), seed + 7)
    two = {"a": game.model_copy(update={"root": "other", "resize": (12, 8)}), "game": game}
    both = params.model_copy(update={"sources": two})
    for name in two:
        inventory(both, name)
    metrics = convert(both)
    sources = read_sources(Path("data/converted/sources"))
    assert [source.folder.name for source in sources] == ["a", "game"]
    assert [source.resize for source in sources] == [(12, 8), None]
    assert [metrics["sources"][name]["images"] for name in two] == [2, 3]
    pixels = np.sum([r.class_pixels for source in sources for r in source.records], axis=0)
    shares = list(metrics["class_shares"].values())
    assert shares == pytest.approx((pixels / pixels.sum()).tolist(), abs=1e-6)
    assert sorted(path.name for path in INVENTORY.iterdir()) == ["a.json", "game.json"]
    inventory(params, "game")
    convert(params)
    assert [path.name for path in INVENTORY.iterdir()] == ["game.json"]
    assert [path.name for path in Path("data/converted/sources").iterdir()] == ["game"]
    with pytest.raises(ValueError, match="source 'a': allowed are game"):
        inventory(params, "a")


def test_a_bad_file_ends_the_command_with_one_error(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(params.sources["game"].root) / "labels/00001.png").write_bytes(b"garbage")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["convert"])
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == (
        "error: demo/raw/game (gta, split train): labels/00001.png: not a readable PNG"
    )
    said = capsys.readouterr()
    assert said.out.startswith("convert: ") and said.out.count("\n") == 1
    assert said.err.startswith("warning: MLflow (http") and said.err.count("\n") == 1
    assert not Path("data/converted/sources/game").exists()
    assert not Path("metrics/convert.json").exists()


@pytest.mark.parametrize(("limit", "file"), [(64, r"labels/\S+\.png"), (400, r"index\.json")])
def test_a_full_disk_is_one_line_that_names_the_file(params: Params, limit: int, file: str) -> None:
    """The limit on the size of a file stands for the disk."""
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from pipeline.convert import convert\n"
        "from pipeline import command\n"
        "from ssda.params import load_params\n"
        "command.guard(lambda: convert(load_params()), debug=False)\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: \[Errno 27\] File too large: '\S*{file}'\n", done.stderr)
    assert not list(Path().rglob("*partial*"))


def test_inventory_changes_when_and_only_when_raw_data_do(params: Params) -> None:
    written_to = INVENTORY / "game.json"

    def digests() -> dict[str, str]:
        inventory(params, "game")
        return {name: files["sha256"] for name, files in json.loads(written_to.read_text()).items()}

    game, city = Path(params.sources["game"].root), Path(params.target.root)
    before = digests()
    written = written_to.stat().st_mtime_ns
    assert list(before) == ["sources/game", "target/train", "target/validation", "target/report"]

    for path in game.rglob("*.png"):  # a copy: new times, new place, equal content
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        copy.replace(path)
    train_labels = city / f"gtFine/{params.target.train}/town"
    for path in train_labels.iterdir():
        path.write_bytes(b"garbage")
    (train_labels / "extra_gtFine_labelIds.png").touch()
    assert digests() == before
    assert written_to.stat().st_mtime_ns == written

    (game / "labels/00002_labelTrainIds.png").touch()  # what other tools leave there
    assert digests() == before

    (game / "labels/00002.png").write_bytes(b"other size")
    resized = digests()
    assert {name for name in before if before[name] != resized[name]} == {"sources/game"}

    write_pair(
        city / "leftImg8bit/val/town/val_000001_leftImg8bit.png",
        city / "gtFine/val/town/val_000001_gtFine_labelIds.png",
        seed=9,
    )
    added = digests()
    assert {name for name in before if resized[name] != added[name]} == {"target/validation"}


@pytest.mark.parametrize("file", ["images/00001.png", "labels/00001.png"])
@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_correction_in_place_of_equal_size_is_seen(
    params: Params, monkeypatch: pytest.MonkeyPatch, file: str, keeps_time: bool
) -> None:
    monkeypatch.setattr("pipeline.inventory.SETTLED", 0)
    path = Path(params.sources["game"].root) / file
    time.sleep(0.02)
    inventory(params, "game")
    before = (INVENTORY / "game.json").read_text()
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # in the checksum of the pixels
    path.write_bytes(content)
    if keeps_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    inventory(params, "game")
    assert (INVENTORY / "game.json").read_text() != before
    content[-20] ^= 1
    path.write_bytes(content)
    inventory(params, "game")
    assert (INVENTORY / "game.json").read_text() == before


def test_two_clones_have_equal_inventories(params: Params, tmp_path: Path) -> None:
    inventory(params, "game")
    clone = tmp_path.with_name(f"{tmp_path.name} clone")
    for path in tmp_path.rglob("*.png"):
        copy = clone / path.relative_to(tmp_path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    first = (INVENTORY / "game.json").read_bytes()
    os.chdir(clone)
    inventory(params, "game")
    assert (INVENTORY / "game.json").read_bytes() == first


def test_only_files_that_were_touched_are_opened(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def noted(path: str) -> str:
        opened.append(path)
        return fingerprint(path)

    monkeypatch.setattr("pipeline.inventory.fingerprint", noted)
    inventory(params, "game")
    assert len(opened) == 6 + 1 + 2 * 2
    opened.clear()
    inventory(params, "game")
    assert len(opened) == 6 + 1 + 2 * 2  # too young: a further change may not show in their times
    monkeypatch.setattr("pipeline.inventory.SETTLED", 0)
    inventory(params, "game")
    opened.clear()
    inventory(params, "game")
    assert opened == []
    path = f"{params.sources['game'].root}/labels/00000.png"
    os.utime(path)
    inventory(params, "game")
    assert opened == [path]
    for kept in Path(".ssda/fingerprints").glob("*.json"):
        kept.write_text("{")
    inventory(params, "game")
    assert len(opened) == 1 + 11


@pytest.mark.parametrize("folder", ["data", "models", "metrics", "data/converted"])
def test_results_on_another_disk_are_told_before_any_work(
    params: Params, tmp_path_factory: pytest.TempPathFactory, folder: str
) -> None:
    away = tmp_path_factory.mktemp("disk")
    Path(folder).parent.mkdir(exist_ok=True)
    Path(folder).symlink_to(away)
    for work in (lambda: inventory(params, "game"), lambda: check(params)):
        with pytest.raises(ValueError, match=rf"^{folder}\S*: a link to {away}.*dvc cache dir"):
            work()
    assert not any(away.iterdir())


def test_a_raw_set_that_an_experiment_s_folder_lacks(
    params: Params, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path_factory.mktemp("main")))
    inventory(params, "game")
    Path(params.target.root).rename("elsewhere")
    with pytest.raises(ValueError, match=r"^demo/raw/city: not in the folder of this experiment"):
        inventory(params, "game")


def test_the_check_tells_what_an_experiment_s_folder_will_lack(params: Params) -> None:
    """git has the target, DVC the source, nobody the classes."""
    assert untracked(params) == []  # no repository, no experiments
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["git", "add", params.target.root],
    ):
        subprocess.run(
            command if command[0] == "git" else [sys.executable, "-m", *command], check=True
        )
    Path("own.yaml").write_text("classes: {road: [0, 0, 0]}\n")
    own = params.model_copy(update={"labels": "own.yaml"})
    game = Path(params.sources["game"].root)
    assert untracked(own) == [game, Path("own.yaml")]
    outs = f"stages: {{draw: {{cmd: 'true', outs: [{game}]}}}}\n"
    Path("dvc.yaml").write_text(outs)
    assert untracked(own) == [Path("own.yaml")]
    far = params.sources["game"].model_copy(update={"root": str(game.resolve())})
    Path("dvc.yaml").unlink()
    assert untracked(params.model_copy(update={"sources": {"game": far}})) == []


def test_a_marker_of_the_target_must_be_in_dvc_yaml(params: Params) -> None:
    text = (REPOSITORY / "dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text)
    inventory(params, "game")
    target = params.target.model_copy(update={"marker": "leftImg8bit/x.png"})
    marked = params.model_copy(update={"target": target})
    with pytest.raises(ValueError, match=r"target\.marker = .*run python -m pipeline.dependencies"):
        inventory(marked, "game")
    Path("dvc.yaml").write_text(updated(text, marked))
    inventory(marked, "game")
    deps = read_yaml(Path("dvc.yaml"))["stages"]["inventory"]["do"]["deps"]
    assert deps[:2] == ["${item.root}/${item.marker}", "${target.root}/${target.marker}"]
    assert updated(Path("dvc.yaml").read_text(), params) == text


def test_leftover_labels_are_told(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = Path(params.sources["game"].root) / "labels"
    for seed in range(3):
        (labels / f"{seed:05}_labelTrainIds.png").touch()
    with pytest.raises(ValueError, match="problems"):  # these images are smaller than the crop
        check(params)
    assert "\n  3 labels without image left out\n" in capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    main(params)
    assert "convert: sources/game: 3 labels without image left out\n" in capsys.readouterr().out


def test_inventory_changes_with_layout_and_classes(params: Params) -> None:
    def digest(text: str, labels: str) -> str:
        Path("game.yaml").write_text(f"like: gta\nids: {text}\n")
        Path("own.yaml").write_text(labels)
        inventory(own, "game")
        return (INVENTORY / "game.json").read_text()

    raw = {"game": params.sources["game"].model_copy(update={"layout": "game.yaml"})}
    target = params.target.model_copy(update={"layout": "game.yaml", "root": raw["game"].root})
    splits = {"train": "train", "validation": "train", "report": "train"}
    target = target.model_copy(update=splits)
    own = params.model_copy(update={"sources": raw, "target": target, "labels": "own.yaml"})
    classes = "classes: {road: [0, 0, 0], car: [1, 1, 1]}\n"
    digests = [
        digest("{7: road}", classes),
        digest("{7: car}", classes),
        digest("{7: car}", classes + "things: [car]\n"),
        digest("{7: car}", classes.replace("[1, 1, 1]", "[2, 2, 2]")),
    ]
    assert len({*digests}) == 4
    assert digest("{7: road}", classes) == digests[0]


def test_inventory_says_what_is_missing_and_loads_nothing_heavy(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heavy = "import sys, pipeline.inventory; print({'torch', 'cv2', 'PIL'} & {*sys.modules})"
    done = run_python("-c", heavy)
    assert done.returncode == 0
    assert done.stdout == "set()\n"
    for path in (Path(params.sources["game"].root) / "images").iterdir():
        path.unlink()
    monkeypatch.setattr(sys, "argv", ["inventory", "game"])
    with pytest.raises(SystemExit) as end:
        run_inventory()
    assert end.value.code == "error: demo/raw/game: no image matches images/*.png of layout gta"
    assert capsys.readouterr() == ("", "")
    assert not (INVENTORY / "game.json").exists()


def test_inventory_of_many_files_is_quick(params: Params) -> None:
    for number in range(3000):
        (Path(params.sources["game"].root) / f"images/{number:06}x.png").touch()
    start = time.process_time()
    inventory(params, "game")
    assert time.process_time() - start < 1
