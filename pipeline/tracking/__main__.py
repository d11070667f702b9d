"""MLflow runs and what DVC keeps of them.

`sync` fills runs in, `checkout` gets networks back, `register` gives one a name in MLflow.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from pipeline import command


def main() -> None:
    """The command line."""
    options = ArgumentParser("python -m pipeline.tracking", description=__doc__)
    commands = options.add_subparsers(dest="command", required=True)
    shared = [command.parser(None, add_help=False)]
    text = "fill in what MLflow lacks of the workspace and of DVC's experiments"
    syncing = commands.add_parser("sync", help=text, description=text, parents=shared)
    text = "not only experiments of this commit"
    syncing.add_argument("-A", "--all-commits", action="store_true", help=text)
    text = "get the networks and parameters of a run"
    checking_out = commands.add_parser("checkout", help=text, description=text, parents=shared)
    checking_out.add_argument("run", help="its name or id")
    checking_out.add_argument("--out", type=Path, help="folder (default: runs/NAME)")

    text = "register the adapted network of a run with MLflow"
    registering = commands.add_parser("register", help=text, description=text, parents=shared)
    registering.add_argument("run", help="its name or id")
    registering.add_argument("name", help="of the registered model")

    def work(given: Namespace) -> None:
        from pipeline.tracking.sync import checkout, register, sync

        params = command.read_params(given.params)
        if given.command == "sync":
            lines = sync(params, all_commits=given.all_commits)
        elif given.command == "register":
            lines = register(params, given.run, given.name)
        else:
            lines = checkout(params, given.run, given.out)
        print("\n".join(lines))

    command.start(options, work)


if __name__ == "__main__":
    main()
