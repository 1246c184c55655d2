"""What a reward is, what it looks at, and how several of them become one number.

Reads samples (`Sample`: a problem and one parsed response to it); gives, for each sample, every reward by
itself and their weighted sum (`score_many`). Most rewards are rules; a `PreferenceReward` asks a
reward model, which is handed in (`models`), so that this file knows nothing of torch.

Paper: DeepSeek-R1, sections 2.2.2 (rule-based rewards), 2.3.2 and 2.3.3 (which reward applies to which data
and when).
How we differ: weights, domains, scope and schedule are settings; `None` means "does not apply", which is not
the same as 0. Text from a model never raises; a bug in a reward does, and is told with its place.
"""

import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field

from pipeline.disk import is_full
from pipeline.errors import ConfigError, ModelError, PipelineError, StageFailed
from stages.chat import Response, judged_text

Scope = Literal["reasoning", "answer", "whole"]


class Scorer(Protocol):
    """A reward model, seen from here; `stages/engines/reward_models.py` has the real one."""

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """How good each text is as a response to the question beside it, in [0, 1]."""
        ...


@dataclass(frozen=True)
class Sample:
    """One response to one problem, with what a reward may look at."""

    problem: Mapping[str, str]
    """A problem row: id, prompt, answer, checker, domain, language."""
    response: Response
    num_tokens: int
    """Length of the completion in tokens, end token included."""
    truncated: bool
    """The completion was cut at the length limit."""
    max_tokens: int
    """The length limit in tokens."""
    fraction: float = 0.0
    """Share of the training steps already done, in [0, 1]."""


class Reward(BaseModel):
    """One part of the reward. A subclass sets `kind` and writes `score` (or `score_many`, for batches)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """Name in the table `REWARDS`, in settings and in logs."""
    weight: float = 1.0
    """Factor in the sum."""
    domains: tuple[str, ...] = ()
    """Domains of the problems it applies to; empty = all."""
    scope: Scope = "whole"
    """The part of the response it looks at, for rewards that measure text."""
    from_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """It applies only after this share of the steps (paper: preference rewards in the last 23.5 %)."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """ConfigError for a class that has neither `score` nor `score_many`: here each asks the other."""
        if cls.score is Reward.score and cls.score_many is Reward.score_many:
            raise ConfigError(
                f"{file_of(cls)}: the reward class {cls.__name__} defines neither score nor score_many",
                hint="give it `def score(self, sample: Sample) -> float | None`, or score_many where it needs a batch",
            )

    def check_machine(self) -> None:
        """Raises ResourceError where this machine cannot give the reward; called before a stage starts."""

    def score(self, sample: Sample) -> float | None:
        """The reward of one sample; None if it does not apply to this sample."""
        return self.score_many([sample])[0]

    def score_many(self, samples: Sequence[Sample]) -> list[float | None]:
        """The reward of each sample, in order."""
        return [self.score(sample) for sample in samples]

    def applies(self, sample: Sample) -> bool:
        """Whether domain and schedule let this reward look at the sample."""
        in_domain = not self.domains or sample.problem["domain"] in self.domains
        return in_domain and sample.fraction >= self.from_fraction

    def text(self, sample: Sample) -> str | None:
        """The part of the response that `scope` names; None if the response has no such part."""
        response = sample.response
        return {"reasoning": response.reasoning, "answer": response.answer, "whole": response.text}[self.scope]


class PreferenceReward(Reward):
    """A reward that a trained model gives. A subclass sets `kind`, `domains` and `scope`."""

    scope: Literal["answer", "whole"] = "answer"

    def score_many(self, samples: Sequence[Sample]) -> list[float | None]:
        """Raises ConfigError: without its model this reward cannot say anything."""
        raise _lacks_model(self)

    def score_with(self, scorer: Scorer, samples: Sequence[Sample]) -> list[float | None]:
        """The model's score of each sample, in [0, 1]; 0 where there is no text to judge.

        Raises ModelError if the model gives something that is no number.
        """
        texts = [judged_text(sample.response, self.scope) for sample in samples]
        asked = [i for i, text in enumerate(texts) if text is not None]
        scores: list[float | None] = [0.0] * len(samples)
        given = scorer.score([samples[i].problem["prompt"] for i in asked], [texts[i] or "" for i in asked])
        for i, score in zip(asked, given, strict=True):
            if not math.isfinite(score):
                raise ModelError(
                    f"the {self.kind} model gave {score} to a response to problem {samples[i].problem['id']!r}",
                    hint="train that reward model again with a lower learning rate",
                )
            scores[i] = score
        return scores


def score_many(
    rewards: Sequence[Reward], samples: Sequence[Sample], models: Mapping[str, Scorer] | None = None
) -> list[dict[str, float | None]]:
    """Each sample's `reward` (weighted sum of what applies; None if nothing does) and each part as `reward/<kind>`.

    `models` holds a reward model for the kind of every `PreferenceReward`. Raises ConfigError if one is missing, even
    before it applies, and if two rewards have the same kind: their parts could not be told apart in the log.
    """
    kinds = [reward.kind for reward in rewards]
    if len(set(kinds)) < len(kinds):
        raise ConfigError(
            f"a reward kind is listed twice: {', '.join(kinds)}",
            hint="keep one of them and change its weight, or limit each to other domains",
        )
    models = models or {}
    for reward in rewards:
        if isinstance(reward, PreferenceReward) and reward.kind not in models:
            raise _lacks_model(reward)
    columns = [_column(reward, samples, models) for reward in rewards]
    return [_sum(rewards, [column[i] for column in columns]) for i in range(len(samples))]


def _column(reward: Reward, samples: Sequence[Sample], models: Mapping[str, Scorer]) -> list[float | None]:
    column: list[float | None] = [None] * len(samples)
    rows = [i for i, sample in enumerate(samples) if reward.applies(sample)]
    chosen = [samples[i] for i in rows]
    if not isinstance(reward, PreferenceReward):
        values = _by_rule(reward, chosen)
    else:
        values = reward.score_with(models[reward.kind], chosen) if chosen else []
    for i, value in zip(rows, values, strict=True):
        column[i] = value
    return column


def _by_rule(reward: Reward, samples: Sequence[Sample]) -> list[float | None]:
    """What a rule gives; StageFailed, with the rule's kind, where it raises or does not give each sample a number."""
    try:
        values = list(reward.score_many(samples))
    except Exception as error:
        if isinstance(error, PipelineError | MemoryError) or is_full(error):
            raise
        raise _failed(reward, error) from error
    hint = f"mend it in {file_of(type(reward))}: None says that a reward does not apply; then run it again"
    if len(values) != len(samples):
        raise StageFailed(
            f"the reward '{reward.kind}' gave {len(values)} scores to {len(samples)} responses", hint=hint
        )
    for sample, value in zip(samples, values, strict=True):
        if not _is_score(value):
            problem = f"a response to problem {sample.problem['id']!r}"
            raise StageFailed(f"the reward '{reward.kind}' gave {value!r:.80} to {problem}", hint=hint)
    return [None if value is None else float(value) for value in values]


