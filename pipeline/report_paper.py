"""What the paper says of every stage: DeepSeek-R1, arXiv 2501.12948 v2, Table 3, and what it says only in words.

Its models and tasks are other ones than a run's here: what can be compared is the direction from stage to stage, not
the numbers. A stage stands for one of the paper's models by its name, as the recipe `r1-full` names them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MODELS = ("R1-Zero", "Dev1", "Dev2", "Dev3", "R1")
STAGES = dict(zip(("r1_zero", "cold_start", "reasoning_rl", "second_sft", "final_rl"), MODELS, strict=True))


@dataclass(frozen=True)
class Benchmark:
    """One row of Table 3, in percent, and the metric of ours that asks for the same ability."""

    name: str
    short: str
    metric: str
    scores: tuple[float, float, float, float, float]

    def score(self, model: str) -> float:
        """The score of one of MODELS."""
        return self.scores[MODELS.index(model)]


BENCHMARKS = (
    Benchmark("AIME 2024, pass@1", "AIME", "pass_at_1", (77.9, 59.0, 74.0, 78.1, 79.8)),
    Benchmark("MATH-500, pass@1", "MATH-500", "pass_at_1", (95.9, 94.2, 95.9, 95.4, 97.3)),
    Benchmark("IF-Eval, prompt strict", "IF-Eval", "instruction_following", (46.6, 71.7, 72.0, 78.1, 83.3)),
    Benchmark("AlpacaEval 2.0, LC win rate", "AlpacaEval", "helpfulness", (24.7, 50.1, 55.8, 62.1, 87.6)),
    Benchmark("ArenaHard", "ArenaHard", "helpfulness", (53.6, 77.0, 73.2, 75.6, 92.3)),
)

# What a stage changes against the one before it, where the paper gives no number: (metric, model) -> sign, section.
IN_WORDS = {
    ("language_consistency", "Dev1"): (1, "§3"),  # R1-Zero mixes languages; the cold start is for readability
    ("language_consistency", "Dev2"): (1, "§3.2.1"),  # the language consistency reward
    ("harmlessness", "R1"): (1, "§3.2.2"),  # the safety reward model
}


@dataclass(frozen=True)
class Said:
    """What the paper says of one change: its sign, with the difference in points, or where it says so in words."""

    sign: int
    name: str
    points: float | None = None


def models_of(stages: Iterable[str]) -> dict[str, str]:
    """Stage -> the model of the paper it stands for; empty unless these stand in the paper's order.

    In another order the same names mean something else: an R1-Zero after a cold start is none.
    """
    found = {name: STAGES[name] for name in stages if name in STAGES}
    positions = [MODELS.index(model) for model in found.values()]
    return found if positions == sorted(positions) else {}


def said(metric: str, before: str, after: str) -> list[Said]:
    """What the paper says of `metric` from one of MODELS to another; nothing where it says nothing."""
    found = []
    for benchmark in BENCHMARKS:
        if benchmark.metric == metric:
            points = round(benchmark.score(after) - benchmark.score(before), 1)
            found.append(Said((points > 0) - (points < 0), benchmark.short, points))
    if MODELS.index(after) == MODELS.index(before) + 1 and (metric, after) in IN_WORDS:
        sign, section = IN_WORDS[metric, after]
        found.append(Said(sign, section))
    return found
