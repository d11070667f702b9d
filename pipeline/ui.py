"""MLflow's pages of the runs, from the store they are in: python -m pipeline.ui, or make ui."""

from __future__ import annotations

import os
import re
import sys

from pipeline import command
from ssda.params import Params


def ui(params: Params, port: int) -> None:
    """Say which page has the runs, and become the program that shows it.

    Raises ValueError where the runs are on a server, which shows them itself.
    """
    from pipeline.tracking.server import DATABASES, VIEW, connect, tracking_uri

    uri = tracking_uri()
    if not re.match(f"{DATABASES}|file:", uri):
        raise ValueError("MLFLOW_TRACKING_URI: names a server; open its address in a browser")
    experiment = connect(params).experiment
    place = f"http://127.0.0.1:{port}"
    command.say(
        f"{place}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    )
    options = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    store = ("--backend-store-uri", uri)
    os.execv(sys.executable, (sys.executable, "-m", "mlflow", "ui", *options, *store))


def main() -> None:
    """The command line."""
    options = command.parser(__doc__)
    options.add_argument("--port", type=int, default=5000, help="default: 5000")
    command.start(options, lambda given: ui(command.read_params(given.params), given.port))


if __name__ == "__main__":
    main()
