"""Whether our GRPO learns what plain TRL's does: reward curves of both on the same settings, model, data and seeds.

Runs the `r1_zero` stage of a scale through the pipeline and through `plain_trl_grpo.py` in turns, once for each seed,
as `grpo_step.py` does. Makes a JSON file with all curves and prints a Markdown table: the mean reward of each third of
the steps, with the lowest and highest seed, and how far the two are apart. Samples differ, for the engines draw their
random numbers in their own ways; what must agree is the course.
Exit code 0 only if in the last third each one's mean lies inside the other's band, or within 5 % of its mean.

    python benchmarks/same_learning.py --scale mini --steps 24 --seeds 0 1 2 --out docs/results/same-learning-mini.json
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from benchmarks.grpo_step import Result, ours, plain_trl
from pipeline.provenance import environment

NEAR = 0.05


def main() -> int:
    chosen = arguments()
    given, runs = list(chosen.args), {"ours": list[Result](), "plain TRL": list[Result]()}
    for seed in chosen.seeds:
        chosen.args = [*given, f"seed={seed}"]
        runs["ours"].append(ours(chosen))
        runs["plain TRL"].append(plain_trl(chosen))
    thirds = {name: [in_thirds(result["rewards"]) for result in results] for name, results in runs.items()}
    print(table(thirds))
    if chosen.out:
        curves = {name: [result["rewards"] for result in results] for name, results in runs.items()}
        record = {"command": sys.argv[1:], **environment(), "seeds": chosen.seeds, "rewards": curves}
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")
    last = [[seed[-1] for seed in seeds] for seeds in thirds.values()]
    return 0 if agrees(*last) and agrees(*reversed(last)) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--args", nargs="*", default=[], help="settings, as in ARGS")
    parser.add_argument("--micro-batch-rows", type=int, default=None, help="TRL's batch; default: the whole step")
    parser.add_argument("--vllm", action="store_true", help="let plain TRL sample with vLLM too")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def in_thirds(curve: list[float]) -> list[float]:
    """The mean of each third of a curve."""
    ends = [len(curve) * number // 3 for number in range(4)]
    return [fmean(curve[start:end]) for start, end in pairwise(ends)]


def agrees(one: list[float], other: list[float]) -> bool:
    """Whether the mean of one lies inside the other's band, or near its mean."""
    mean, middle = fmean(one), fmean(other)
    return min(other) <= mean <= max(other) or abs(mean - middle) <= NEAR * abs(middle)


def table(thirds: dict[str, list[list[float]]]) -> str:
    """Markdown: a row for each trainer, a column for each third."""
    lines = ["| mean reward (lowest, highest seed) | first third | second | last |", "|---|---|---|---|"]
    for name, seeds in thirds.items():
        cells = [f"{fmean(part):.3f} ({min(part):.3f}, {max(part):.3f})" for part in zip(*seeds, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
