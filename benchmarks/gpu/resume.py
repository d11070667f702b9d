"""Killed and resumed: equal bits? And are two unbroken runs equal?

python -m benchmarks.gpu.resume default|deterministic
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.results import RESUMED, guarded, put
from benchmarks.gpu.shared import prepared, preset, steps
from benchmarks.step import Setting
from ssda.engine.state import State, StateWriter, copy_tensors, read_newest, restore
from ssda.engine.training import Progress, create_optimiser
from ssda.sections import changed

SAVED, KILLED, END = 3, 5, 6
PRESET, CROP = "gta_resnet101", 256


def digest(setting: Setting) -> str:
    """Of all weights and buffers."""
    total = hashlib.sha256()
    for network in setting.networks.state().values():
        for value in network.state_dict().values():
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:12]


def work(mode: str, what: str, folder: Path) -> None:
    """A run in a process of its own: whole, killed after its state is saved, or resumed."""
    exact = {"compute.deterministic": mode == "deterministic"}
    params = changed(preset(PRESET, CROP), exact)
    setting = prepared(params)
    optimiser = create_optimiser(
        setting.networks.student, params.adapt.optimiser, setting.networks.projector
    )
    first = 0
    if what == "resumed":
        state = read_newest(folder, print)
        assert state is not None
        restore(setting.networks.state(), optimiser, state.tensors)
        first = state.step
    for record in steps(setting, Progress(optimiser, first)):
        assert record.problem is None, record.problem
        done = record.step + 1
        if what == "killed" and done == SAVED:
            writer = StateWriter(folder, print)
            writer.start(State(done, copy_tensors(setting.networks.state(), optimiser), {}))
            writer.wait()
        if what == "killed" and done == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if done == END:
            break
    print(f"digest {digest(setting)}", flush=True)


def compare(mode: str) -> None:
    """Two unbroken runs, and one that is killed and goes on."""
    with tempfile.TemporaryDirectory() as folder:

        def run(what: str) -> str:
            command = [sys.executable, "-m", "benchmarks.gpu.resume", mode, what, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode != (-signal.SIGKILL if what == "killed" else 0):
                raise RuntimeError(f"the run that is {what} ended with {done.returncode}")
            return done.stdout.rpartition("digest ")[2].strip()

        whole = run("whole")
        run("killed")
        resumed = run("resumed")
        crop = preset(PRESET, CROP).images.crop[0]
        note = f"{PRESET}, crop {crop}; after {END} steps {resumed} against {whole}"
        put(RESUMED, "equal" if resumed == whole else "differ", "", note)
        put("two unbroken runs", "equal" if run("whole") == whole else "differ")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        guarded(RESUMED, compare, sys.argv[1])
    else:
        work(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
