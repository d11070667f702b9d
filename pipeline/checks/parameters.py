"""Where parameters are wrong, how they get right again."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pipeline.repository import git, root


@contextmanager
def telling_how_to_take_back(path: Path) -> Generator[None]:
    """Say it in a ValueError where the file of parameters is not as it was committed.

    `dvc exp run -S` writes into the file, and leaves there what a stage then refuses. Not where it
    works in a folder of its own.
    """
    try:
        yield
    except ValueError as error:
        here = root() == Path.cwd().resolve()
        if not here or not git("diff", "--name-only", "HEAD", "--", str(path)):
            raise
        raise ValueError(
            f"{error}; it stays in {path} until it is changed: `git checkout {path}` takes back "
            "all that was changed there since the commit"
        ) from error
