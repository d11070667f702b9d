"""What every stage's command line shares: options, and one clear line for a user's mistake."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable

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
    """Read the parameters, run the stage; a ValueError or OSError becomes one line and exit code 1.

    With --debug the traceback is shown instead. A stage that trains runs on as many processes as
    the environment asks for.
    """
    arguments = stage_parser(description).parse_args()

    def work(params: Params) -> None:
        if not trains:
            stage(params)
            return
        from pipeline.launch import launch

        launch(name, params, stage)

    guard(
        lambda: unless_finished(name, load_params(arguments.params), work, force=arguments.force),
        debug=arguments.debug,
    )


def unless_finished(
    name: str, params: Params, work: Callable[[Params], object], *, force: bool
) -> None:
    """Do a stage's work; by hand not where its result is there already, unless with --force."""
    from pipeline.finished import by_hand, is_finished, note_finished

    if by_hand() and not force and is_finished(name, params):
        say(f"{name}: up to date; --force runs it anyway")
        return
    work(params)
    if by_hand():
        note_finished(name, params)


def say(text: str) -> None:
    """A line about where a stage is, at once also where the output is no terminal."""
    print(text, flush=True)


def say_next(following: str) -> None:
    """The command that goes on from here, unless DVC does that by itself."""
    if "DVC_STAGE" not in os.environ:
        say(f"next: {following}")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all have: --params and --debug."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--params", default="params.yaml", help="parameters (default: params.yaml)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def stage_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of a stage: --force beside those of all."""
    options = parser(description)
    text = "by hand: run the stage although its result is up to date"
    options.add_argument("--force", action="store_true", help=text)
    return options


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
