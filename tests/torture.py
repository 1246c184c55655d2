"""SIGKILL anywhere, again and again, and the results are those of the run that nobody killed.

    make torture KILLS=200 SEED=1 JOBS=2 MINUTES=60      # the same command goes on where it was stopped

Makes r1-full at the mini scale with short stages (`SIZES`) once without a kill. Then every job walks the whole chain
in a folder of its own, with its share of the kills spread over all stages, and again until it has made its share. Every
other kill comes at a random moment (to the stage, to the runner, or to all at once), the rest just before a flush, a
rename or a manifest (R1_KILL_AT, see `pipeline/durable.py`). As soon as a stage is made, and again after the walk,
every file of its artifact is compared with the undisturbed run by its sha256, and of `metrics.jsonl` and the manifests
all but what a clock says. After MINUTES there are no more kills, and the walks go to their end. Prints a table;
`docs/results/torture-seed-SEED.json` has every kill and comparison as soon as it is made, so a campaign that is cut off
counts too. Exit code 0 only if everything is identical.
"""

import argparse
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
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

RUN = "torture"
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

    job: int
    stage: str
    how: str
    after_s: float


class Campaign(BaseModel):
    """What is asked, and what came of it so far."""

    wanted: int
    seed: int
    until: str
    jobs: int = 1
    sizes: tuple[str, ...] = SIZES
    stage_seconds: dict[str, float] = {}
    """Of the undisturbed run, its processes' start included."""
    seconds: float = 0.0
    """Of all attempts of all jobs."""
    walks: int = 0
    """Whole runs with kills, made to the end and compared."""
    compared: dict[str, int] = {}
    """How often a stage was made with kills and compared at once."""
    kills: list[Kill] = []
    differences: list[str] = []
    environment: dict[str, Any] = Field(default_factory=environment)


_writing = threading.Lock()
_over = threading.Event()
_runners: set[int] = set()


def run(campaign: Campaign, result: Path, minutes: float = math.inf) -> bool:
    """All jobs side by side, until there are enough kills; True if everything was identical."""
    ends = time.monotonic() + 60 * minutes
    undisturbed(campaign)
    with ThreadPoolExecutor(campaign.jobs) as pool:
        try:
            for job in as_completed(pool.submit(walks, campaign, job, result, ends) for job in range(campaign.jobs)):
                job.result()
        except BaseException:  # Ctrl-C, or a run that failed, ends the campaign
            _over.set()
            for runner in list(_runners):
                kill(runner, "all")
            raise
    return not campaign.differences


def stages_of(campaign: Campaign) -> list[str]:
    return load_recipe("r1-full", "mini", RUN, campaign.sizes).between(None, campaign.until)


def undisturbed(campaign: Campaign) -> None:
    """The run without a kill, once for all campaigns in this place, and what each stage took."""
    place = runs_folder() / "whole"
    record = place / "seconds.json"
    seconds = read_json(record) if record.exists() else {}
    for stage in stages_of(campaign):
        if stage not in seconds:
            began = time.monotonic()
            attempt(campaign, place, stage)
            seconds[stage] = round(time.monotonic() - began, 2)
            write_json(record, seconds)
            print(f"undisturbed: {stage}, {seconds[stage]:.1f} s", flush=True)
    campaign.stage_seconds = seconds


def walks(campaign: Campaign, job: int, result: Path, ends: float) -> None:
    """Runs from beginning to end until this job has its share of the kills; each is compared."""
    place = runs_folder() / f"seed-{campaign.seed}-job-{job}"
    folder, stages = place / RUN, stages_of(campaign)
    while folder.is_dir() or (missing(campaign, job) and time.monotonic() < ends):
        walk(campaign, job, place, result, ends)
        campaign.walks += 1
        found = compare(campaign, job, folder, stages, result)
        print(f"job {job}, whole run:", found or "identical", flush=True)
        if found:
            return
        shutil.rmtree(folder)


def missing(campaign: Campaign, job: int) -> int:
    """How many kills a job still has to make; the first jobs make one more where they do not share evenly."""
    share = campaign.wanted // campaign.jobs + (job < campaign.wanted % campaign.jobs)
    return max(0, share - sum(kill.job == job for kill in campaign.kills))


def walk(campaign: Campaign, job: int, place: Path, result: Path, ends: float) -> None:
    """One run from beginning to end, with the missing kills spread over its stages."""
    stages = stages_of(campaign)
    draw = random.Random(f"{campaign.seed} {job} {missing(campaign, job)}")
    for number, stage in enumerate(stages):
        if (place / RUN / stage).is_dir():
            continue
        left = len(stages) - number
        quota = missing(campaign, job) / left
        wanted = math.floor(quota) + (draw.random() < quota % 1)
        for _ in range(wanted):
            if (place / RUN / stage).is_dir() or time.monotonic() > ends:
                break
            attack(campaign, job, place, stage, result)
        if not (place / RUN / stage).is_dir():
            attempt(campaign, place, stage)
        campaign.compared[stage] = campaign.compared.get(stage, 0) + 1
        compare(campaign, job, place / RUN, [stage], result)
    attempt(campaign, place, campaign.until)


def compare(campaign: Campaign, job: int, folder: Path, stages: list[str], result: Path) -> list[str]:
    """What differs between these stages of a run and the undisturbed ones; it is recorded."""
    whole = runs_folder() / "whole" / RUN
    found = [f"job {job}: {said}" for name in stages for said in different(whole / name, folder / name)]
    with _writing:
        campaign.differences += [said for said in found if said not in campaign.differences]
        write_json(result, campaign.model_dump())
    return found


