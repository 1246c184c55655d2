"""What it costs an undisturbed run that it can be killed and fed anything: the share of its own time spent on that.

    python -m benchmarks.reliability_cost    # writes docs/results/reliability-cost.json

Trains r1_zero of the mini scale for 10 steps with a checkpoint at the end (the default is one in 20) and takes the time
of everything that is there for the case of a kill: writing and sealing checkpoints, flushing and publishing the
artifact, the lock; and of all judging, of which a trusting verifier would have to do the most part too. One process, so
that a busy machine slows both parts of the ratio alike.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import command_line, start
from pipeline import worker
from pipeline.artifact import load, write_json
from pipeline.places import ROOT
from pipeline.plan import STAMP, partial_folder, record_of
from pipeline.provenance import environment
from pipeline.recipe import Recipe, load_recipe
from stages import grpo
from stages.rewards import accuracy

RESULT = ROOT / "docs/results/reliability-cost.json"
ARGS = ("grpo.max_steps=10", "grpo.save_steps=10")
CLOCKS: dict[str, Callable[[], float]] = {"wall_s": time.perf_counter, "cpu_s": time.process_time}

spent = dict.fromkeys(CLOCKS, 0.0)


def main() -> None:
    """Makes the stage, prints and writes the seconds and the ratios."""
    command_line(__doc__).parse_args()
    from stages.engines.trainers import PipelineTrainer

    timed(PipelineTrainer, "_save_checkpoint")
    timed(worker, "publish")
    timed(worker, "stage_lock")
    timed(accuracy, "check_many")
    timed(grpo, "check_many")
    with tempfile.TemporaryDirectory() as folder:
        recipe = prepared(Path(folder))
        before = {name: clock() for name, clock in CLOCKS.items()}
        worker.run_one(recipe.folder, "r1_zero")
        whole = {name: clock() - before[name] for name, clock in CLOCKS.items()}
        assert load(recipe.folder / "r1_zero", deep=True)
    ratios = {name: round(whole[name] / (whole[name] - spent[name]), 4) for name in CLOCKS}
    print(f"{ratios}, of {whole}: {spent}")
    write_json(RESULT, {"args": ARGS, "ratios": ratios, "whole": whole, "spent": spent} | environment())


def prepared(runs: Path) -> Recipe:
    """A run in `runs` whose stage r1_zero is ready to start."""
    os.environ["R1_RUNS"] = str(runs)
    recipe = load_recipe("r1-zero", "mini", None, ARGS)
    partial = partial_folder(recipe.folder, "r1_zero")
    partial.mkdir(parents=True)
    write_json(partial / STAMP, record_of(recipe, "r1_zero"))
    write_json(recipe.folder / "recipe.json", recipe.as_json())
    return recipe


def timed(where: Any, name: str) -> None:
    """Adds the seconds of each call of `where.name` to `spent`."""
    function = getattr(where, name)

    def call(*args: Any, **options: Any) -> Any:
        before = {clock: read() for clock, read in CLOCKS.items()}
        try:
            return function(*args, **options)
        finally:
            for clock, read in CLOCKS.items():
                spent[clock] += read() - before[clock]

    setattr(where, name, call)


if __name__ == "__main__":
    start(main)
