"""SIGKILL anywhere, again and again, and the results are those of the run that nobody killed.

    make torture KILLS=200 SEED=1        # the same command goes on where it was stopped

Makes r1-full at the mini scale with short stages (`SIZES`) once without a kill, then round after round with kills:
every other one at a random moment (of the stage, of the runner, or of all at once), the rest just before a flush, a
rename or a manifest (R1_KILL_AT, see `pipeline/durable.py`). After each round every file of every artifact is compared
with the undisturbed run by its sha256, and of `metrics.jsonl` and the manifests all but what a clock says.
Prints a table; `docs/results/torture.json` has every kill. Exit code 0 only if everything is identical.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, Field

from pipeline.artifact import load, read_json, write_json
from pipeline.places import ROOT, runs_folder
from pipeline.provenance import environment
from pipeline.recipe import load_recipe
from pipeline.stage import read_jsonl

RESULT = ROOT / "docs/results/torture.json"
SIZES = (
    *("grpo.max_steps=6", "grpo.num_problems=8", "grpo.num_generations=4", "grpo.save_steps=2"),
    *("stages.final_rl.max_steps=9", "evaluate.num_problems=12", "evaluate.num_samples=1", "evaluate.part_size=8"),
    *("rejection_sampling.num_problems=60", "rejection_sampling.shard_size=16"),
    *("rejection_sampling.filters.mixed_languages=0.1", "sft.max_steps=6", "sft.save_steps=2", "sft.eval_steps=3"),
    *("reward_model.max_steps=6", "reward_model.num_preferences=60", "reward_model.save_steps=2"),
)
POINTS = {"fsync": 12, "rename": 4, "manifest": 3, "publish": 1}
"""Where a kill can be aimed, and up to the how many-th of its kind."""
VICTIMS = ("stage", "stage", "all", "all", "runner")
CLOCKS = ("seconds", "tokens_per_s", "memory")
"""Parts of the names of measures that no two runs share."""


class Kill(BaseModel):
    """One kill that hit: `how` is `random, all` or the point that it was aimed at, such as `rename:3`."""

    round: int
    stage: str
    how: str
    after_s: float


class Campaign(BaseModel):
    """What is asked, and what came of it so far."""

    wanted: int
    seed: int
    until: str
    sizes: tuple[str, ...] = SIZES
    seconds_a_stage: float = 10.0
    """Of the undisturbed run, on average."""
    seconds: float = 0.0
    """Seconds of all rounds."""
    rounds: int = 0
    kills: list[Kill] = []
    differences: list[str] = []
    environment: dict[str, Any] = Field(default_factory=environment)


def run(campaign: Campaign, result: Path) -> bool:
    """Rounds until there are enough kills and the last one is at its end; True if everything was identical.

    All runs are made in one place, one after the other: an adapter names the folder of the model below it.
    """
    folder, whole = runs_folder() / "torture", runs_folder() / f"torture-whole-{campaign.until}"
    stages = load_recipe("r1-full", "mini", folder.name, campaign.sizes).between(None, campaign.until)
    if not whole.is_dir():
        began = time.monotonic()
        attempt(campaign, folder, {})
        campaign.seconds_a_stage = (time.monotonic() - began) / len(stages)
        write_json(result, campaign.model_dump())
        folder.rename(whole)
    while (len(campaign.kills) < campaign.wanted or folder.is_dir()) and not campaign.differences:
        make(campaign, folder, stages, result)
        campaign.differences = [said for name in stages for said in different(whole / name, folder / name)]
        campaign.rounds += 1
        write_json(result, campaign.model_dump())
        print(f"round {campaign.rounds}:", campaign.differences or "identical", flush=True)
        if not campaign.differences:
            shutil.rmtree(folder)
    return not campaign.differences


def make(campaign: Campaign, folder: Path, stages: list[str], result: Path) -> None:
    """One run from beginning to end, with as many kills as are still wanted."""
    is_done = False
    while not is_done:
        began = time.monotonic()
        stage = next((name for name in stages if not (folder / name).is_dir()), "runner")
        how = (
            attack(campaign, folder, stage) if len(campaign.kills) < campaign.wanted else attempt(campaign, folder, {})
        )
        is_done, seconds = how is None, time.monotonic() - began
        campaign.seconds += seconds
        if how:
            campaign.kills.append(Kill(round=campaign.rounds, stage=stage, how=how, after_s=round(seconds, 2)))
            write_json(result, campaign.model_dump())
            print(f"kill {len(campaign.kills)}: {stage}, {how}, after {seconds:.1f} s", flush=True)


def attack(campaign: Campaign, folder: Path, stage: str) -> str | None:
    """One attempt to finish the run and a kill; says how it was killed, or None if it finished first."""
    number = len(campaign.kills)
    draw = random.Random(f"{campaign.seed} {number}")
    here = sum((kill.round, kill.stage) == (campaign.rounds, stage) for kill in campaign.kills)
    window_s = campaign.seconds_a_stage * (1.5 + here / 4)  # longer and longer, so that a slow machine gets on too
    if number % 2 == 0:
        return attempt(campaign, folder, {}, draw.uniform(0, window_s), draw.choice(VICTIMS))
    tried = Counter(kill.how.partition(":")[0] for kill in campaign.kills if kill.stage == stage)
    kind = min(POINTS, key=lambda kind: (tried[kind], draw.random()))
    aim = f"{kind}:{draw.randint(1, POINTS[kind])}"
    return attempt(campaign, folder, {"R1_KILL_AT": f"{stage}/{aim}"}, 2 * window_s, "all")


def attempt(
    campaign: Campaign, folder: Path, more: dict[str, str], after_s: float | None = None, victim: str = "all"
) -> str | None:
    """Starts the run, kills `victim` after a while; says how it was killed, or None if it finished first.

    A run that fails for any other reason ends the campaign.
    """
    words = ["run", "r1-full", "--run", folder.name, "--engine", "plain", "--until", campaign.until]
    command = [sys.executable, "-m", "pipeline", *words, "--args", *campaign.sizes]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | more, start_new_session=True, **pipes)
    hit = ""
    try:
        output, _ = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        hit = kill(process.pid, victim)
        output, _ = process.communicate()
    except BaseException:  # Ctrl-C ends the campaign, not only its bookkeeping
        kill(process.pid, "all")
        raise
    if process.returncode == 0:
        return None
    if hit:
        return f"random, {hit}"
    if more and "it was killed" in output:
        return more["R1_KILL_AT"].partition("/")[2]
    raise SystemExit(f"{' '.join(command)} left with {process.returncode}:\n{output[-3000:]}")


def kill(runner: int, victim: str) -> str:
    """SIGKILL to the runner, to its stage, or to it and everything below it; says what was hit."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(runner)
        below = process.children(recursive=True)
        if victim == "stage" and not below:
            victim = "runner"
        for target in {"runner": [process], "stage": below[:1], "all": [process, *below]}[victim]:
            with suppress(psutil.NoSuchProcess):
                target.kill()
        return victim
    return ""


