"""Reasoning Gym: problems of any of its tasks by name, split so that train and eval share no question.

Makes: problems whose gold is `{"task": …, "entry": …}`, all that the package's own checker needs.
"""

import json
from collections.abc import Iterator
from typing import Any

from pipeline.card import bucket, canonical_id
from pipeline.errors import CardError
from pipeline.settings import did_you_mean

DEFAULT_SIZE = {"train": 1000, "eval": 500}
EVAL_SHARE = 0.25
CHUNK = 64  # problems made at a time; each chunk has a seed of its own
DRY_AFTER = 16  # chunks without a new question: the task has no more
REFUSED = {
    "composite": "it mixes other tasks and needs their settings",
    "arc_agi": "its gold does not survive JSON",
    "rearc": "its gold does not survive JSON",
}


def rows(split: str, config: str | None, limit: int | None, seed: int) -> Iterator[dict[str, str]]:
    """Up to `limit` different problems of the task `config`, `TASK` or `TASK.LEVEL`. Raises CardError for one it cannot
    use.
    """
    name, _, level = (config or "").partition(".")
    task = _known(name)
    settings = _at_level(task, level) if level else {}
    wanted = limit or DEFAULT_SIZE[split]
    seen: set[str] = set()
    for entry in _entries(task, settings, split, seed, seen):
        key = canonical_id(f"{task} {entry['question']}")
        if key not in seen and (bucket(key) < EVAL_SHARE) == (split == "eval"):
            seen.add(key)
            yield _problem(key, task, entry)
            if len(seen) == wanted:
                return


def _known(task: str) -> str:
    from reasoning_gym.factory import DATASETS

    if not task:
        raise CardError("card reasoning_gym: name a task", "for example card:reasoning_gym:chain_sum/train")
    if task in REFUSED:
        raise CardError(f"card reasoning_gym: the task '{task}' cannot be used: {REFUSED[task]}")
    if task not in DATASETS:
        raise CardError(f"card reasoning_gym has no task '{task}'", did_you_mean(task, DATASETS))
    return task


def _at_level(task: str, level: str) -> dict[str, Any]:
    """The task's settings at a level of the package's own curriculum; what has fewer levels stays at its last."""
    from reasoning_gym.factory import create_curriculum, create_dataset, has_curriculum

    if not (level.isdecimal() and has_curriculum(task)):
        raise CardError(
            f"card reasoning_gym: '{task}' has no level '{level}'", f"leave '.{level}' out, or count from 0"
        )
    curriculum = create_curriculum(task)
    for name, attribute in curriculum.attributes.items():
        curriculum.set_attr_level(name, min(int(level), len(attribute.levels) - 1))
    made = vars(curriculum.generate_configuration())
    settings = {name: value for name, value in made.items() if name not in ("size", "seed")}
    try:
        create_dataset(task, **settings)
    except AssertionError as error:
        raise CardError(f"card reasoning_gym: {task} refuses its level {level}: {error}", "take a lower one") from error
    return settings


def _entries(task: str, settings: dict[str, Any], split: str, seed: int, seen: set[str]) -> Iterator[dict[str, Any]]:
    """Problems without end, until `seen` (the keys the caller took) has not grown for `DRY_AFTER` chunks."""
    import reasoning_gym

    first = 2 * seed + (split == "eval")  # even seeds for train, odd ones for eval
    chunk, grown_at, size = 0, 0, -1
    while chunk - grown_at <= DRY_AFTER:
        if len(seen) > size:
            grown_at, size = chunk, len(seen)
        dataset = reasoning_gym.create_dataset(task, size=CHUNK, seed=first + 1_000_003 * 2 * chunk, **settings)
        yield from (dataset[index] for index in range(CHUNK))
        chunk += 1


def _problem(key: str, task: str, entry: dict[str, Any]) -> dict[str, str]:
    return {
        "id": key,
        "prompt": entry["question"].strip(),
        "answer": json.dumps({"task": task, "entry": entry}),
        "checker": "reasoning_gym",
        "domain": task,
        "language": "en",
    }
