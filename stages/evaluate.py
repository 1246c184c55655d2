"""Measuring a model on problems it was not trained on.

Reads a checkpoint and held-out problems (split `eval` of the cards); makes `metrics.json` (each figure with a
95 % interval), `by_domain.json`, and every response in `completions.jsonl`.

Paper: DeepSeek-R1 §3 and supplementary D: temperature 0.6, top-p 0.95, pass@1 as the mean over several
samples of a problem.
How we differ: sampled at temperature 1 unless the scale says otherwise, so that what is measured is what RL
trains; intervals from a bootstrap over problems, because samples of one problem are not independent; checks
are rules only.

Command: `make stage STAGE=eval_base`, or as part of `make r1-zero`
"""

from collections.abc import Iterable, Mapping, Sequence
from math import comb
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pipeline.artifact import read_json, write_json
from pipeline.refs import METRICS, CheckpointRef, DatasetRef
from pipeline.stage import Inputs, Runtime, Workdir
from stages.chat import Response, without_tags
from stages.language import language_share
from stages.rewards.checkers import Verdict
from stages.sampling import LazySampler, SamplingStage

if TYPE_CHECKING:
    from stages.engines.samplers import Completion

Row = dict[str, Any]

# Domains whose right answers are another figure than pass@1.
GENERAL, SAFETY = "general", "safety"
NUM_RESAMPLES = 2000


class Evaluate(SamplingStage):
    """Samples responses to held-out problems and judges them."""

    kind: ClassVar[str] = "evaluate"
    makes: ClassVar[str] = METRICS

    model: CheckpointRef = Field(description="the checkpoint to measure")
    problems: list[DatasetRef] = Field(description="held-out problems", json_schema_extra={"split": "eval"})
    num_problems: int | None = Field(500, ge=1, description="at most so many from each reference; null = all")
    num_samples: int = Field(1, ge=1, description="responses to each problem")
    k: int | None = Field(None, ge=1, description="the k of pass_at_k; null = num_samples")
    part_size: Runtime[int] = Field(256, ge=1, description="problems after which results are kept for a resume")

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Writes the files named in the module docstring; returns what `metrics.json` holds."""
        problems = inputs.rows("problems", limit=self.num_problems)
        rows = [row for part in self._parts(problems, inputs, work) for row in part]
        k = min(self.k or self.num_samples, self.num_samples)
        metrics = measure(rows, k)
        domains = dict.fromkeys(row["domain"] for row in rows)
        by_domain = {name: measure([row for row in rows if row["domain"] == name], k) for name in domains}
        work.write_jsonl("completions.jsonl", ({key: row[key] for key in COLUMNS} for row in rows))
        work.write_json("metrics.json", metrics)
        work.write_json("by_domain.json", by_domain)
        return metrics

    def _parts(self, problems: list[Row], inputs: Inputs, work: Workdir) -> Iterable[list[Row]]:
        """Judged responses, part by part; a part that an earlier process finished is read, not made again."""
        with LazySampler(self, inputs.checkpoint("model")) as sampler:
            for start in range(0, len(problems), self.part_size):
                part = problems[start : start + self.part_size]
                file = work.checkpoints / f"part-{self.part_size}-{start}.json"
                if not file.exists():
                    groups = sampler.sample(part, self.num_samples, start)
                    write_json(file, self.judge([(p, c) for p, group in zip(part, groups, strict=True) for c in group]))
                yield read_json(file)
                work.progress(start + len(part), len(problems), "problems")

    def judge(self, pairs: "Sequence[tuple[Row, Completion]]") -> list[Row]:
        """One row for each (problem, completion): the columns of `completions.jsonl` and what is measured on
        them."""
        return [_row(*one) for one in self.judged(pairs)]


COLUMNS = (
    "id",
    "prompt",
    "answer",
    "domain",
    "language",
    "completion",
    "verdict",
    "right",
    "tokens",
    "truncated",
)


def _row(problem: Mapping[str, str], completion: "Completion", response: Response, verdict: Verdict) -> Row:
    return {
        **{name: problem[name] for name in ("id", "prompt", "answer", "domain", "language")},
        "completion": completion.text,
        "verdict": str(verdict),
        "right": verdict is Verdict.right,
        "tokens": len(completion.token_ids),
        "truncated": completion.truncated,
        "well_formed": response.well_formed,
        "language_share": language_share(without_tags(response.reasoning or ""), problem["language"]),
    }


def measure(rows: Sequence[Row], k: int) -> dict[str, dict[str, Any]]:
    """Each figure that the rows allow: `{"value", "ci95": [low, high], "n": number of problems}`.

    `k` is the k of pass_at_k, left out when it is 1. Rows of one problem stand together.
    """
    judged = [row for row in rows if row["verdict"] != Verdict.gold_unusable]
    reasoning = _by_problem(row for row in judged if row["domain"] not in (GENERAL, SAFETY))
    everything = _by_problem(rows)
    values: dict[str, list[float]] = {
        "pass_at_1": _means(reasoning, "right"),
        "pass_at_k": [pass_at_k(len(group), sum(r["right"] for r in group), k) for group in reasoning] if k > 1 else [],
        "format_rate": _means(everything, "well_formed"),
        "language_consistency": _means(everything, "language_share"),
        "instruction_following": _means(_by_problem(row for row in judged if row["domain"] == GENERAL), "right"),
        "harmlessness": _means(_by_problem(row for row in judged if row["domain"] == SAFETY), "right"),
        "mean_response_tokens": _means(everything, "tokens"),
        "truncated_rate": _means(everything, "truncated"),
    }
    return {name: with_interval(found) for name, found in values.items() if found}


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The unbiased estimate that one of k samples is right (Chen et al., arXiv 2107.03374, eq. 1)."""
    k = min(k, num_samples)
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)


def with_interval(values: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Mean over problems with a 95 % bootstrap interval (percentiles of resampled means)."""
    import numpy as np  # here, so that `make plan` need not wait for it

    data = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(data), size=(NUM_RESAMPLES, len(data)), dtype=np.int32)
    low, high = np.percentile(data[drawn].mean(axis=1), [2.5, 97.5])
    return {"value": float(data.mean()), "ci95": [float(low), float(high)], "n": len(data)}


def _by_problem(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of the same problem (same id, language and wording), in order."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["id"], row["language"], row["prompt"]), []).append(row)
    return list(groups.values())


def _means(groups: Iterable[Sequence[Mapping[str, Any]]], name: str) -> list[float]:
    """The mean of a column over each problem's samples; None (does not apply) is passed over."""
    found = ([float(row[name]) for row in group if row[name] is not None] for group in groups)
    return [fmean(values) for values in found if values]
