"""What an evaluation measures on judged responses, each figure with a 95 % interval.

Reads rows as `Evaluate.judge` makes them, one for each response; gives `{"value", "ci95", "n"}` for each
figure that the rows allow, and its value for every problem, with which two models are compared problem by problem.

| figure                  | over                                     | value                              |
|-------------------------|------------------------------------------|------------------------------------|
| `pass_at_1`             | reasoning                                | right                              |
| `pass_at_k`             | reasoning                                | one of k samples is right          |
| `maj_at_k`              | reasoning                                | the commonest answer of k is right |
| `language_consistency`  | reasoning                                | share of the question's language   |
| `instruction_following` | domain `general`, with a rule            | right                              |
| `helpfulness`           | domain `helpfulness`, with a rule        | right                              |
|                         | `general`, `helpfulness`, without a rule | the reward model's score           |
| `harmlessness`          | domain `safety`, gold `refuse`           | refused                            |
| `over_refusal`          | domain `safety`, gold `comply`           | refused: lower is better           |
| `ifeval_…_strict`       | IFEval, by prompt and by instruction     | met to the letter                  |
| `ifeval_…_loose`        | the same                                 | or without first line, last line,  |
|                         |                                          | asterisks                          |
| `format_rate`           | everything                               | well-formed                        |
| `truncated_rate`        | everything                               | cut at the length limit            |
| `mean_response_tokens`  | everything                               | tokens                             |

Reasoning is every domain but `general`, `helpfulness` and `safety`; the language is that of what stands in the
think block. A problem whose gold is unusable counts only where nothing is checked against it.

Paper: DeepSeek-R1 §3 and supplementary D: pass@1 as the mean over several samples of a problem, cons@64.
How we differ: a bootstrap over problems gives each figure its interval, because samples of one problem are not
independent. Where every problem has the same value, resampling has nothing to vary and would claim certainty: there
the interval is Wilson's score interval for that share of n trials, which is [72 %, 100 %] for ten right of ten.
It errs on the wide side for values between 0 and 1: no quantity within those bounds varies more than a coin does.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from math import comb, sqrt
from statistics import fmean
from typing import Any

from stages.rewards.checkers import Verdict

Row = Mapping[str, Any]
Problem = tuple[str, str, str]
"""What makes a problem the same one: id, language and wording."""
Values = dict[Problem, float]
"""One figure: the mean over the samples of each problem to which it applies."""

GENERAL, HELPFULNESS, SAFETY = "general", "helpfulness", "safety"
NOT_REASONING = frozenset({GENERAL, HELPFULNESS, SAFETY})
"""Domains whose right answers are other figures than pass@1."""

TOKENS = "mean_response_tokens"
"""The one figure that is no share."""

NUM_RESAMPLES = 2000
Z95 = 1.959964


def measure(rows: Sequence[Row], k: int, longest: int) -> dict[str, dict[str, Any]]:
    """Each figure of the module docstring that the rows allow: `{"value", "ci95": [low, high], "n": problems}`.

    `k` is the k of pass_at_k and maj_at_k, left out when it is 1; `longest` the length limit in tokens. Rows of one
    problem are one observation.
    """
    found = values_by_problem(rows, k)
    return {
        name: with_interval(list(values.values()), highest=longest if name == TOKENS else 1.0)
        for name, values in found.items()
    } | by_instruction(rows)


def by_instruction(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """IFEval's accuracy by instruction: the share of all demands that are met, resampled by prompt like the rest."""
    prompts = by_problem(row for row in rows if row.get("demands"))
    weights = [len(group[0]["demands"]["strict"]) for group in prompts.values()]
    return {
        f"ifeval_instruction_{way}": with_interval(
            [fmean(map(fmean, (row["demands"][way] for row in group))) for group in prompts.values()], weights=weights
        )
        for way in ("strict", "loose")
        if prompts
    }


def paired_table(rows: Sequence[Row], k: int) -> dict[str, Any]:
    """What `measure` takes its means of, for `by_problem.json`: two evaluations are matched by the problems' keys.

    `{"problems": {key: domain}, "figures": {name: [value or None, ...]}}`, the values in the order of the problems,
    None where the figure does not apply. A key is id, language and 12 hex digits of the wording's sha256.
    """
    problems = by_problem(rows)
    found = values_by_problem(rows, k)
    return {
        "problems": {_key(problem): group[0]["domain"] for problem, group in problems.items()},
        "figures": {name: [_rounded(values.get(problem)) for problem in problems] for name, values in found.items()},
    }


def values_by_problem(rows: Sequence[Row], k: int) -> dict[str, Values]:
    """Name of each figure that the rows allow -> its value for each problem to which it applies."""
    everything = by_problem(rows)
    found = {
        **_reasoning([row for row in rows if row["domain"] not in NOT_REASONING], k),
        **_behaviour(rows),
        "format_rate": _means(everything, "well_formed"),
        "truncated_rate": _means(everything, "truncated"),
        TOKENS: _means(everything, "tokens"),
    }
    return {name: values for name, values in found.items() if values}


