"""What this machine has: processor, memory, disk, GPUs and their driver, torch and vLLM. Imports neither.

GPUs are asked for through `nvidia-smi`; what torch was built for stands in its `version.py`. Used by `make doctor`, and
before a run, to refuse a stage that cannot work here.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.places import runs_folder
from pipeline.provenance import hardware, version_of

GIB = 2**30
# The oldest driver for each CUDA (NVIDIA's table of minor version compatibility).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver names it."""

    name: str
    total_bytes: float
    free_bytes: float
    driver: str
    uuid: str = ""


@dataclass(frozen=True)
class Machine:
    """`torch_cuda` is the CUDA that torch was built for, empty for a build without, None where there is no torch."""

    cpu: str
    cores: int
    memory_bytes: float
    free_disk_bytes: float
    gpus: tuple[Gpu, ...] = ()
    torch_cuda: str | None = None
    vllm: str = ""

    @property
    def driver_is_too_old(self) -> bool:
        """Whether torch would not see the GPUs that are there."""
        wanted = OLDEST_DRIVER.get(_major(self.torch_cuda or ""), 0)
        return bool(self.gpus) and _major(self.gpus[0].driver) < wanted

    @property
    def has_cuda(self) -> bool:
        """Whether torch can compute on a GPU here."""
        return bool(self.gpus and self.torch_cuda) and not self.driver_is_too_old

    @property
    def why_no_cuda(self) -> str:
        """Why torch cannot: half a sentence, and what to do about it."""
        if not self.gpus:
            return "this machine has no GPU (`nvidia-smi` shows none)"
        if self.driver_is_too_old:
            wanted = OLDEST_DRIVER[_major(self.torch_cuda or "")]
            return (
                f"the driver {self.gpus[0].driver} is too old for torch with CUDA {self.torch_cuda}: "
                f"it takes {wanted} or later, or a torch for an older CUDA"
            )
        return "torch is built without CUDA here (`make setup-gpu` installs one that is)"


def this_machine() -> Machine:
    """Asks the system; never raises for what is not there."""
    found = hardware()
    folder = next(path for path in (runs_folder(), *runs_folder().parents) if path.is_dir())
    return Machine(
        cpu=str(found["cpu"]),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else int(found["cores"] or 1),
        memory_bytes=float(found["memory_gib"]) * GIB,
        free_disk_bytes=float(shutil.disk_usage(folder).free),
        gpus=_gpus(),
        torch_cuda=_torch_cuda(),
        vllm=version_of("vllm"),
    )


def _gpus() -> tuple[Gpu, ...]:
    """The GPUs that a process may use, as `CUDA_VISIBLE_DEVICES` has it; none without a driver."""
    facts = "--query-gpu=name,memory.total,memory.free,driver_version,uuid"
    ask = ["nvidia-smi", facts, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    gpus = tuple(gpu for line in done.stdout.splitlines() if (gpu := parse_gpu(line)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return gpus if visible is None else tuple(_chosen(gpus, visible))


def _chosen(gpus: tuple[Gpu, ...], visible: str) -> Iterator[Gpu]:
    """Those that `visible` names by number or UUID, in its order; CUDA ends the list at the first it cannot find."""
    for name in map(str.strip, visible.split(",")):
        if name.isdecimal():
            found = gpus[int(name) : int(name) + 1]
        elif name.startswith("MIG"):
            found = gpus[:1]  # a part of a card, and nvidia-smi does not say of which
        else:
            found = tuple(gpu for gpu in gpus if name and gpu.uuid.startswith(name))
        if not found:
            return
        yield found[0]


def parse_gpu(line: str) -> Gpu | None:
    """A line of `nvidia-smi`: `NVIDIA H100 80GB HBM3, 81559, 81000, 580.95.05, GPU-d1f2…`; None for any other."""
    words = [word.strip() for word in line.split(",")]
    if len(words) != 5 or not words[1].isdecimal() or not words[2].isdecimal():
        return None
    return Gpu(words[0], int(words[1]) * 2.0**20, int(words[2]) * 2.0**20, *words[3:])


def _torch_cuda() -> str | None:
    """From torch's `version.py`, which says `cuda: Optional[str] = '13.0'`, or `= None`."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.is_file():
        return None
    named = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", file.read_text(encoding="utf-8"), re.MULTILINE)
    return named[1] if named else ""


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0
