"""Reinforcement learning with rule rewards: GRPO.

Reads a checkpoint and problems; makes a checkpoint (merged weights; the adapter beside them in `adapter/`)
and the training curves `metrics.jsonl`, one row a step.

Paper: DeepSeek-R1 §2.1 (GRPO), §2.2 (R1-Zero), §2.3.2 (reasoning RL), §2.3.4 (final RL). R1-Zero trained all
weights with learning rate 3e-6, KL coefficient 0.001, 16 responses to each of 32 questions a step at
temperature 1, at most 32,768 tokens each, the reference replaced every 400 steps, 10,400 steps in all.
How we differ: as many problems and responses as the scale says; LoRA or all weights; no KL term unless `beta`
is set; the loss is DAPO's mean over tokens unless `loss_type` is set; a step samples one batch and trains on
it (the paper samples for 16 steps at once); rewards are rules only; responses whose group got one and the
same reward have no gradient and are not computed again.

Command: `make stage STAGE=r1_zero`, or as part of `make r1-zero`
"""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import DataError
from pipeline.refs import DatasetRef
from pipeline.stage import Inputs, Workdir, read_jsonl
from stages.rewards import AnyReward, Sample, score_many
from stages.rewards.accuracy import Accuracy
from stages.rewards.checkers import Verdict, check_many
from stages.rewards.format import Format
from stages.sampling import SamplingStage
from stages.training import TrainingStage

if TYPE_CHECKING:
    from stages.engines.samplers import Completion

# Golds that are tried before training; a card of a million problems is not judged whole.
MAX_GOLDS_CHECKED = 5000


class GRPO(TrainingStage, SamplingStage):
    """Samples responses, rewards them by rules, and makes the better ones of each group more likely."""

    kind: ClassVar[str] = "grpo"
    problems: list[DatasetRef] = Field(description="problems to learn from")
    rewards: tuple[AnyReward, ...] = Field(
        (Accuracy(), Format(weight=0.2)),
        min_length=1,
        description="parts of the reward; their weighted sum counts",
    )
    max_steps: int = Field(100, ge=1, description="updates of the policy")
    num_problems: int = Field(32, ge=1, description="problems in each step")
    num_generations: int = Field(8, ge=2, description="responses to each problem: the group G")
    temperature: float = Field(1.0, gt=0)

    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    beta: float = Field(0.0, ge=0, description="weight of the KL term that ties the policy to the reference")
    epsilon: float = Field(0.2, ge=0, description="clipping of the importance ratio, below")
    epsilon_high: float | None = Field(None, ge=0, description="clipping above; null = like epsilon")
    delta: float | None = Field(None, gt=1, description="upper bound of the ratio for negative advantages; null = none")
    importance_sampling_level: Literal["token", "sequence"] = "token"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated_completions: bool = Field(False, description="leave cut-off responses out of the loss")
    num_iterations: int = Field(1, ge=1, description="updates on each batch of responses")
    ref_model_sync_steps: int = Field(0, ge=0, description="steps between refreshes of the KL reference; 0 = never")

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Trains and saves the model; returns means over the last tenth of the steps."""
        from stages.engines import grpo_run  # imports torch and trl

        grpo_run.check(self)
        problems, num_unusable = usable(inputs.rows("problems"))
        if len(problems) < self.num_problems:
            raise DataError(
                f"there are {len(problems)} usable problems, but a step takes {self.num_problems}",
                hint="lower num_problems, or name more problems",
            )
        grpo_run.train(self, inputs.checkpoint("model"), problems, work)
        return closing_means(read_jsonl(work.metrics_file)) | {"num_unusable_golds": num_unusable}

    def score(
        self, problems: Sequence[dict[str, Any]], completions: "Sequence[Completion]", fraction: float
    ) -> list[dict[str, float | None]]:
        """`reward` and each `reward/<kind>` of each response; `fraction` is the share of training done."""
        samples = [
            Sample(
                problem=problem,
                response=self.parse(completion.text),
                num_tokens=len(completion.token_ids),
                truncated=completion.truncated,
                max_tokens=self.max_completion_length,
                fraction=fraction,
            )
            for problem, completion in zip(problems, completions, strict=True)
        ]
        return score_many(self.rewards, samples)


def usable(problems: list[dict[str, str]]) -> tuple[list[dict[str, str]], int]:
    """Problems whose gold answer can be checked against, and how many were left out; DataError if all."""
    tried = problems[:MAX_GOLDS_CHECKED]
    verdicts = check_many([("", problem) for problem in tried])
    bad = {i for i, verdict in enumerate(verdicts) if verdict is Verdict.gold_unusable}
    if len(bad) == len(tried):
        first = problems[0]
        raise DataError(
            f"no gold answer can be used: problem {first['id']!r} has {first['answer']!r} for the checker "
            f"{first['checker']!r}",
            hint="look at the columns `answer` and `checker` of the data card",
        )
    return [problem for i, problem in enumerate(problems) if i not in bad], len(bad)


def closing_means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means of the headline curves over the last tenth of the steps."""
    last = rows[-max(1, len(rows) // 10) :]
    names = ("reward", "pass_at_1", "mean_response_tokens", "step_seconds")
    return {name: fmean(row[name] for row in last) for name in names if all(row.get(name) is not None for row in last)}