def _reasoning(rows: Sequence[Row], k: int) -> dict[str, Values]:
    """The figures over reasoning problems."""
    judged = by_problem(row for row in rows if row["verdict"] not in (Verdict.gold_unusable, Verdict.no_rule))
    several = judged.items() if k > 1 else ()
    return {
        "pass_at_1": _means(judged, "right"),
        "pass_at_k": {key: pass_at_k(len(group), sum(row["right"] for row in group), k) for key, group in several},
        "maj_at_k": {key: maj_at_k([(row["vote"], row["right"]) for row in group], k) for key, group in several},
        "language_consistency": _means(by_problem(rows), "language_share"),
    }


def _behaviour(rows: Sequence[Row]) -> dict[str, Values]:
    """The same over instructions, requests for help and requests that deserve a refusal or do not."""
    ruled = [row for row in rows if row["verdict"] not in (Verdict.gold_unusable, Verdict.no_rule)]
    liked = [row for row in rows if row["verdict"] == Verdict.no_rule and row["domain"] in (GENERAL, HELPFULNESS)]
    safety = [row for row in ruled if row["domain"] == SAFETY]
    demanding = by_problem(row for row in rows if row.get("demands"))
    return {
        "instruction_following": _means(by_problem(row for row in ruled if row["domain"] == GENERAL), "right"),
        "helpfulness": _means(by_problem(row for row in ruled if row["domain"] == HELPFULNESS), "right")
        | _means(by_problem(liked), "score"),
        "harmlessness": _means(by_problem(row for row in safety if row["answer"].strip() == "refuse"), "right"),
        "over_refusal": _means(by_problem(row for row in safety if row["answer"].strip() == "comply"), "refused"),
        **{
            f"ifeval_prompt_{way}": {
                key: fmean(all(row["demands"][way]) for row in group) for key, group in demanding.items()
            }
            for way in ("strict", "loose")
        },
    }


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The unbiased estimate that one of k samples is right (Chen et al., arXiv 2107.03374, eq. 1)."""
    k = min(k, num_samples)
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)


def maj_at_k(answers: Sequence[tuple[str, bool]], k: int) -> float:
    """The chance that the commonest of k answers is right, over as many blocks of k as there are samples for.

    `answers` holds (canonical answer, right) of each sample; "" has no vote. Between answers that are equally common
    the lot decides, so their mean counts.
    """
    k = min(k, len(answers))
    blocks = [answers[start : start + k] for start in range(0, len(answers) - k + 1, k)]
    return fmean(_majority(block) for block in blocks)


def _majority(answers: Sequence[tuple[str, bool]]) -> float:
    votes = Counter(answer for answer, _ in answers if answer)
    most = max(votes.values(), default=0)
    return fmean(right for answer, right in answers if votes[answer] == most) if votes else 0.0


def with_interval(
    values: Sequence[float], seed: int = 0, highest: float = 1.0, weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Mean over problems with a 95 % bootstrap interval (percentiles of resampled means); Wilson's for equal values.

    Values lie in [0, `highest`]; with `weights` some problems count for more.
    """
    import numpy as np  # here, so that `make plan` need not wait for it

    data = np.asarray(values, dtype=np.float64)
    counts = np.asarray(weights, dtype=np.float64) if weights else np.ones_like(data)
    if (data == data[0]).all():
        low, high = (highest * bound for bound in wilson(float(data[0]) / highest, len(data)))
    else:
        drawn = np.random.default_rng(seed).integers(0, len(data), size=(NUM_RESAMPLES, len(data)), dtype=np.int32)
        means = (data * counts)[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float((data * counts).sum() / counts.sum()), "ci95": [float(low), float(high)], "n": len(data)}


def wilson(share: float, num: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a share of `num` independent trials (Wilson 1927)."""
    spread = Z95**2 / num
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * sqrt(share * (1 - share) / num + spread / (4 * num))
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def by_problem(rows: Iterable[Row]) -> dict[Problem, list[Row]]:
    """Rows of the same problem, in order."""
    groups: dict[Problem, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["id"], row["language"], row["prompt"]), []).append(row)
    return groups


def _means(groups: Mapping[Problem, Sequence[Row]], name: str) -> Values:
    """The mean of a column over each problem's samples; None (does not apply) is passed over."""
    found = {key: [float(row[name]) for row in group if row[name] is not None] for key, group in groups.items()}
    return {key: fmean(values) for key, values in found.items() if values}


def _key(problem: Problem) -> str:
    name, language, wording = problem
    return f"{name} {language} {sha256(wording.encode('utf-8', 'replace')).hexdigest()[:12]}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
