"""What a manifest says about where a result came from: code, packages, machine, data, memory."""

import os
import platform
import resource
import subprocess
import sys
from functools import cache
from importlib import metadata
from typing import Any

from pipeline import card
from pipeline.places import ROOT
from pipeline.stage import Stage

PACKAGES = (
    *("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "vllm"),
    *("datasets", "math-verify", "prefect", "tokenizers", "numpy"),
)


def environment() -> dict[str, Any]:
    """git state, package versions and hardware."""
    return {"git": _git(), "packages": _packages(), "hardware": hardware()}


def cards_used(stage: Stage) -> list[dict[str, str | None]]:
    """Name, revision and licence of every card a stage reads."""
    names = {card.parse_card_ref(ref.target)[0] for _, ref in stage.references() if ref.scheme == "card"}
    cards = [card.load_card(name) for name in sorted(names)]
    return [{"name": c.name, "revision": c.revision, "licence": c.licence} for c in cards]


def peak_memory() -> dict[str, float | None]:
    """Peak resident memory of this process, and of torch's allocator where CUDA was used; GiB."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.max_memory_allocated() / 2**30 if torch is not None and torch.cuda.is_initialized() else None
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"peak_memory_gib": round(resident, 3), "peak_gpu_memory_gib": gpu and round(gpu, 3)}


@cache
def _git() -> dict[str, Any]:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return {"commit": ask("rev-parse", "HEAD") or None, "dirty": bool(ask("status", "--porcelain"))}
    except OSError:
        return {"commit": None, "dirty": None}


@cache
def _packages() -> dict[str, str]:
    return {name: version for name in PACKAGES if (version := version_of(name))}


def version_of(package: str) -> str:
    """Of an installed package; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB, and the GPU where torch uses one."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_initialized() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": _cpu(), "cores": os.cpu_count(), "memory_gib": round(memory, 1), "gpu": gpu}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
