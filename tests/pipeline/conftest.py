from pathlib import Path

import pytest

from pipeline.tracking.server import SETTINGS


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with nothing in it, to be copied: its tables take a hundred commits."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
