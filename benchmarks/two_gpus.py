"""GRPO on two GPUs of one host against one: the same stage, model, batch and seed, with and without `LAUNCH=ddp`.

Runs the stage `r1_zero` of a scale through the pipeline with each number of processes in turns, adds rows of the case
`two-gpus` to a JSON list (the first step of a run is left out: it warms up) and prints how many times as fast it is.
The reward is for short responses, which differ in any model, so that every group is trained on.

    python -m benchmarks.two_gpus --scale smollm2-135m-countdown --steps 5 --rounds 2
    python -m benchmarks.two_gpus --scale mini --steps 3 --args grpo.num_problems=32     # two processes on a CPU
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import command_line, ready, start
from pipeline.launch import num_processes
from pipeline.places import ROOT
from pipeline.stage import read_jsonl

Row = dict[str, Any]
# 4,096 responses: enough that half of them keep a GPU as busy as all of them do.
LENGTH = "{kind: soft_overlong_punishment, soft_punish_cache: 0.99}"
SETTINGS = ("grpo.num_problems=256", "grpo.num_generations=16", f"grpo.rewards=[{LENGTH}]")


def main() -> None:
    """Runs all in turns, keeps the rows, prints the ratio."""
    chosen = arguments()
    num_processes("ddp", str(max(chosen.processes)))  # refused here and not after the first run
    ready("r1-zero", chosen.scale, chosen.args, ["r1_zero"])
    runs: dict[int, list[Row]] = {count: [] for count in chosen.processes}
    for _ in range(chosen.rounds):
        for count in chosen.processes:
            runs[count].append(measured(chosen, count))
            print("RESULT " + json.dumps(runs[count][-1]), flush=True)
    best = {count: min(rows, key=lambda row: row["step_s"]) for count, rows in runs.items()}
    kept = json.loads(chosen.out.read_text()) if chosen.out.exists() else []
    kept = [row for row in kept if row["case"] != "two-gpus"] + list(best.values())
    chosen.out.write_text(json.dumps(kept, indent=1) + "\n")
    first = best[chosen.processes[0]]
    for count, row in best.items():
        ratios = {name: round(first[name] / row[name], 2) for name in ("step_s", "train_s", "generate_s")}
        print(f"{count} processes: {row['step_s']} s a step, times as fast as {chosen.processes[0]}: {ratios}")


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--scale", default="smollm2-135m-countdown")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--args", nargs="*", default=[], help="settings, as in ARGS")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/core.json")
    return parser.parse_args()


def measured(chosen: argparse.Namespace, count: int) -> Row:
    """One run with `count` processes."""
    command = [sys.executable, "-m", "pipeline", "stage", "r1-zero", "--stage", "r1_zero", "--scale", chosen.scale]
    settings = [*SETTINGS, f"grpo.max_steps={chosen.steps}", *chosen.args]
    with tempfile.TemporaryDirectory() as runs:
        where = {"R1_RUNS": runs, "ENGINE": "plain", "LAUNCH": "ddp", "PROCESSES": str(count)}
        subprocess.run([*command, "--run", "bench", "--args", *settings], cwd=ROOT, env=os.environ | where, check=True)
        made = Path(runs) / "bench/r1_zero"
        rows, manifest = read_jsonl(made / "metrics.jsonl")[1:], json.loads((made / "manifest.json").read_text())
    seconds = {name: median(row[f"{long}_seconds"] for row in rows) for name, long in PHASES.items()}
    return {
        "case": "two-gpus",
        "contender": "core",
        "processes": count,
        "phase": "step",
        **{name: round(value, 3) for name, value in seconds.items()},
        "tokens_per_s": round(median(row["tokens_per_s"] for row in rows)),
        "trained_share": round(median(row["trained_share"] for row in rows), 3),
        "peak_gib": manifest["peak_gpu_memory_gib"] or manifest["peak_memory_gib"],
        "device": manifest["hardware"]["gpu"] or manifest["hardware"]["cpu"],
        "commit": manifest["git"]["commit"],
    }


PHASES = {"step_s": "step", "train_s": "train", "generate_s": "generate"}


if __name__ == "__main__":
    start(main)
