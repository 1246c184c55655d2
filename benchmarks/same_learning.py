"""Whether our GRPO learns what plain TRL's does: reward curves of both on the same settings, model, data and seeds.

Runs the `r1_zero` stage of a scale through the pipeline and through `plain_trl_grpo`, once for each seed, as
`grpo_step.py` does, or `--jobs` of these runs side by side: rewards are compared, not seconds. Makes a JSON file with
all curves and prints a Markdown table: the mean reward of each third of the steps, with the lowest and highest seed,
and how far the two are apart. Samples differ, for the engines draw their random numbers in their own ways; what must
agree is the course.
Exit code 0 only if in the last third each one's mean lies inside the other's band, or within 5 % of its mean.

    python -m benchmarks.same_learning --scale mini --steps 24 --seeds 0 1 2 --out docs/results/same-learning-mini.json

On one GPU, from a cold start (`models/cold` is a link to its folder):

    python -m benchmarks.same_learning --scale smollm2-135m --steps 24 --seeds 0 1 2 --jobs 6 --micro-batch-rows 32 \\
        --out docs/results/same-learning-smollm2.json --args stages.r1_zero.model=path:models/cold \\
        'stages.r1_zero.problems=["card:reasoning_gym:chain_sum.1"]' grpo.sampler=transformers \\
        grpo.learning_rate=1e-4 grpo.num_problems=32 grpo.num_generations=8 grpo.max_completion_length=80
"""

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from benchmarks import command_line, start
from benchmarks.grpo_step import Result, ours, plain_trl, require_both
from pipeline.provenance import environment

NEAR = 0.05
CONTENDERS: dict[str, Callable[[argparse.Namespace], Result]] = {"ours": ours, "plain TRL": plain_trl}


def main() -> int:
    chosen = arguments()
    require_both(chosen)
    with ThreadPoolExecutor(chosen.jobs) as threads:
        begun = {name: threads.map(run, of_seeds(chosen)) for name, run in CONTENDERS.items()}
        runs = {name: list(results) for name, results in begun.items()}
    curves = {name: [result["rewards"] for result in results] for name, results in runs.items()}
    if chosen.out:
        record = {"command": sys.argv[1:], **environment(), "seeds": chosen.seeds, "rewards": curves}
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")
    thirds = {name: [in_thirds(curve) for curve in seeds] for name, seeds in curves.items()}
    print(table(thirds))
    last = [[seed[-1] for seed in seeds] for seeds in thirds.values()]
    return 0 if agrees(*last) and agrees(*reversed(last)) else 1


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--steps", type=int, default=24, help="at least 3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--args", nargs="*", default=[], help="settings, as in ARGS")
    parser.add_argument("--micro-batch-rows", type=int, default=None, help="TRL's batch; default: the whole step")
    parser.add_argument("--vllm", action="store_true", help="let plain TRL sample with vLLM too")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def of_seeds(chosen: argparse.Namespace) -> list[argparse.Namespace]:
    """The same settings with each seed."""
    return [argparse.Namespace(**vars(chosen) | {"args": [*chosen.args, f"seed={seed}"]}) for seed in chosen.seeds]


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
    start(main)
