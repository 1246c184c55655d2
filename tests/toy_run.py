"""Writes believable finished runs for the tests of the report, without training anything.

`write_toy_run(folder)` makes `folder/toy` as `make r1-zero` would leave it: eval_base, r1_zero, eval_r1_zero,
with manifests, 80 steps of curves, measurements and completions. Some completions are Chinese, some hostile.
`write_full_run(folder)` makes `folder/full` as `make r1-full` would: every stage, data sets and reward models too.

    python -m tests.toy_run FOLDER      # then open FOLDER/toy/report.html and FOLDER/full/report.html
"""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from pipeline.artifact import seal, write_json

BASE = "path:models/mini-base"
HOSTILE = (
    "<script>alert(1)</script>",
    "</pre></div><img src=x onerror=alert(2)> {{ 7 * 7 }} {% raw %}",
    "\u202eright to left\u202c \x1b[31mred\x07 \ud800 a lone surrogate, \u200f\x9b4\u200b2\U000e0041",
    "<think> 先算 3 + 4 = 7,再加 5 得 12。 </think><answer> 12 </answer><|endoftext|>",
)
NUM_STEPS = 80
NUM_PROBLEMS = 120  # with a completion on disk; the measurements say 500


def write_toy_run(folder: Path, seed: int = 0, curves: tuple[str, ...] = ()) -> Path:
    """Makes and returns `folder/toy`; `curves` keeps only these training curves, fewer are drawn sooner."""
    draw, run_dir = random.Random(seed), folder / "toy"
    run_dir.mkdir(parents=True)
    problems = {"problems": ["card:mini_arithmetic/eval", "card:mini_countdown/eval"], "num_samples": 1}
    stages = {
        "eval_base": {"kind": "evaluate", "model": BASE, **problems},
        "r1_zero": {
            "kind": "grpo",
            "model": BASE,
            "problems": ["card:mini_arithmetic"],
            "num_generations": 8,
        },
        "eval_r1_zero": {"kind": "evaluate", "model": "stage:r1_zero", **problems},
    }
    recipe = {
        "recipe": "r1-zero",
        "scale": "mini",
        "run": "toy",
        "seed": seed,
        "description": "RL alone, from a base.",
    }
    write_json(run_dir / "recipe.json", {**recipe, "stages": stages})
    write_evaluation(run_dir / "eval_base", stages["eval_base"], draw, pass_at_1=0.274, tokens=17.2)
    write_training(run_dir / "r1_zero", stages["r1_zero"], draw, curves)
    write_evaluation(run_dir / "eval_r1_zero", stages["eval_r1_zero"], draw, pass_at_1=0.842, tokens=46.4)
    return run_dir


def write_evaluation(
    folder: Path, settings: dict[str, Any], draw: random.Random, pass_at_1: float, tokens: float
) -> None:
    """One Metrics artifact over 500 problems."""
    folder.mkdir()
    write_json(folder / "metrics.json", measures(pass_at_1, tokens, n=500))
    domains = {"arithmetic": min(1, pass_at_1 * 1.1), "countdown": pass_at_1 * 0.8}
    write_json(folder / "by_domain.json", {name: measures(share, tokens, n=250) for name, share in domains.items()})
    with (folder / "completions.jsonl").open("w", encoding="utf-8", errors="surrogatepass") as file:
        file.writelines(json.dumps(row) + "\n" for row in completions(draw, pass_at_1, tokens))
    write_manifest(folder, settings, artifact="metrics", seconds=21.4)


def measures(pass_at_1: float, tokens: float, n: int) -> dict[str, Any]:
    """`metrics.json` with normal 95 % intervals."""
    return {
        "pass_at_1": share(pass_at_1, n),
        "pass_at_k": share(min(1, pass_at_1 + 0.1), n),
        "format_rate": share(min(1, pass_at_1 + 0.15), n),
        "language_consistency": share(0.81, n),
        "mean_response_tokens": {"value": tokens, "ci95": [tokens - 1.1, tokens + 1.1], "n": n},
        "truncated_rate": share(0.02, n),
    }


