"""SIGKILL while a stage trains on a GPU, and how far the resumed run ends from runs that nobody disturbed.

    python -m benchmarks.gpu_kills --scale smollm2-135m-countdown --kills 5 --out docs/results/gpu-kills.json

Makes an SFT stage, and then a GRPO stage on what the first undisturbed SFT made, several times, each in a run of its
own: undisturbed (`--undisturbed` times), killed at `--kills` random moments of its training and started again by the
same command after each, and undisturbed with another seed. The distance of two curves is their mean difference step by
step as a share of the curve's mean size; that of two adapters is the norm of the difference of their B matrices, which
begin at zero, as a share of the norm. Makes JSON with all curves, and a Markdown table.

Why a tolerance and not equality: two undisturbed runs need not be the same on a GPU. Kernels add up in bf16, some in
any order, and in the order that the size of a micro-batch gives, which by default follows the memory that is free; one
token that is sampled in another way makes another response, and from there the runs part. vLLM besides batches
requests as they come in. So the killed run may be as far from the undisturbed ones as they are from each other: at most
1.5 times their largest distance, or 1 % where they are nearer than that. On a CPU it must be the same, bit for bit.
The run with another seed says what a resume would look like that has lost its place.
Exit code 0 only if every kill hit and every distance is within its tolerance.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import command_line, ready, start
from pipeline.artifact import newest_checkpoint, read_json, step_of
from pipeline.errors import ArtifactError
from pipeline.places import ROOT
from pipeline.plan import partial_folder
from pipeline.stage import read_jsonl
from tests.torture import kill

CURVES = ("loss", "reward", "mean_response_tokens")
FACTOR, AT_LEAST = 1.5, 0.01
"""The tolerance: times the largest distance of undisturbed runs, and what a GPU is allowed in any case."""

Distances = dict[str, dict[str, float]]


def main() -> int:
    """Makes all runs, compares them, reports."""
    asked = arguments()
    ready(asked.recipe, asked.scale, asked.args, asked.stages)
    with tempfile.TemporaryDirectory() as folder:
        found = made(asked, Path(folder))
    for stage, result in found.items():
        print("\n".join([f"\n{stage}, killed {len(result['kills'])} times:\n", *table(result["distances"])]))
    if asked.out:
        asked.out.write_text(json.dumps({"command": sys.argv[1:], "stages": found}, indent=1) + "\n")
    rows = [row for result in found.values() for row in result["distances"].values()]
    is_near = all(row["killed"] <= row["tolerance"] for row in rows)
    return 0 if is_near and all(len(result["kills"]) == asked.kills for result in found.values()) else 1


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--recipe", default="r1-zero-cold-start")
    parser.add_argument("--scale", default="smollm2-135m-countdown")
    parser.add_argument("--stages", nargs="+", default=["cold_start", "r1_zero"], help="each may rest on those before")
    parser.add_argument("--args", nargs="*", default=[], help="settings, as in ARGS")
    parser.add_argument("--kills", type=int, default=5, help="in each stage")
    parser.add_argument("--undisturbed", type=int, default=3, help="runs of each stage without a kill")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--jobs", type=int, default=4, help="runs at the same time")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def made(asked: argparse.Namespace, runs: Path) -> dict[str, dict[str, Any]]:
    """Every stage's runs, side by side, and what came of them."""
    kills: dict[str, list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(asked.jobs) as pool:
        jobs: list[Future[Any]] = []
        for stage in asked.stages:
            attempt(asked, runs, stage, "undisturbed-1")  # later stages rest on it
            step_seconds = curve(folder_of(runs, stage, "undisturbed-1"), "step_seconds")
            kills[stage] = []
            jobs.append(pool.submit(killed, asked, runs, stage, step_seconds, kills[stage]))
            jobs += [pool.submit(attempt, asked, runs, stage, name) for name in names(asked)[1:]]
        for job in jobs:
            job.result()
    return {stage: compared(asked, runs, stage) | {"kills": kills[stage]} for stage in asked.stages}


def folder_of(runs: Path, stage: str, name: str) -> Path:
    """Where a finished stage of the run called `name` lies; every stage has runs of its own, to go side by side."""
    return runs / f"{stage}-{name}" / stage


def names(asked: argparse.Namespace) -> list[str]:
    """The runs without a kill."""
    return [*(f"undisturbed-{number + 1}" for number in range(asked.undisturbed)), "another-seed"]


def killed(
    asked: argparse.Namespace, runs: Path, stage: str, step_seconds: list[float], kills: list[dict[str, Any]]
) -> None:
    """The run that is killed: at moments of its training that are drawn in steps and sorted, so each start gets on."""
    draw = random.Random(f"{asked.seed} {stage}")
    for moment in sorted(draw.uniform(0, len(step_seconds)) for _ in range(asked.kills)):
        step, delay = int(moment), moment % 1 * median(step_seconds)
        if hit := attempt(asked, runs, stage, "killed", (step, delay), draw.choice(["stage", "all"])):
            kills.append(hit)
            print(f"{stage}: {hit}", flush=True)
    attempt(asked, runs, stage, "killed")


def attempt(
    asked: argparse.Namespace,
    runs: Path,
    stage: str,
    run: str,
    moment: tuple[int, float] | None = None,
    victim: str = "",
) -> dict[str, Any] | None:
    """Starts the run; kills `victim` so many seconds after that step. Says what was hit, None if it came to its end."""
    partial = partial_folder(folder_of(runs, stage, run).parent, stage)
    began, hit = time.time(), dict[str, Any]()
    with tempfile.TemporaryFile("w+") as output:
        settings = {**os.environ, "R1_RUNS": str(runs)}
        started = command(asked, stage, run)
        process = subprocess.Popen(started, cwd=ROOT, env=settings, stdout=output, stderr=output)
        while process.poll() is None:
            time.sleep(0.02)
            if moment and not hit and step_since(began, partial) >= moment[0]:
                time.sleep(moment[1])
                hit = {"victim": kill(process.pid, victim), "after_s": round(time.time() - began, 1)}
        if process.returncode and not hit:
            output.seek(0)
            raise SystemExit(f"{' '.join(started)} left with {process.returncode}:\n{output.read()[-3000:]}")
    if not partial.is_dir():  # it was made before it could be hit
        return None
    newest, _ = newest_checkpoint(partial / "checkpoints")
    return {"step": step_since(began, partial), "resumes_from": step_of(newest) if newest else 0, **hit}


def command(asked: argparse.Namespace, stage: str, run: str) -> list[str]:
    """What a user would type to make this stage alone; the stages before it are those of the first undisturbed run."""
    earlier = asked.stages[: asked.stages.index(stage)]
    words = [*asked.args, *(f"stages.{name}=run:{name}-undisturbed-1/{name}" for name in earlier)]
    words += ["seed=12345"] if run == "another-seed" else []
    where = ["--scale", asked.scale, "--run", f"{stage}-{run}", "--engine", "plain", "--from", stage, "--until", stage]
    return [sys.executable, "-m", "pipeline", "run", asked.recipe, *where, "--args", *words]


def step_since(began: float, partial: Path) -> int:
    """The steps that are done, -1 while the attempt that began then has not said so itself."""
    with suppress(OSError, ArtifactError):
        file = partial / "progress.json"
        return int(read_json(file)["step"]) if file.stat().st_mtime > began else -1
    return -1


def compared(asked: argparse.Namespace, runs: Path, stage: str) -> dict[str, Any]:
    """Distances and curves of one stage's runs."""
    calm, *others = names(asked)[:-1], "killed", "another-seed"
    folders = {name: folder_of(runs, stage, name) for name in [*calm, *others]}
    manifest = read_json(folders[calm[0]] / "manifest.json")
    measures = [name for name in CURVES if curve(folders[calm[0]], name)] + ["adapter"]
    distances = {}
    for measure in measures:
        row = {"undisturbed": max((distance(folders[a], folders[b], measure) for a, b in combinations(calm, 2)))}
        row |= {name: max(distance(folders[a], folders[name], measure) for a in calm) for name in others}
        is_gpu = manifest["hardware"]["gpu"] is not None
        row["tolerance"] = max(FACTOR * row["undisturbed"], AT_LEAST) if is_gpu else 0.0
        distances[measure] = row
    curves = {name: {measure: curve(folder, measure) for measure in CURVES} for name, folder in folders.items()}
    where = {key: manifest[key] for key in ("git", "packages", "hardware")}
    return {**where, "distances": distances, "curves": curves}


def curve(folder: Path, measure: str) -> list[float]:
    """One value a step, of the steps that have it."""
    return [row[measure] for row in read_jsonl(folder / "metrics.jsonl") if row.get(measure) is not None]


def distance(one: Path, two: Path, measure: str) -> float:
    """How far two runs are apart, as a share; infinite for curves that do not have the same steps."""
    if measure == "adapter":
        a, b = (adapter(folder) for folder in (one, two))
        return float((a - b).norm() / a.norm())
    pairs = curve(one, measure), curve(two, measure)
    if len(pairs[0]) != len(pairs[1]):
        return float("inf")
    size = fmean(map(abs, pairs[0]))
    difference = fmean(abs(a - b) for a, b in zip(*pairs, strict=True))
    return difference / size if difference else 0.0


def adapter(folder: Path) -> torch.Tensor:
    """All B matrices of a stage's adapter in one row."""
    weights = load_file(folder / "adapter/adapter_model.safetensors")
    return torch.cat([weights[name].float().flatten() for name in sorted(weights) if "lora_B" in name])


def table(distances: Distances) -> list[str]:
    """Markdown: a row for each measure, in percent."""
    columns = ["undisturbed", "killed", "tolerance", "another-seed"]
    lines = [f"| distance, % | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [
        f"| {measure} | {' | '.join(f'{100 * row[name]:.3g}' for name in columns)} |"
        for measure, row in distances.items()
    ]


if __name__ == "__main__":
    start(main)