def different(whole: Path, killed: Path) -> list[str]:
    """What differs between two artifacts that should be the same, file by file."""
    one, two = (load(path, deep=True).manifest for path in (whole, killed))
    timed = {"metrics.jsonl"}
    found = [
        f"{killed.name}/{name}"
        for name in sorted({*one["files"], *two["files"]} - timed)
        if one["files"].get(name) != two["files"].get(name)
    ]
    if timed & set(one["files"]) and curves(whole) != curves(killed):
        found.append(f"{killed.name}/metrics.jsonl")
    keys = [key for key in ("fingerprint", "metrics") if untimed(one[key]) != untimed(two[key])]
    return found + [f"{killed.name}: {key}" for key in keys]


def curves(folder: Path) -> list[Any]:
    return [untimed(row) for row in read_jsonl(folder / "metrics.jsonl")]


def untimed(value: Any) -> Any:
    """A mapping without the measures that a clock made; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {key: part for key, part in value.items() if not any(clock in key for clock in CLOCKS)}


def table(campaign: Campaign) -> str:
    """Kills by stage and by how, as Markdown."""
    columns = ["random, stage", "random, runner", "random, all", *POINTS]
    counts = Counter((kill.stage, kill.how.partition(":")[0]) for kill in campaign.kills)
    rows = [[stage, *(str(counts[stage, how]) for how in columns)] for stage in dict.fromkeys(s for s, _ in counts)]
    total = ["all", *(str(sum(counts[stage, how] for stage, *_ in rows)) for how in columns)]
    lines = [["killed in", *columns], ["---"] * (len(columns) + 1), *rows, total]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--until", default="eval_final_rl", help="the last stage of r1-full to make")
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    campaign = Campaign(wanted=asked.kills, seed=asked.seed, until=asked.until)
    if asked.result.exists():
        before = Campaign.model_validate(read_json(asked.result))
        if (before.seed, before.until, before.sizes) == (campaign.seed, campaign.until, campaign.sizes):
            campaign = before.model_copy(update={"wanted": asked.kills})
    identical = run(campaign, asked.result)
    print(table(campaign))
    verdict = "all artifacts identical" if identical else f"different: {', '.join(campaign.differences)}"
    print(f"{len(campaign.kills)} kills in {campaign.rounds} runs, {campaign.seconds / 60:.0f} min: {verdict}")
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
