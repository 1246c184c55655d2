"""Recipes on several seeds, by the commands a user types: seconds, what every model measures, what every stage changed.

    python -m benchmarks.seeds --out docs/results/r1-zero-mini.json
    python -m benchmarks.seeds --recipes r1-full distill ablations --out docs/results/chain-mini.json

Each seed has a folder of runs of its own (`FOLDER/seed-N`), so that recipes which build on each other's runs find those
of their seed; a run that is done there is not made again. Reads the runs' `report.json`; prints Markdown tables: every
measure of every model, and for neighbouring models the change in points (paired by problem) with a mark where its 95 %
interval holds zero.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import command_line, start
from pipeline.places import ROOT, runs_folder
from pipeline.provenance import environment
from pipeline.written import default_run

CHANGES = ("pass_at_1", "language_consistency", "instruction_following", "helpfulness", "harmlessness", "over_refusal")


def main() -> None:
    """Runs every recipe on every seed, prints the tables, writes the record."""
    parser = command_line(__doc__)
    parser.add_argument("--recipes", nargs="+", default=["r1-zero"], help="in this order")
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=runs_folder(), help="holds a folder of runs for each seed")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    found = [run(recipe, chosen.scale, seed, chosen.runs) for seed in chosen.seeds for recipe in chosen.recipes]
    for recipe in chosen.recipes:
        records = [record for record in found if record["recipe"] == recipe]
        print("\n".join(["", f"## {recipe}", "", *measures(records), "", *changes(records)]))
    if chosen.out:
        chosen.out.write_text(json.dumps({**environment(), "runs": found}, indent=1) + "\n")


def run(recipe: str, scale: str, seed: int, runs: Path) -> dict[str, Any]:
    """One run through make; its wall-clock seconds, the metrics of every evaluation, and the changes between them."""
    command = ["make", recipe, f"SCALE={scale}", f"ARGS=seed={seed}"]
    folder = (runs / f"seed-{seed}").resolve()
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "R1_RUNS": str(folder)})
    seconds = time.monotonic() - started
    report = json.loads((folder / default_run(recipe, scale) / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    return {
        "recipe": recipe,
        "seed": seed,
        "command": " ".join(command),
        "seconds": round(seconds, 1),
        "stage_seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "metrics": {name: stage["metrics"] for name, stage in stages.items() if stage["kind"] == "evaluate"},
        "changes": [change for change in report["changes"] if change["metric"] in CHANGES],
    }


def measures(records: list[dict[str, Any]]) -> Iterator[str]:
    """A row for each metric and seed, a column for each model."""
    models = list(records[0]["metrics"])
    names = list(dict.fromkeys(name for metrics in records[0]["metrics"].values() for name in metrics))
    yield f"| metric | seed | {' | '.join(model.removeprefix('eval_') for model in models)} |"
    yield "|---" * (len(models) + 2) + "|"
    for name in names:
        for record in records:
            cells = [cell(record["metrics"][model].get(name), name) for model in models]
            yield f"| {name} | {record['seed']} | {' | '.join(cells)} |"


def cell(measure: dict[str, Any] | None, metric: str) -> str:
    """`31.8 [28.6, 35.1]` in percent, or tokens as they are."""
    if measure is None:
        return "–"
    scale = 1 if metric.endswith("tokens") else 100
    low, high = measure["ci95"]
    return f"{scale * measure['value']:.1f} [{scale * low:.1f}, {scale * high:.1f}]"


def changes(records: list[dict[str, Any]]) -> Iterator[str]:
    """A row for each pair of neighbouring models and metric, a column for each seed; `·` = the interval holds zero."""
    by_place = {
        (change["from"], change["to"], change["metric"], record["seed"]): change
        for record in records
        for change in record["changes"]
    }
    yield f"| change | metric | {' | '.join('seed ' + str(record['seed']) for record in records)} |"
    yield "|---" * (len(records) + 2) + "|"
    for before, after, metric in dict.fromkeys(place[:3] for place in by_place):
        found = [by_place.get((before, after, metric, record["seed"])) for record in records]
        cells = [f"{cell(change, metric)}{'' if change['sign'] else ' ·'}" if change else "–" for change in found]
        yield f"| {before} → {after} | {metric} | {' | '.join(cells)} |"


if __name__ == "__main__":
    start(main)
