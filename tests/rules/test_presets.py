from pathlib import Path

import pytest

from pipeline.presets import use
from ssda.datasets.layouts import check_classes, load_layout
from ssda.labels import load_space
from ssda.networks.encoders import Encoder
from ssda.params import load_params

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid(path: Path) -> None:
    params = load_params(path)
    space = load_space(params.labels)
    for raw in (*params.sources.values(), params.target):
        check_classes(load_layout(raw.layout), space, params.labels)
    Encoder(params.model)
    sizes = [raw.resize for raw in params.sources.values()]
    for size in (*sizes, params.images.target_size):
        if size is not None:
            assert size[0] >= params.images.crop[0] and size[1] >= params.images.crop[1]


def test_the_default_is_the_demo_preset() -> None:
    assert (ROOT / "presets/demo.yaml").read_text() == (ROOT / "params.yaml").read_text()


def test_using_a_preset_copies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    use("gta_small", tmp_path / "params.yaml")
    assert load_params(tmp_path / "params.yaml") == load_params(ROOT / "presets/gta_small.yaml")
    with pytest.raises(ValueError, match="preset 'gta': allowed are camvid, demo, gta_din"):
        use("gta", tmp_path / "params.yaml")