def share(value: float, n: int) -> dict[str, Any]:
    """A share of `n` problems with its normal 95 % interval."""
    half = 1.96 * math.sqrt(value * (1 - value) / n)
    return {"value": value, "ci95": [max(0, value - half), min(1, value + half)], "n": n}


def completions(draw: random.Random, pass_at_1: float, tokens: float, num: int = NUM_PROBLEMS) -> list[dict[str, Any]]:
    """`num` rows; the first ones are HOSTILE."""
    rows = []
    for number in range(num):
        a, b, c = random.Random(number).sample(range(2, 60), 3)
        right = draw.random() < pass_at_1
        total = a + b + c + (0 if right else draw.randint(1, 9))
        text = f"<think> {a} + {b} = {a + b}, {a + b} + {c} = {total} </think><answer> {total} </answer>"
        row = {"id": f"arithmetic-{number:04d}", "prompt": f"{a} + {b} + {c} = ?", "answer": str(a + b + c)}
        place = {
            "domain": "arithmetic" if number % 2 else "countdown",
            "language": "zh" if number % 5 == 0 else "en",
        }
        text = HOSTILE[number] if number < len(HOSTILE) else text
        verdict = {
            "verdict": "right" if right else "wrong",
            "right": right,
            "tokens": round(tokens),
            "truncated": False,
        }
        rows.append({**row, **place, "completion": text, **verdict})
    return rows


# What r1-full measures: pass@1, instructions, helpfulness, harmlessness, over-refusal, language, tokens.
FULL = {
    "base": (0.27, 0.31, 0.22, 0.30, 0.10, 0.71, 17.2),
    "r1_zero": (0.84, 0.22, 0.20, 0.28, 0.08, 0.64, 46.4),
    "cold_start": (0.52, 0.61, 0.41, 0.45, 0.07, 0.93, 39.0),
    "reasoning_rl": (0.86, 0.60, 0.43, 0.44, 0.06, 0.99, 48.1),
    "second_sft": (0.85, 0.83, 0.66, 0.71, 0.05, 0.98, 44.0),
    "final_rl": (0.87, 0.90, 0.84, 0.96, 0.04, 0.99, 45.5),
}
COUNTS = {
    "problems": {"found": 1000, "duplicate": 12, "contaminated": 3, "sampled": 985},
    "benchmarks": {"card:mini_arithmetic/eval": {"10-gram": 2, "13-gram": 1}},
    "samples": {"sampled": 7880, "truncated": 40, "wrong": 3011, "mixed_languages": 912, "kept": 985},
    "kept_of": {"arithmetic, en": 510, "arithmetic, zh": 475},
    "mean_pass_rate": 0.53,
    "num_problems_kept": 872,
}


def write_full_run(folder: Path, seed: int = 0, beside: str = "", without: tuple[str, ...] = ()) -> Path:
    """Makes and returns `folder/full`, r1-full from beginning to end; `without` leaves out the work of some stages."""
    draw, run_dir = random.Random(seed), folder / "full"
    run_dir.mkdir(parents=True)
    problems = ["card:mini_arithmetic/eval", "card:mini_general/eval", "card:mini_safety/eval"]
    made: dict[str, dict[str, Any]] = {
        "r1_zero": {"kind": "grpo", "model": BASE},
        "cold_start_data": {"kind": "rejection_sampling", "model": "stage:r1_zero"},
        "cold_start": {"kind": "sft", "model": BASE, "problems": ["stage:cold_start_data"]},
        "reasoning_rl": {"kind": "grpo", "model": "stage:cold_start"},
        "reasoning_data": {"kind": "rejection_sampling", "model": "stage:reasoning_rl"},
        "second_sft": {"kind": "sft", "model": BASE, "problems": ["stage:reasoning_data", "card:mini_general"]},
        "helpfulness_model": {"kind": "reward_model", "model": "stage:second_sft"},
        "harmlessness_model": {"kind": "reward_model", "model": "stage:second_sft"},
        "final_rl": {
            "kind": "grpo",
            "model": "stage:second_sft",
            "helpfulness_model": "stage:helpfulness_model",
            "harmlessness_model": "stage:harmlessness_model",
        },
    }
    stages = {"eval_base": {"kind": "evaluate", "model": BASE, "problems": problems}}
    for name, settings in made.items():
        stages[name] = {"problems": ["card:mini_arithmetic"], **settings}
        if name in FULL:
            stages[f"eval_{name}"] = {"kind": "evaluate", "model": f"stage:{name}", "problems": problems}
    recipe = {"recipe": "r1-full", "scale": "mini", "run": "full", "seed": seed, "stages": stages}
    recipe |= {"description": "The whole DeepSeek-R1.", **({"beside": beside} if beside else {})}
    write_json(run_dir / "recipe.json", recipe)
    for name, settings in stages.items():
        if name not in without:
            _write_stage(run_dir / name, settings, draw)
    return run_dir


