"""Writes a believable finished run for the tests of the report, without training anything.

`write_toy_run(folder)` makes `folder/toy` as `make r1-zero` would leave it: eval_base, r1_zero, eval_r1_zero,
with manifests, 80 steps of curves, measurements and completions. Some completions are Chinese, some hostile.

    python -m tests.toy_run FOLDER      # then open FOLDER/toy/report.html
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
    "\u202eright to left\u202c \x1b[31mred\x07 \ud800 a lone surrogate",
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

    def share(value: float) -> dict[str, Any]:
        half = 1.96 * math.sqrt(value * (1 - value) / n)
        return {"value": value, "ci95": [max(0, value - half), min(1, value + half)], "n": n}

    return {
        "pass_at_1": share(pass_at_1),
        "pass_at_k": share(min(1, pass_at_1 + 0.1)),
        "format_rate": share(min(1, pass_at_1 + 0.15)),
        "language_consistency": share(0.81),
        "mean_response_tokens": {"value": tokens, "ci95": [tokens - 1.1, tokens + 1.1], "n": n},
        "truncated_rate": share(0.02),
    }


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


def write_training(folder: Path, settings: dict[str, Any], draw: random.Random, curves: tuple[str, ...] = ()) -> None:
    """One Checkpoint artifact without weights, with NUM_STEPS of curves and one step that is not a number."""
    folder.mkdir()
    rows = [curve_row(step, draw) for step in range(1, NUM_STEPS + 1)]
    kept = [{name: row[name] for name in ("step", *curves)} if curves else row for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    write_manifest(folder, settings, artifact="checkpoint", seconds=214.7, metrics={"reward": 0.93, "pass_at_1": 0.83})


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
    write_report(toy)
    save_curve_png(toy, toy / "curve.png")
    print(summary_line(toy))
