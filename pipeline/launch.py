"""Several processes that make one stage together, one for each GPU of this host: `LAUNCH=ddp`.

The runner starts `python -m pipeline _launch COUNT RUN_FOLDER STAGE` in place of the stage's one process. It starts
`_stage` COUNT times with the environment that `torchrun` and `accelerate launch` set, which is where accelerate finds
the others, passes a signal on to all of them, and ends all when one fails. Not those launchers themselves: they give
each process a session of its own, out of the runner's reach, and half a minute to save. How many processes make a
stage cannot change what it is: it is in no fingerprint.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial as bound

from pipeline.errors import EXIT_INTERRUPTED, ConfigError, ResourceError
from pipeline.machine import this_machine
from pipeline.runner import GRACE_S, end_with
from pipeline.settings import did_you_mean

AFTER_A_FAILURE_S = 10.0  # the others may wait for the one that is gone, and hear nothing


def num_processes(launch: str, wanted: str | None) -> int:
    """How many processes `LAUNCH` and `PROCESSES` ask for; 1 without them. Refuses what this machine cannot do."""
    if launch == "fsdp":
        raise ConfigError(
            "LAUNCH=fsdp is not offered: a frozen base in 4 bits with a LoRA adapter fits each GPU as a whole",
            hint="LAUNCH=ddp; and quantization: nf4 where the model is too big for one GPU",
        )
    if launch not in ("single", "ddp"):
        raise ConfigError(f"LAUNCH={launch}: there is no such way", hint=did_you_mean(launch, ("single", "ddp")))
    if launch == "single":
        if wanted is not None:
            raise ConfigError(f"PROCESSES={wanted} goes with LAUNCH=ddp", hint=f"LAUNCH=ddp PROCESSES={wanted}")
        return 1
    machine = this_machine()
    num_gpus = len(machine.gpus)
    if wanted is None and not num_gpus:
        raise ResourceError(
            "LAUNCH=ddp takes a process for each GPU, and this machine has none",
            hint="leave LAUNCH out; PROCESSES=2 tries it on the CPU",
        )
    count = int(wanted) if wanted and wanted.isdecimal() else num_gpus if wanted is None else 0
    most = num_gpus or max(2, machine.cores)
    if not 1 <= count <= most:
        there = f"there are {num_gpus} GPUs" if num_gpus else f"without a GPU a number from 1 to {most} belongs there"
        raise ConfigError(f"PROCESSES={wanted}: {there}", hint="leave PROCESSES out to use every GPU")
    return count


def run_processes(command: Sequence[str], count: int) -> int:
    """Runs `command` `count` times as the ranks of one group; returns 0, or the code of the first that failed."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    children = [
        subprocess.Popen(
            command,
            env={**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)},
            preexec_fn=bound(end_with, os.getpid()),
        )
        for rank in range(count)
    ]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: _tell(children, received))
    return _code(children)


def _code(children: "list[subprocess.Popen[bytes]]") -> int:
    """Waits for the first, which ends last. One that fails ends the others; if they were told to stop they may save."""
    while children[0].poll() is None and all(child.poll() in (None, 0) for child in children):
        time.sleep(0.1)
    code = next((child.returncode for child in children if child.returncode), 0)
    if code not in (0, EXIT_INTERRUPTED):
        _tell(children, signal.SIGTERM)
    for child in children:
        try:
            child.wait(GRACE_S if code in (0, EXIT_INTERRUPTED) else AFTER_A_FAILURE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return code


def _tell(children: "list[subprocess.Popen[bytes]]", number: int) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            child.send_signal(number)


def leave(code: int) -> None:
    """Ends this process as the one that failed ended: by the same signal, or with the same code."""
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
