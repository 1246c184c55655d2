"""Reinforcement learning with rule rewards and reward models: GRPO.

Reads a checkpoint and problems, and for the final RL reward models, problems that enter late and held-out problems
for the hacking alarm; makes a checkpoint (merged weights; the adapter beside them in `adapter/`) and the training
curves `metrics.jsonl`, one row a step.

Paper: DeepSeek-R1 §2.1 (GRPO), §2.2 (R1-Zero), §2.3.2 (reasoning RL), §2.3.4 (final RL). R1-Zero trained all
weights with learning rate 3e-6, KL coefficient 0.001, 16 responses to each of 32 questions a step at
temperature 1, at most 32,768 tokens each, the reference replaced every 400 steps, 10,400 steps in all. The final RL
ran for 1,700 steps at temperature 0.7, with preference rewards and general prompts in the last 400 only.
How we differ: as many problems and responses as the scale says; LoRA or all weights; no KL term unless `beta`
is set; the loss is DAPO's mean over tokens unless `loss_type` is set; a step samples one batch and trains on
it (the paper samples for 16 steps at once); responses whose group got one and the same reward have no gradient and
are not computed again; reward hacking is watched for while it could begin (`stages/alarm.py`).

Command: `make stage STAGE=r1_zero`, or as part of `make r1-zero`; `STAGE=final_rl` for the final RL of `make r1-full`
"""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.errors import DataError
from pipeline.refs import DatasetRef, Ref, RewardModelRef
from pipeline.stage import Inputs, Runtime, Workdir, read_jsonl
from stages.alarm import MODELLED, Alarm
from stages.difficulty import read_pass_rates, within
from stages.lengthening import Phase
from stages.rewards import AnyReward, Sample, Scorer, score_many
from stages.rewards.accuracy import Accuracy
from stages.rewards.checkers import Verdict, check_many
from stages.rewards.format import Format
from stages.rows import rows_of
from stages.sampling import SamplingStage
from stages.training import TrainingStage, merge_metrics

if TYPE_CHECKING:
    from stages.engines.samplers import Completion

log = logging.getLogger(__name__)

# Golds that are tried before training; a card of a million problems is not judged whole.
MAX_GOLDS_CHECKED = 5000


@dataclass(frozen=True)
class Problems:
    """What a run learns from, and what it is watched on."""

    early: list[dict[str, str]]
    """From the first step."""
    late: list[dict[str, str]]
    """From `late_from` on."""
    held_out: list[dict[str, str]]
    """For the hacking alarm."""
    num_unusable: int
    """How many of the first two were left out because their gold answers cannot be checked against."""