def _write_stage(folder: Path, settings: dict[str, Any], draw: random.Random) -> None:
    """One finished stage of r1-full, by its kind."""
    kind = settings["kind"]
    if kind == "evaluate":
        measured = FULL[folder.name.removeprefix("eval_")]
        write_evaluation(folder, settings, draw, measured[0], measured[-1])
        write_json(folder / "metrics.json", full_measures(*measured))
        write_manifest(folder, settings, artifact="metrics", seconds=24.0)
    elif kind == "rejection_sampling":
        folder.mkdir()
        write_json(folder / "counts.json", COUNTS)
        write_manifest(folder, settings, artifact="dataset", seconds=55.0, metrics={"num_demos": 985})
    elif kind == "reward_model":
        folder.mkdir()
        facts = {"accuracy": 0.912, "length_correlation": 0.21, "accuracy_better_is_shorter": 0.84, "num_trained": 1440}
        write_json(folder / "reward_model.json", {"center": 0.1})
        write_curves(folder, [learning_row(step, draw, "accuracy") for step in range(1, 41)])
        write_manifest(folder, settings, artifact="reward_model", seconds=31.0, metrics=facts)
    elif kind == "sft":
        folder.mkdir()
        write_curves(folder, [learning_row(step, draw, "mean_token_accuracy") for step in range(1, 61)])
        write_manifest(folder, settings, artifact="checkpoint", seconds=73.0)
    else:
        write_training(folder, settings, draw, preferences=folder.name == "final_rl")


def full_measures(
    right: float, instructions: float, help_: float, harmless: float, refused: float, language: float, tokens: float
) -> dict[str, Any]:
    """`metrics.json` of r1-full: what the toy r1-zero measures and the other abilities."""
    n = 400
    more = {"instruction_following": instructions, "helpfulness": help_, "harmlessness": harmless}
    more |= {"over_refusal": refused, "language_consistency": language, "maj_at_k": min(1, right + 0.05)}
    return {**measures(right, tokens, n), **{name: share(value, n) for name, value in more.items()}}


def learning_row(step: int, draw: random.Random, name: str) -> dict[str, float]:
    """One row of the curves of an SFT or a reward model, which call their accuracy `name`; every tenth step measures
    held-out loss.
    """
    loss = 0.4 + 1.3 * math.exp(-step / 15) + draw.gauss(0, 0.03)
    held_out = {"eval_loss": loss + 0.05} if step % 10 == 0 else {}
    accuracy = min(1, 0.95 - 0.5 * math.exp(-step / 12) + draw.gauss(0, 0.02))
    return {"step": step, "loss": loss, name: accuracy, "tokens_per_s": draw.gauss(9000, 300), **held_out}


def write_training(
    folder: Path,
    settings: dict[str, Any],
    draw: random.Random,
    curves: tuple[str, ...] = (),
    preferences: bool = False,
) -> None:
    """One Checkpoint artifact without weights, with NUM_STEPS of curves and one step that is not a number.

    With `preferences` two reward models have their say in the last 23.5 % of the steps.
    """
    folder.mkdir()
    rows = [curve_row(step, draw) for step in range(1, NUM_STEPS + 1)]
    if preferences:
        rows = [{**row, **preference_row(step, draw)} for step, row in enumerate(rows, start=1)]
    write_curves(folder, [{name: row[name] for name in ("step", *curves)} for row in rows] if curves else rows)
    write_manifest(folder, settings, artifact="checkpoint", seconds=214.7, metrics={"reward": 0.93, "pass_at_1": 0.83})


