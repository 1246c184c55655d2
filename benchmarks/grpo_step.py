"""One GRPO step, ours against plain TRL: the same settings, model, data, rewards and number of steps, side by side.

Reads the `r1_zero` stage of a scale; runs it through the pipeline and through `plain_trl_grpo` in turns, each time
in a process of its own. Makes a JSON file and prints a Markdown table: the median seconds of a step (the first of
each run is left out: it warms up), tokens sampled a second, peak memory, and the ratio.

    python -m benchmarks.grpo_step --scale mini --steps 8 --rounds 2
    python -m benchmarks.grpo_step --scale smollm2-135m --steps 4 --rounds 2 --micro-batch-rows 64 --vllm
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks import command_line, ready, require_package, start
from pipeline.places import ROOT
from pipeline.provenance import environment
from pipeline.recipe import load_recipe
from pipeline.stage import read_jsonl

Result = dict[str, Any]
SAME = (
    *("beta", "loss_type", "epsilon", "scale_rewards", "temperature", "top_p", "lr_scheduler_type"),
    *("optim", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm"),
)
"""Settings of the stage that plain TRL gets by the same name."""


def main() -> None:
    """Runs both in turns and reports."""
    chosen = arguments()
    require_both(chosen)
    rounds: dict[str, list[Result]] = {"ours": [], "plain TRL": []}
    for _ in range(chosen.rounds):
        rounds["ours"].append(ours(chosen))
        rounds["plain TRL"].append(plain_trl(chosen))
    summary = {name: summarised(results) for name, results in rounds.items()}
    print(table(summary))
    if chosen.out:
        record = {"command": sys.argv[1:], **environment(), "summary": summary, "rounds": rounds}
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--steps", type=int, default=8, help="steps of each run; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--args", nargs="*", default=[], help="settings, as in ARGS")
    parser.add_argument("--micro-batch-rows", type=int, default=None, help="TRL's batch; default: the whole step")
    parser.add_argument("--vllm", action="store_true", help="let plain TRL sample with vLLM too")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def stage_of(chosen: argparse.Namespace) -> Any:
    """The GRPO stage both sides take their settings from."""
    return load_recipe("r1-zero", chosen.scale, args=words(chosen)).stages["r1_zero"]


def require_both(chosen: argparse.Namespace) -> None:
    """A PipelineError before anything starts, when one side lacks something on this machine."""
    ready("r1-zero", chosen.scale, words(chosen), ["r1_zero"])
    if chosen.vllm:
        require_package("vllm", "`make setup-gpu` installs it")


def words(chosen: argparse.Namespace) -> list[str]:
    return [*chosen.args, f"grpo.max_steps={chosen.steps}"]


def ours(chosen: argparse.Namespace) -> Result:
    """The stage, through the pipeline."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "pipeline", "stage", "r1-zero", "--stage", "r1_zero", "--engine", "plain"]
        run([*command, "--scale", chosen.scale, "--run", "bench", "--args", *words(chosen)], R1_RUNS=runs)
        rows = read_jsonl(Path(runs) / "bench/r1_zero/metrics.jsonl")
        manifest = json.loads((Path(runs) / "bench/r1_zero/manifest.json").read_text())
    return {
        "step_seconds": [row["step_seconds"] for row in rows],
        "tokens": [row["tokens_per_s"] * row["step_seconds"] for row in rows],
        "rewards": [row["reward"] for row in rows],
        "peak_memory_gib": manifest["peak_memory_gib"],
        "peak_gpu_memory_gib": manifest["peak_gpu_memory_gib"],
    }


def plain_trl(chosen: argparse.Namespace) -> Result:
    """The same through TRL's own trainer and sampler."""
    stage = stage_of(chosen)
    out = Path(tempfile.mkdtemp()) / "trl.json"
    command = [sys.executable, "-m", "benchmarks.plain_trl_grpo", "--model", stage.model.target]
    options = {
        "template": stage.template,
        "num-problems": stage.num_problems,
        "num-generations": stage.num_generations,
        "max-completion-length": stage.max_completion_length,
        "max-steps": chosen.steps,
        "learning-rate": stage.learning_rate,
        "lora-rank": stage.lora.rank if stage.lora else 0,
        "seed": stage.seed,
        "micro-batch-rows": chosen.micro_batch_rows or stage.num_problems * stage.num_generations,
        "out": out,
    }
    command += [f"--{name}={value}" for name, value in options.items()]
    command += ["--problems", *map(str, stage.problems)]
    command += ["--rewards", *(f"{reward.kind}={reward.weight}" for reward in stage.rewards)]
    command += ["--trl", "gradient_checkpointing=false", f"warmup_steps={ceil(stage.warmup_ratio * stage.max_steps)}"]
    command += [f"{name}={getattr(stage, name)}" for name in SAME]
    run([*command, *(["--vllm"] if chosen.vllm else [])])
    found = dict(json.loads(out.read_text()))
    return found | {"rewards": [step["reward"] for step in found["steps"]]}


def run(command: list[str], **variables: str) -> None:
    """Runs a command in the project's folder; its own messages go to the terminal."""
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)


def summarised(results: list[Result]) -> Result:
    """Median over all counted steps of all rounds, and the highest peak."""
    seconds = [value for result in results for value in result["step_seconds"][1:]]
    return {
        "median_step_seconds": round(statistics.median(seconds), 3),
        "num_steps": len(seconds),
        "peak_memory_gib": max(result["peak_memory_gib"] for result in results),
        "peak_gpu_memory_gib": max((result.get("peak_gpu_memory_gib") or 0.0) for result in results) or None,
    }


def table(summary: dict[str, Result]) -> str:
    """Markdown."""
    base = summary["plain TRL"]["median_step_seconds"]
    lines = [
        "| | seconds a step (median) | steps | against plain TRL | peak memory, GiB |",
        "|---|---|---|---|---|",
    ]
    for name, row in summary.items():
        ratio = base / row["median_step_seconds"]
        memory = row["peak_gpu_memory_gib"] or row["peak_memory_gib"]
        lines.append(f"| {name} | {row['median_step_seconds']} | {row['num_steps']} | {ratio:.2f}× | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    start(main)
