"""What it costs an undisturbed run that it can be killed anywhere: its seconds over those of a bare one.

    python benchmarks/reliability_cost.py     # writes docs/results/reliability-cost.json

Trains r1_zero of the mini scale for 40 steps (a checkpoint every 20 is the default), by turns as it is and bare:
without checkpoints, flushes, checksums and locks. The weights must be the same.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import artifact, cli, durable, runner, worker
from pipeline.artifact import sha256, write_json
from pipeline.places import ROOT
from pipeline.provenance import environment

RESULT = ROOT / "docs/results/reliability-cost.json"
PAIRS = 3
PART = ["--from", "r1_zero", "--until", "r1_zero", "--args", "grpo.max_steps=40"]
COMMAND = ["run", "r1-zero", "--engine", "plain", *PART]


def main() -> None:
    """Makes the pairs, prints and writes their seconds and the median ratios."""
    pairs = []
    for number in range(PAIRS):
        order = ["as it is", "bare"][:: 1 if number % 2 else -1]
        pairs.append({how: measured(how) for how in order})
        print(pairs[-1], flush=True)
    if len({one["sha256"] for pair in pairs for one in pair.values()}) > 1:
        sys.exit("the weights differ")
    clocks = ("wall_s", "cpu_s")
    ratios = {clock: round(median(p["as it is"][clock] / p["bare"][clock] for p in pairs), 4) for clock in clocks}
    print(ratios)
    told = {"command": "python benchmarks/reliability_cost.py", "ratios": ratios, "pairs": pairs}
    write_json(RESULT, told | environment())


def measured(how: str) -> dict[str, Any]:
    """Seconds on the wall and of the processor that one run takes, and the sha256 of its weights."""
    with tempfile.TemporaryDirectory() as runs:
        words = ["-m", "pipeline"] if how == "as it is" else [__file__, "bare"]
        before, began = cpu_seconds(), time.perf_counter()
        subprocess.run([sys.executable, *words, *COMMAND], env=os.environ | {"R1_RUNS": runs}, check=True, stdout=-3)
        seconds = {"wall_s": round(time.perf_counter() - began, 2), "cpu_s": round(cpu_seconds() - before, 2)}
        return seconds | {"sha256": sha256(Path(runs, "r1-zero-mini/r1_zero/model.safetensors"))}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def bare(words: list[str]) -> int:
    """The command line without anything that is there for the case of a kill."""
    runner.WORKER = [sys.executable, __file__, "bare", "_stage"]
    if words[0] != "_stage":
        return cli.main(words)
    from stages.engines.trainers import PipelineTrainer

    durable.os.fsync = lambda descriptor: None  # type: ignore[attr-defined]
    artifact.sha256 = lambda path: ""
    worker.stage_lock = lambda *of: nullcontext()
    PipelineTrainer._save_checkpoint = lambda *of: None  # type: ignore[method-assign]
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(bare(sys.argv[2:]) if sys.argv[1:2] == ["bare"] else main())