class GRPO(TrainingStage, SamplingStage):
    """Samples responses, rewards them, and makes the better ones of each group more likely."""

    kind: ClassVar[str] = "grpo"
    spreads: ClassVar[bool] = True
    problems: list[DatasetRef] = Field(min_length=1, description="problems to learn from")
    rewards: tuple[AnyReward, ...] = Field(
        (Accuracy(), Format(weight=0.2)), min_length=1, description="parts of the reward; their weighted sum counts"
    )
    pass_rates: DatasetRef | None = Field(
        None, description="a rejection_sampling stage that says how hard the problems are; null = learn from all"
    )
    min_pass_rate: float = Field(0.0, ge=0, le=1, description="leave out problems that were solved less often")
    max_pass_rate: float = Field(1.0, ge=0, le=1, description="leave out problems that were solved more often")
    helpfulness_model: RewardModelRef | None = Field(None, description="gives the reward of kind helpfulness")
    harmlessness_model: RewardModelRef | None = Field(None, description="gives the reward of kind harmlessness")
    late_problems: list[DatasetRef] = Field([], description="problems that enter late; general prompts, in the paper")
    late_each: int | None = Field(None, ge=1, description="at most so many from each of these references; null = all")
    late_from: float = Field(0.765, ge=0, lt=1, description="share of the steps after which they enter")
    late_share: float = Field(0.5, gt=0, le=1, description="their share of a step's problems from then on")
    alarm_problems: list[DatasetRef] = Field(
        [], description="held-out problems for the hacking alarm; none = no alarm", json_schema_extra={"split": "eval"}
    )
    alarm: Runtime[Alarm] = Field(Alarm(), description="what is done about reward hacking")

    lengthening: tuple[Phase, ...] = Field((), description="phases with longer responses, in their order")
    max_steps: int = Field(100, ge=1, description="updates of the policy")
    num_problems: int = Field(32, ge=1, description="problems in each step")
    num_generations: int = Field(8, ge=2, description="responses to each problem: the group G")
    temperature: float = Field(1.0, ge=0.01)

    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    beta: float = Field(0.0, ge=0, description="weight of the KL term that ties the policy to the reference")
    epsilon: float = Field(0.2, ge=0, description="clipping of the importance ratio, below")
    epsilon_high: float | None = Field(
        None, ge=0, description="clipping above; null = like epsilon. For cispo the ratio's own bound, such as 5"
    )
    delta: float | None = Field(None, gt=1, description="upper bound of the ratio for negative advantages; null = none")
    importance_sampling_level: Literal["token", "sequence"] = "token"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated_completions: bool = Field(False, description="leave cut-off responses out of the loss")
    num_iterations: int = Field(1, ge=1, description="updates on each batch of responses")
    dynamic_sampling: int = Field(
        0, ge=0, description="times that groups with equal rewards are replaced by further problems (DAPO); 0 = never"
    )
    ref_model_sync_steps: int = Field(0, ge=0, description="steps between refreshes of the KL reference; 0 = never")

    @model_validator(mode="after")
    def _pass_rates_are_a_range(self) -> Self:
        low, high = self.min_pass_rate, self.max_pass_rate
        if low > high:
            raise ValueError(f"min_pass_rate {low:g} is above max_pass_rate {high:g}: no problem lies between")
        if self.pass_rates is None and (low, high) != (0.0, 1.0):
            raise ValueError("min_pass_rate and max_pass_rate need `pass_rates`: a stage of kind rejection_sampling")
        return self

    @model_validator(mode="after")
    def _bounds_fit_the_loss(self) -> Self:
        """What TRL only warns of, or does not look at."""
        loss, level = self.loss_type, self.importance_sampling_level
        if loss == "cispo" and (self.epsilon_high or 0) < 1:
            raise ValueError("loss_type cispo cuts the ratio itself at epsilon_high (ScaleRL: 5): set one of 1 or more")
        if self.delta is not None and loss in ("cispo", "sapo", "vespo"):
            raise ValueError(f"delta bounds a ratio that is clipped, and loss_type {loss} clips none")
        if level == "sequence" and loss not in ("grpo", "sapo", "luspo"):
            raise ValueError(f"loss_type {loss} would weigh a sequence by its length: set loss_type grpo, as GSPO does")
        if loss == "luspo" and level == "token":
            raise ValueError("loss_type luspo is made for importance_sampling_level sequence")
        return self

    @field_validator("helpfulness_model", "harmlessness_model")
    @classmethod
    def _goes_with_its_reward(cls, model: Ref | None, info: ValidationInfo) -> Ref | None:
        kind = str(info.field_name).removesuffix("_model")
        is_listed = kind in {reward.kind for reward in info.data.get("rewards", ())}
        if is_listed and model is None:
            raise ValueError(f"the reward '{kind}' needs a reward model: name one, or take the reward off the list")
        if model is not None and not is_listed:
            raise ValueError(f"no reward asks this model: list one of kind '{kind}', or leave the model out")
        return model

    @field_validator("alarm_problems")
    @classmethod
    def _has_scores_to_watch(cls, problems: list[DatasetRef], info: ValidationInfo) -> list[DatasetRef]:
        if problems and not {reward.kind for reward in info.data.get("rewards", ())}.intersection(MODELLED):
            raise ValueError(
                f"the alarm compares the rewards {' and '.join(MODELLED)}: without them it has nothing to watch"
            )
        return problems

    @field_validator("dynamic_sampling")
    @classmethod
    def _has_one_deck(cls, times: int, info: ValidationInfo) -> int:
        if times and info.data.get("late_problems"):
            raise ValueError(
                "further problems cannot be drawn where some enter late: leave late_problems out, or set 0"
            )
        return times

    @field_validator("lengthening")
    @classmethod
    def _is_in_order(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        begins = [phase.from_fraction for phase in phases]
        if begins != sorted(set(begins)):
            raise ValueError("each phase must begin after the one before: their from_fraction must rise")
        return phases

    def in_phase(self, phase: Phase) -> "GRPO":
        """The same stage with the limits of a phase."""
        length, count = self.max_completion_length * phase.length, self.num_generations * phase.generations
        return self.model_copy(update={"max_completion_length": round(length), "num_generations": round(count)})

    def variables(self) -> dict[str, str]:
        """vLLM in the process has an allocator of its own beside torch's, which refuses blocks that grow."""
        has_vllm = self.sampler in ("auto", "vllm") and importlib.util.find_spec("vllm") is not None
        return {} if has_vllm else super().variables()

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Trains and saves the model; returns means over the last tenth of the steps.

        Raises StageFailed when the hacking alarm stops it.
        """
        from stages.engines import grpo_run  # imports torch and trl

        grpo_run.check(self)
        problems = self._problems(inputs)
        grpo_run.train(self, inputs, problems, work)
        rows = read_jsonl(work.metrics_file)
        found = closing_means(rows) | {"num_unusable_golds": problems.num_unusable} | merge_metrics(work)
        if problems.held_out:
            found["num_suspicious_looks"] = sum(row.get("alarm/suspicious", 0.0) for row in rows)
        return found

    def _problems(self, inputs: Inputs) -> Problems:
        """The rows; DataError when they are no problems, or too few for one step."""
        from stages.engines.schedule import num_late_problems  # imports torch

        early, num_bad = usable(self._worth_learning(inputs))
        late, num_bad_late = usable(
            rows_of(inputs, "late_problems", "problem", self.late_each) if self.late_problems else []
        )
        is_watched = self.alarm_problems and self.alarm.action != "off"
        held_out, _ = usable(
            rows_of(inputs, "alarm_problems", "problem", self.alarm.num_problems) if is_watched else []
        )
        _require(early, self.num_problems, "problems")
        if late:
            _require(late, num_late_problems(self.num_problems, self.late_share), "late problems")
        return Problems(early, late, held_out, num_bad + num_bad_late)

    def _worth_learning(self, inputs: Inputs) -> list[dict[str, str]]:
        """The problems, without those that were solved too seldom or too often."""
        found = rows_of(inputs, "problems", "problem")
        if self.pass_rates is None:
            return found
        return within(found, read_pass_rates(inputs.folder("pass_rates")), self.min_pass_rate, self.max_pass_rate)

    def score(
        self,
        problems: Sequence[dict[str, Any]],
        completions: "Sequence[Completion]",
        fraction: float,
        models: Mapping[str, Scorer] | None = None,
    ) -> list[dict[str, float | None]]:
        """`reward` and each `reward/<kind>` of each response; `fraction` is the share of training done.

        `models` holds the reward model of each kind that needs one.
        """
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
        return score_many(self.rewards, samples, models)

    def shares_right(self, problems: Sequence[dict[str, str]], groups: "Sequence[Sequence[Completion]]") -> list[float]:
        """The share of right responses to each problem; `groups` holds the responses to each."""
        pairs = [(problem, found) for problem, group in zip(problems, groups, strict=True) for found in group]
        right = iter([one.verdict is Verdict.right for one in self.judged(pairs)])
        return [fmean(next(right) for _ in group) for group in groups]


def _require(problems: list[dict[str, str]], wanted: int, what: str) -> None:
    if len(problems) < wanted:
        raise DataError(
            f"there are {len(problems)} usable {what}, but a step takes {wanted}",
            hint=f"lower num_problems, or name more {what}",
        )


def usable(problems: list[dict[str, str]]) -> tuple[list[dict[str, str]], int]:
    """Problems whose gold answer can be checked against, and how many were left out; DataError if all.

    Each one left out is named in the log.
    """
    tried = problems[:MAX_GOLDS_CHECKED]
    verdicts = check_many([("", problem) for problem in tried])
    bad = {i for i, verdict in enumerate(verdicts) if verdict is Verdict.gold_unusable}
    if bad and len(bad) == len(tried):
        first = problems[0]
        raise DataError(
            f"no gold answer can be used: problem {first['id']!r} has {first['answer']!r} for the checker "
            f"{first['checker']!r}",
            hint="look at the columns `answer` and `checker` of the data card",
        )
    for i in sorted(bad):
        found = problems[i]
        log.warning(
            "problem %s is left out: %s cannot use its gold %.80r", found["id"], found["checker"], found["answer"]
        )
    return [problem for i, problem in enumerate(problems) if i not in bad], len(bad)


def closing_means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means of the headline curves over their last tenth; a step that sampled nothing has no part in some of them."""
    names = ("reward", "pass_at_1", "mean_response_tokens", "step_seconds")
    found = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: fmean(values[-max(1, len(values) // 10) :]) for name, values in found.items() if values}
