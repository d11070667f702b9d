import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from pipeline.tracking.server import Server
from pipeline.ui import ui
from tests.conftest import make_params


def test_it_serves_the_store_of_the_runs_and_says_their_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("pipeline.tracking.server.connect", lambda _: Server(Mock(), "7"))
    started: list[str] = []
    monkeypatch.setattr(os, "execv", lambda _, words: started.extend(words))
    ui(make_params(), 5001)
    assert capsys.readouterr().out.startswith("http://127.0.0.1:5001/#/experiments/7/runs")
    assert started[1:4] == ["-m", "mlflow", "ui"] and "5001" in started
    assert started[-2:] == ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]


def test_a_server_shows_its_runs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@runs.example")
    with pytest.raises(ValueError, match=r"^MLFLOW_TRACKING_URI: names a server; open its address"):
        ui(make_params(), 5000)