def _is_score(value: Any) -> bool:
    """Whether it is None or a finite number, be it one of numpy's or torch's."""
    try:
        return value is None or math.isfinite(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def _failed(reward: Reward, error: Exception) -> StageFailed:
    """Says where a reward raised: the innermost line in its own file, or in that of the class it builds on."""
    frames = list(traceback.walk_tb(error.__traceback__))[::-1]
    lines = (
        f"{file_of(kind)}, line {line}"
        for kind in type(reward).__mro__
        for frame, line in frames
        if frame.f_globals.get("__name__") == kind.__module__
    )
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    hint = "mend it there, then run the same command again; the stage's log has the traceback"
    return StageFailed(f"the reward '{reward.kind}' failed at {next(lines)}: {reason}", hint=hint)


def file_of(reward: type[Reward]) -> str:
    """Where a reward is written."""
    return f"{reward.__module__.replace('.', '/')}.py"


def table_of(classes: Iterable[type[Reward]]) -> dict[str, type[Reward]]:
    """Each class under its kind; ConfigError, with the file, for one without a kind or with that of another."""
    table: dict[str, type[Reward]] = {}
    for each in classes:
        kind, example = each.model_fields["kind"], each.__name__.lower()
        hint = f'write `kind: Literal["{example}"] = "{example}"` in the class'
        if get_args(kind.annotation) != (kind.default,):
            raise ConfigError(f"{file_of(each)}: the reward class {each.__name__} does not say its kind", hint=hint)
        if kind.default in table:
            other = table[kind.default]
            sentence = f"the kind '{kind.default}' of {each.__name__} is that of {other.__name__} in {file_of(other)}"
            raise ConfigError(f"{file_of(each)}: {sentence}", hint=hint)
        table[kind.default] = each
    return table


def _lacks_model(reward: PreferenceReward) -> ConfigError:
    return ConfigError(
        f"the reward '{reward.kind}' needs a reward model, and none is given",
        hint=f"set {reward.kind}_model: stage:NAME (or hub:, run:, path:), or take the reward off the list",
    )


def _sum(rewards: Sequence[Reward], values: Sequence[float | None]) -> dict[str, float | None]:
    weighted = [reward.weight * value for reward, value in zip(rewards, values, strict=True) if value is not None]
    parts = {f"reward/{reward.kind}": value for reward, value in zip(rewards, values, strict=True)}
    return {"reward": sum(weighted) if weighted else None, **parts}