def preference_row(step: int, draw: random.Random) -> dict[str, float]:
    """What preference rewards and the hacking alarm add to a row."""
    if step < 0.765 * NUM_STEPS:
        return {}
    row = {"reward/helpfulness": draw.gauss(0.6, 0.04), "reward/harmlessness": draw.gauss(0.9, 0.03)}
    look = {"alarm/preference_score": draw.gauss(0.6, 0.02), "alarm/pass_at_1": 0.85, "alarm/suspicious": 0.0}
    return row | look if step % 5 == 0 else row


def write_curves(folder: Path, rows: list[dict[str, float]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def curve_row(step: int, draw: random.Random) -> dict[str, float]:
    """One row of `metrics.jsonl`; the KL of step 7 is NaN."""
    learned = 1 / (1 + math.exp(-(step - 30) / 9))

    def noisy(value: float, width: float = 0.04) -> float:
        return value + draw.gauss(0, width)

    accuracy, well_formed = noisy(0.27 + 0.57 * learned), noisy(0.4 + 0.58 * learned, 0.02)
    return {
        "step": step,
        "reward": accuracy + 0.2 * well_formed,
        "reward/accuracy": accuracy,
        "reward/format": well_formed,
        "reward/length": noisy(-0.02, 0.01),
        "pass_at_1": max(0, min(1, accuracy)),
        "mean_response_tokens": noisy(17 + 29 * learned, 1.2),
        "entropy": noisy(0.9 - 0.5 * learned, 0.03),
        "zero_variance_share": max(0, noisy(0.1 + 0.35 * learned)),
        "clipped_share": max(0, noisy(0.02, 0.01)),
        "kl": math.nan if step == 7 else noisy(0.05 * learned, 0.004),
        "loss": noisy(0, 0.01),
        "learning_rate": 1.5e-4,
        "tokens_per_s": noisy(5200, 250),
        "step_seconds": noisy(2.6, 0.1),
    }


def write_manifest(
    folder: Path,
    settings: dict[str, Any],
    artifact: str,
    seconds: float,
    metrics: dict[str, float] | None = None,
) -> None:
    """Seals `folder` with a manifest as the worker writes it."""
    plain = {key: value for key, value in settings.items() if key not in ("kind", "model", "problems")}
    parent = {"ref": settings["model"]}
    if settings["model"].startswith("stage:"):
        parent["fingerprint"] = fingerprint(settings["model"].removeprefix("stage:"))
    record = {
        "artifact": artifact,
        "stage": folder.name,
        "kind": settings["kind"],
        "version": 1,
        "fingerprint": fingerprint(folder.name),
        "settings": plain,
        "inputs": {"model": [parent], "problems": [{"ref": ref} for ref in settings["problems"]]},
        "cards": [{"name": "mini_arithmetic", "revision": "generated-1", "licence": "apache-2.0"}],
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "packages": {"torch": "2.13.0", "trl": "1.16.0", "transformers": "5.23.0"},
        "hardware": {"cpu": "Toy CPU at 2.1 GHz", "cores": 2, "memory_gib": 7.8, "gpu": None},
        "started": "2025-11-20T10:00:00+0000",
        "seconds": seconds,
        "peak_memory_gib": 1.31,
        "peak_gpu_memory_gib": None,
        "metrics": metrics or {},
    }
    seal(folder, record)


def fingerprint(stage: str) -> str:
    """Some hex that differs from stage to stage."""
    return (stage.encode().hex() * 8)[:64]


if __name__ == "__main__":
    from pipeline.report import save_curve_png, summary_line, write_report

    toy = write_toy_run(Path(sys.argv[1]))
    save_curve_png(toy, toy / "curve.png")
    for run in (toy, write_full_run(Path(sys.argv[1]), beside="toy")):
        write_report(run)
        print(summary_line(run))
