import errno
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.command import INACTIVE, guard
from tests.conftest import ROOT

COMMANDS = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in (ROOT / "pipeline").rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
]


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize("error", [ValueError("a: b"), OSError("a: b"), FloatingPointError("a: b")])
def test_a_user_s_mistake_is_one_line_and_exit_code_1(error: Exception) -> None:
    with pytest.raises(SystemExit) as caught:
        guard(raising(error), debug=False)
    assert caught.value.code == "error: a: b"
    with pytest.raises(type(error)):
        guard(raising(error), debug=True)


def test_an_interrupt_is_told_and_has_its_own_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        guard(raising(KeyboardInterrupt()), debug=False)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(AssertionError):
        guard(raising(AssertionError("ours")), debug=False)


def test_a_full_disk_without_a_file_s_name_says_where_to_look() -> None:
    with pytest.raises(SystemExit) as caught:
        guard(raising(OSError(errno.ENOSPC, "No space left on device")), debug=False)
    assert "/dev/shm" in str(caught.value.code)


@pytest.mark.parametrize("size", [(10**14,), (2**40, 2**40)])
def test_full_memory_is_one_line_in_every_stage(size: tuple[int, ...]) -> None:
    for work in (lambda: torch.empty(size), lambda: np.empty(10**15)):
        with pytest.raises(
            SystemExit, match=r"^error: out of memory .*evaluation_batch_size"
        ) as end:
            guard(work, debug=False)
        assert "\n" not in str(end.value.code)
        with pytest.raises((RuntimeError, MemoryError)):
            guard(work, debug=True)


def test_a_python_without_the_packages_says_what_helps() -> None:
    assert "pipeline.adapt" in COMMANDS and "make setup" in INACTIVE
    for module in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-S", "-m", module], cwd=ROOT, env={}, capture_output=True, text=True
        )
        assert done.stderr == f"error: No module named 'pydantic': {INACTIVE}\n", module
        assert done.returncode == 1
    with pytest.raises(SystemExit, match=f"^error: No module named 'torch': {INACTIVE}$"):
        guard(raising(ModuleNotFoundError("No module named 'torch'")), debug=False)
