"""A training stage on several processes: NPROC on this machine, on NNODES machines.

On each machine the stage is started with the same NPROC, NNODES and RENDEZVOUS (host:port of one of
them); one of them may run DVC (docs/many-gpus.md). RESTARTS says how often the processes are
started again, after the last saved step, when one has died; by default the same command does it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from pipeline import command
from ssda.params import Params

PATIENCE = 600
"""Seconds that processes have to save their state once they are asked to stop: several gigabytes
take minutes on a slow disk."""


def launch(stage: str, params: Params, alone: Callable[[Params], object]) -> None:
    """Run a stage: here, or on several processes where the environment asks for them.

    Raises ValueError for a batch that cannot be shared out or does not fit into memory, or where a
    process died.
    """
    local, nodes = _number("NPROC", 1), _number("NNODES", 1)
    batch_size = getattr(params, stage).batch_size
    if local * nodes == 1 or "RANK" in os.environ:
        try:
            alone(params)
        except Exception as error:  # torch is not imported yet: no class to name
            reason = str(error).strip().split("\n")[0]
            if "gloo" in reason or type(error).__name__.startswith("Dist"):
                print(f"error: another process is gone ({reason})", file=sys.stderr)
                os._exit(1)  # the usual way out would wait for it
            if (reason := command.lack_of_memory(error)) is None:
                raise
            raise ValueError(
                f"out of memory with {stage}.batch_size = {batch_size} and images.crop = "
                f"{list(params.images.crop)}: lower one of them, {stage}.micro_batch_size, "
                "runtime.evaluation_batch_size or model.channels, or share the batch out over more "
                f"processes ({reason})"
            ) from error
        return
    if batch_size % (local * nodes):
        raise ValueError(
            f"{stage}.batch_size = {batch_size}: must be a multiple of NPROC x NNODES = "
            f"{local * nodes}"
        )
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # torchrun's; the lines below say it
    # A store of their own for processes that are started again: in the launcher's they would find
    # the addresses of the dead ones.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=local,
        run_id=f"ssda-{stage}",
        rdzv_backend="c10d",
        rdzv_endpoint=os.environ.get("RENDEZVOUS", "127.0.0.1:0"),
        max_restarts=_number("RESTARTS", 0),
        shutdown_timeout=PATIENCE,
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        elastic_launch(config, sys.executable)("-m", f"pipeline.{stage}", *sys.argv[1:])
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        raise ValueError(
            f"process {number} of {local * nodes} ended with exit code "
            f"{failure.exitcode}, the others were stopped; the same command goes on after the "
            "last saved step"
        ) from error


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or (int(text) == 0 and default > 0):
        raise ValueError(f"{name} = {text!r}: must be a whole number >= {default}")
    return int(text)
