"""What command lines share: options, and one clear line for a user's mistake."""

from __future__ import annotations

import errno
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

INACTIVE = "make setup, then source .venv/bin/activate"
"""What helps where a package is missing: most often another Python runs than that of set-up."""

try:  # the first import of a package, in every command
    from ssda.params import Params, load_params
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}: {INACTIVE}")

# Threads that have nothing to do spin for a moment, then sleep: where something else uses a core,
# be it only the processes that load images, a step of threads that spin for long takes many times
# as long. OpenMP reads it when PyTorch is imported, which is later.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


NO_MEMORY = (
    *("out of memory", "not enough memory", "can't allocate memory", "Insufficient memory"),
    *("Unable to allocate", "Storage size calculation overflowed"),
)
"""What torch, OpenCV and numpy say where memory is full."""


def run(
    name: str, stage: Callable[[Params], object], description: str | None, *, trains: bool = False
) -> None:
    """Read the parameters, run the stage; a stage that trains on the processes that were asked for.

    A ValueError or OSError becomes one line and exit code 1; with --debug it is shown whole.
    """

    def work(arguments: Namespace) -> None:
        run_stage(name, stage, arguments, trains=trains)

    start(stage_parser(description), work)


def run_stage(
    name: str, stage: Callable[[Params], object], arguments: Namespace, *, trains: bool = False
) -> None:
    """Do a stage's work; by hand not where its result is there already, unless with --force."""
    from pipeline.checks.finished import unless_finished

    def work(params: Params) -> None:
        if trains:
            from pipeline.training.launch import launch

            launch(name, params, stage)
        else:
            stage(params)

    unless_finished(name, read_params(arguments.params), work, force=arguments.force)


def read_params(path: Path) -> Params:
    """The parameters in a file; a ValueError says as well how the file is taken back."""
    from pipeline.checks.parameters import telling_how_to_take_back

    with telling_how_to_take_back(path):
        return load_params(path)


def say(text: str) -> None:
    """A line about where a stage is, at once also where the output is no terminal."""
    print(text, flush=True)


def say_next(following: str) -> None:
    """The command that goes on from here, unless DVC does that by itself."""
    if "DVC_STAGE" not in os.environ:
        say(f"next: {following}")


def tool(description: str | None, *, add_help: bool = True) -> ArgumentParser:
    """The option that all have, --debug; a module's first paragraph describes it."""
    text = (description or "").split("\n\n")[0]
    parser = ArgumentParser(description=text, add_help=add_help)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def parser(description: str | None, *, add_help: bool = True) -> ArgumentParser:
    """The options of what reads parameters: --params beside that of all."""
    options = tool(description, add_help=add_help)
    text = "parameters (default: params.yaml)"
    options.add_argument("--params", type=Path, default=Path("params.yaml"), help=text)
    return options


def stage_parser(description: str | None) -> ArgumentParser:
    """The options of a stage: --force beside those."""
    options = parser(description)
    text = "by hand: run the stage although its result is up to date"
    options.add_argument("--force", action="store_true", help=text)
    return options


def at_least(smallest: int) -> Callable[[str], int]:
    """The type of an option that is a whole number."""

    def number(text: str) -> int:
        if int(text) < smallest:
            raise ValueError
        return int(text)

    number.__name__ = f"whole number >= {smallest}"
    return number


def start(options: ArgumentParser, work: Callable[[Namespace], object]) -> None:
    """Read the command line and do the work, as `guard` does."""
    arguments = options.parse_args()
    guard(lambda: work(arguments), debug=arguments.debug)


def lack_of_memory(error: Exception) -> str | None:
    """What an error of torch, OpenCV or Python says of memory that there is not; else None."""
    reason = " ".join(str(error).split("\n")[0].split())[:200]
    if isinstance(error, MemoryError) or any(words in reason for words in NO_MEMORY):
        return reason or "out of memory"
    return None


def guard(work: Callable[[], object], *, debug: bool) -> None:
    """Do the work; a user's mistake ends the program with one line on stderr and exit code 1."""
    try:
        work()
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename
        place = "; the disk or, with runtime.workers above 0, /dev/shm is full" if full else ""
        sys.exit(f"error: {error}{place}")
    except ModuleNotFoundError as error:
        if debug:
            raise
        sys.exit(f"error: {error}: {INACTIVE}")
    except Exception as error:
        if debug:
            raise
        if reason := lack_of_memory(error):
            sys.exit(
                f"error: out of memory ({reason}); lower images.target_size, evaluate.passes, "
                "runtime.evaluation_batch_size or runtime.workers, or give evaluate.windows"
            )
        if "DataLoader worker" not in str(error):  # that torch says of one that has died
            raise
        sys.exit(
            f"error: a process that loads images ended ({' '.join(str(error).split())}); "
            "the same command goes on after the last saved step; with runtime.workers: 0 there is "
            "no such process"
        )
    except KeyboardInterrupt as stop:
        if debug:
            raise
        print(str(stop) or "interrupted", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))