def attack(campaign: Campaign, job: int, place: Path, stage: str, result: Path) -> None:
    """One attempt to make the stage, and a kill; a stage that is faster than the kill is made."""
    here = sum((kill.job, kill.stage) == (job, stage) for kill in campaign.kills)
    draw = random.Random(f"{campaign.seed} {job} {stage} {here} {campaign.walks}")  # another one after a miss
    began = time.monotonic()
    if (job + here + stages_of(campaign).index(stage)) % 2 == 0:
        moment = draw.uniform(0, campaign.stage_seconds[stage])
        how = attempt(campaign, place, stage, {}, moment, draw.choice(VICTIMS))
    else:
        tried = Counter(kill.how.partition(":")[0] for kill in campaign.kills if kill.stage == stage)
        kind = min(POINTS, key=lambda kind: (tried[kind], draw.random()))
        aim = f"{kind}:{draw.randint(1, POINTS[kind])}"
        how = attempt(campaign, place, stage, {"R1_KILL_AT": f"{stage}/{aim}"})
    seconds = round(time.monotonic() - began, 2)
    with _writing:
        campaign.seconds += seconds
        if how:
            campaign.kills.append(Kill(job=job, stage=stage, how=how, after_s=seconds))
            write_json(result, campaign.model_dump())
            print(f"kill {len(campaign.kills)}: job {job}, {stage}, {how}, after {seconds:.1f} s", flush=True)


def attempt(
    campaign: Campaign,
    place: Path,
    until: str,
    more: dict[str, str] | None = None,
    after_s: float | None = None,
    victim: str = "all",
) -> str | None:
    """Starts the run, kills `victim` after a while; says how it was killed, or None if it finished first.

    A run that fails for any other reason ends the campaign.
    """
    if _over.is_set():
        raise SystemExit("the campaign is over")
    words = ["run", "r1-full", "--run", RUN, "--engine", "plain", "--until", until]
    command = [sys.executable, "-m", "pipeline", *words, "--args", *campaign.sizes]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    settings = {**os.environ, "R1_RUNS": str(place), **(more or {})}
    process = subprocess.Popen(command, cwd=ROOT, env=settings, start_new_session=True, **pipes)
    _runners.add(process.pid)
    hit = ""
    try:
        output, _ = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        hit = kill(process.pid, victim)
        output, _ = process.communicate()
    except BaseException:  # Ctrl-C while the undisturbed run is made
        kill(process.pid, "all")
        raise
    finally:
        _runners.discard(process.pid)
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
    special = {"metrics.jsonl": curves, "adapter/adapter_config.json": placeless}
    found = []
    for name in sorted({*one["files"], *two["files"]}):
        in_both = name in one["files"] and name in two["files"]
        if in_both and name in special:
            is_alike = special[name](whole) == special[name](killed)
        else:
            is_alike = in_both and one["files"][name] == two["files"][name]
        found += [] if is_alike else [f"{killed.name}/{name}"]
    keys = [key for key in ("fingerprint", "metrics") if untimed(one[key]) != untimed(two[key])]
    return found + [f"{killed.name}: {key}" for key in keys]


def curves(folder: Path) -> list[Any]:
    return [untimed(row) for row in read_jsonl(folder / "metrics.jsonl")]


def placeless(folder: Path) -> str:
    """An adapter's settings; they name the folder of the model below it, which every job has elsewhere."""
    return (folder / "adapter/adapter_config.json").read_text().replace(str(folder.parent.parent), "")


def untimed(value: Any) -> Any:
    """A mapping without the measures that a clock made; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {key: part for key, part in value.items() if not any(clock in key for clock in CLOCKS)}


def table(campaign: Campaign) -> str:
    """Kills by stage and by how, as Markdown."""
    columns = ["random, stage", "random, runner", "random, all", *POINTS]
    counts = Counter((kill.stage, kill.how.partition(":")[0]) for kill in campaign.kills)
    rows: list[list[Any]] = []
    for stage in stages_of(campaign):
        row = [counts[stage, how] for how in columns]
        rows.append([stage, *row, sum(row), campaign.compared.get(stage, 0)])
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    lines = [["killed in", *columns, "all", "compared"], ["---"] * (len(columns) + 3), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each on one core")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after these no kills, only what is begun")
    parser.add_argument("--until", default="eval_final_rl", help="the last stage of r1-full to make")
    parser.add_argument("--result", type=Path, help="default: docs/results/torture-seed-SEED.json")
    asked = parser.parse_args()
    result = asked.result or ROOT / f"docs/results/torture-seed-{asked.seed}.json"
    campaign = Campaign(wanted=asked.kills, seed=asked.seed, until=asked.until, jobs=asked.jobs)
    if result.exists():
        before = Campaign.model_validate(read_json(result))
        if (before.seed, before.until, before.sizes) == (campaign.seed, campaign.until, campaign.sizes):
            campaign = before.model_copy(update={"wanted": asked.kills, "jobs": asked.jobs, "differences": []})
    identical = run(campaign, result, asked.minutes)
    print(table(campaign))
    verdict = "all artifacts identical" if identical else f"different: {', '.join(campaign.differences)}"
    print(f"{len(campaign.kills)} kills, {campaign.walks} whole runs, {campaign.seconds / 60:.0f} min: {verdict}")
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
