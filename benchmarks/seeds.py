"""A recipe on several seeds, by the command a user types: seconds from start to end, and what was learned.

    python benchmarks/seeds.py --seeds 0 1 2 --out docs/results/r1-zero-mini.json

Runs `make RECIPE RUN=… ARGS="seed=…"` for each seed, reads the runs' `report.json`; prints a Markdown table.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from pipeline.places import ROOT, runs_folder
from pipeline.provenance import environment

SHOWN = ("pass_at_1", "pass_at_k", "format_rate", "language_consistency", "mean_response_tokens")


def main() -> None:
    """Runs every seed, prints the table, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="r1-zero")
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prefix", default="seed", help="runs are called PREFIX-SEED")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    found = [run(chosen, seed) for seed in chosen.seeds]
    print("\n".join(table(found)))
    if chosen.out:
        chosen.out.write_text(json.dumps({**environment(), "runs": found}, indent=1) + "\n")


def run(chosen: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run through make; its wall-clock seconds and the metrics of every evaluation."""
    name = f"{chosen.prefix}-{seed}"
    command = ["make", chosen.recipe, f"SCALE={chosen.scale}", f"RUN={name}", f"ARGS=seed={seed}"]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.monotonic() - started
    report = json.loads((runs_folder() / name / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    return {
        "seed": seed,
        "command": " ".join(command),
        "seconds": round(seconds, 1),
        "stage_seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "metrics": {name: stage["metrics"] for name, stage in stages.items() if stage["kind"] == "evaluate"},
    }


def table(found: list[dict[str, Any]]) -> list[str]:
    """A row for each seed and measured model."""
    lines = ["| seed | measured | " + " | ".join(SHOWN) + " | run, seconds |", "|---" * (len(SHOWN) + 3) + "|"]
    for record in found:
        for name, metrics in record["metrics"].items():
            cells = [cell(metrics.get(metric), metric) for metric in SHOWN]
            lines.append(f"| {record['seed']} | {name} | {' | '.join(cells)} | {record['seconds']:.0f} |")
    return lines


def cell(measure: dict[str, Any] | None, metric: str) -> str:
    """`31.8 % [28.6, 35.1]`, or tokens without a percent sign."""
    if measure is None:
        return "–"
    scale, unit = (1, "") if metric.endswith("tokens") else (100, " %")
    low, high = measure["ci95"]
    return f"{scale * measure['value']:.1f}{unit} [{scale * low:.1f}, {scale * high:.1f}]"


if __name__ == "__main__":
    main()
