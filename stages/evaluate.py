"""Measuring a model on problems it was not trained on.

Reads a checkpoint and held-out problems (split `eval` of the cards), and a reward model where there is one; makes
`metrics.json` (each figure with a 95 % interval), `by_domain.json`, `by_problem.json` (its value for every problem,
so that two evaluations can be compared on the problems they share), and every response in `completions.jsonl`.
What the figures are: `stages/measures.py`.

Paper: DeepSeek-R1 §3 and supplementary D: temperature 0.6, top-p 0.95, pass@1 as the mean over several
samples of a problem.
How we differ: sampled at temperature 1 unless the scale says otherwise, so that what is measured is what RL
trains; checks are rules where there is one, and where there is none (checker `judge`) the mean score of
`helpfulness_model` stands for the paper's GPT-4 judges. A model that was trained on that same reward model's score
is flattered by it: compare with the rules, and with the hacking alarm of `grpo`.

Command: `make stage STAGE=eval_base`, or as part of `make r1-zero`
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from pipeline.artifact import read_checked, write_checked
from pipeline.refs import METRICS, CheckpointRef, DatasetRef, RewardModelRef
from pipeline.stage import Inputs, Runtime, Workdir
from stages.chat import Response, without_tags
from stages.language import language_share
from stages.measures import measure, paired_table
from stages.rewards import Sample
from stages.rewards.checkers import MAX_CHARS, Verdict, answer_text, canonical, refuses
from stages.rewards.helpfulness import Helpfulness
from stages.rewards.ifeval import met
from stages.rows import rows_of
from stages.sampling import LazySampler, SamplingStage

if TYPE_CHECKING:
    from stages.engines.samplers import Completion

Row = dict[str, Any]


class Evaluate(SamplingStage):
    """Samples responses to held-out problems and judges them."""

    kind: ClassVar[str] = "evaluate"
    makes: ClassVar[str] = METRICS
    version: ClassVar[int] = 2

    model: CheckpointRef = Field(description="the checkpoint to measure")
    problems: list[DatasetRef] = Field(
        min_length=1, description="held-out problems", json_schema_extra={"split": "eval"}
    )
    helpfulness_model: RewardModelRef | None = Field(
        None, description="judges the answers that no rule can; null = they are not judged"
    )
    num_problems: int | None = Field(500, ge=1, description="at most so many from each reference; null = all")
    num_samples: int = Field(1, ge=1, description="responses to each problem")
    k: int | None = Field(None, ge=1, description="the k of pass_at_k and maj_at_k; null = num_samples")
    part_size: Runtime[int] = Field(256, ge=1, description="problems after which results are kept for a resume")

    @model_validator(mode="after")
    def _has_k_samples(self) -> Self:
        if self._k > self.num_samples:
            raise ValueError(f"k {self.k} is more than num_samples {self.num_samples}: raise it, or lower k")
        return self

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Writes the files named in the module docstring; returns what `metrics.json` holds."""
        problems = rows_of(inputs, "problems", "problem", self.num_problems)
        rows = [row for part in self._parts(problems, inputs, work) for row in part]
        self._score(rows, inputs)
        metrics = self._measure(rows)
        domains = dict.fromkeys(row["domain"] for row in rows)
        by_domain = {name: self._measure([row for row in rows if row["domain"] == name]) for name in domains}
        work.write_jsonl("completions.jsonl", ({key: row[key] for key in COLUMNS} for row in rows))
        work.write_json("metrics.json", metrics)
        work.write_json("by_domain.json", by_domain)
        work.write_json("by_problem.json", paired_table(rows, self._k))
        return metrics

    @property
    def _k(self) -> int:
        return self.k or self.num_samples

    def _measure(self, rows: list[Row]) -> dict[str, dict[str, Any]]:
        return measure(rows, self._k, longest=self.max_completion_length)

    def _score(self, rows: list[Row], inputs: Inputs) -> None:
        """Enters the reward model's `score`, in [0, 1], of every response that no rule can judge."""
        reward = Helpfulness()
        asked = [row for row in rows if row["verdict"] == Verdict.no_rule and row["domain"] in reward.domains]
        if self.helpfulness_model is None or not asked:
            return
        from stages.engines.reward_models import RewardModelScorer

        scorer = RewardModelScorer(inputs.checkpoint("helpfulness_model"), self.device, self.template)
        samples = [self._sample(row) for row in asked]
        for row, score in zip(asked, reward.score_with(scorer, samples), strict=True):
            row["score"] = score

    def _sample(self, row: Row) -> Sample:
        response = self.parse(row["completion"])
        return Sample(row, response, row["tokens"], row["truncated"], self.max_completion_length)

    def _parts(self, problems: list[Row], inputs: Inputs, work: Workdir) -> Iterable[list[Row]]:
        """Judged responses, part by part; a part that an earlier process finished is read, not made again."""
        with LazySampler(self, inputs.checkpoint("model"), problems) as sampler:
            for start in range(0, len(problems), self.part_size):
                part = problems[start : start + self.part_size]
                file = work.checkpoints / f"part-{self.part_size}-{start}.json"
                if read_checked(file) is None:
                    groups = sampler.sample(part, self.num_samples, start)
                    pairs = [(problem, c) for problem, group in zip(part, groups, strict=True) for c in group]
                    write_checked(file, self.judge(pairs))
                yield read_checked(file)
                work.progress(start + len(part), len(problems), "problems")

    def judge(self, pairs: "Sequence[tuple[Row, Completion]]") -> list[Row]:
        """One row for each (problem, completion): the columns of `completions.jsonl` and what is measured on them."""
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
    "score",
)


def _row(problem: Mapping[str, str], completion: "Completion", response: Response, verdict: Verdict) -> Row:
    said = answer_text(response, problem["checker"]) or ""
    return {
        **{name: problem[name] for name in ("id", "prompt", "answer", "domain", "language")},
        "completion": completion.text,
        "verdict": str(verdict),
        "right": verdict is Verdict.right,
        "tokens": len(completion.token_ids),
        "truncated": completion.truncated,
        "score": None,
        "well_formed": response.well_formed,
        "language_share": language_share(without_tags(response.reasoning or ""), problem["language"]),
        "vote": canonical(said, problem["checker"]),
        "refused": refuses(said),
        "demands": _demands(said, problem),
    }


def _demands(said: str, problem: Mapping[str, str]) -> dict[str, list[bool]] | None:
    """Which of IFEval's demands are met, strictly and loosely; None for other problems."""
    if problem["checker"] != "ifeval":
        return None
    found = met(said if len(said) <= MAX_CHARS else "", problem["answer"])
    return found._asdict() if found else None
