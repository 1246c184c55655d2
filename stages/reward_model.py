"""Reward models: a language model with a head that says in one number how good a response is.

Reads a checkpoint (the body) and preferences: a prompt with a better and a worse response. Makes a reward model:
a sequence classifier (safetensors), `reward_model.json` (how it must be asked), `held_out.jsonl` (its score of
both texts of every held-out pair), and the curves `metrics.jsonl`.

Paper: DeepSeek-R1 §3.1. Helpful: 66,000 pairs of like lengths, pairwise loss; safety: 106,000 prompts with
responses marked safe or unsafe, pointwise loss; both: batch 256, learning rate 6e-6, one epoch, body R1.
How we differ: the body is any checkpoint; safe and unsafe responses come as pairs (chosen is safe, rejected is
not); LoRA or all weights. How far length alone decides is measured on held-out pairs; `balance_lengths` makes
the better text the longer one as often as the shorter one, which is one reading of "comparable lengths".

Command: `make stage STAGE=helpfulness_model`, or as part of `make r1-full`
"""

import hashlib
import math
from collections.abc import Sequence
from statistics import StatisticsError, correlation, fmean
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator

from pipeline.errors import DataError
from pipeline.refs import REWARD_MODEL, DatasetRef
from pipeline.stage import Inputs, ModelSource, Runtime, Workdir
from stages.chat import judged_text, parse
from stages.rows import rows_of
from stages.sampling import Template
from stages.training import TrainingStage, merge_metrics

Row = dict[str, str]


class Pair(NamedTuple):
    """A question, and two texts for it as a reward model reads them (`judged_text`)."""

    id: str
    prompt: str
    chosen: str
    """The better text; for a pointwise model the safe one."""
    rejected: str

    @property
    def length_gap(self) -> int:
        """How many characters the better text is longer; below 0 when it is shorter."""
        return len(self.chosen) - len(self.rejected)


class ScoredPair(NamedTuple):
    """A held-out pair and the two logits the trained model gave."""

    pair: Pair
    chosen: float
    rejected: float

    @property
    def is_right(self) -> bool:
        return self.chosen > self.rejected


class RewardModel(TrainingStage):
    """Learns which of two responses is better, or which responses are safe."""

    kind: ClassVar[str] = "reward_model"
    makes: ClassVar[str] = REWARD_MODEL
    preferences: list[DatasetRef] = Field(min_length=1, description="prompts with a better and a worse response")
    num_preferences: int | None = Field(None, ge=1, description="at most so many from each reference; null = all")
    objective: Literal["pairwise", "pointwise"] = Field(
        "pairwise", description="pairwise: chosen is better than rejected; pointwise: chosen is safe, rejected is not"
    )
    scope: Literal["answer", "whole"] = Field(
        "answer", description="what is judged: the final answer, or the response with its reasoning"
    )
    balance_lengths: bool = Field(
        False, description="leave out pairs until the better text is the longer one as often as the shorter one"
    )
    template: Template = Field("r1_zero", description="how a prompt is written (stages/chat.py)")
    max_length: int = Field(1024, ge=2, description="tokens of prompt and text; pairs with a longer one are left out")
    eval_share: float = Field(0.1, gt=0, lt=1, description="share of the prompts held out to measure the model")

    learning_rate: float = Field(6e-6, gt=0)
    num_train_epochs: int = Field(1, ge=1, description="times each pair is seen")
    max_steps: int | None = Field(None, ge=1, description="updates of the model; null = as the epochs need")
    batch_size: int = Field(256, ge=1, description="pairs in each step")

    save_steps: Runtime[int] = Field(50, ge=1, description="steps between checkpoints to resume from")

    @field_validator("memory_gb")
    @classmethod
    def _is_not_kept(cls, memory_gb: float | None) -> float | None:
        if memory_gb is not None:
            raise ValueError("a reward model's training keeps within no memory_gb: lower token_budget")
        return memory_gb

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Trains and saves the model; returns what it is worth on held-out pairs, its length bias and the counts.

        Raises DataError if no pair is left to learn from, ModelError if the model stops giving numbers.
        """
        from stages.engines import reward_run  # imports torch and trl

        reward_run.check(self)
        pairs, counts = usable_pairs(rows_of(inputs, "preferences", "preference", self.num_preferences), self.scope)
        if self.balance_lengths:
            pairs, counts["num_unbalanced"] = balanced(pairs)
        training, held_out = split(pairs, self.eval_share, self.seed)
        counts["num_too_long"] = reward_run.train(self, inputs.checkpoint("model"), training, work)
        counts |= {"num_trained": len(training) - counts["num_too_long"], "num_held_out": len(held_out)}

        self._describe(work, center=0.0)  # raw logits first; the center is known when held-out texts have them
        found = reward_run.logits(self, ModelSource(str(work.path)), held_out)
        scored = [ScoredPair(pair, *both) for pair, both in zip(held_out, found, strict=True)]
        self._describe(work, center=center(scored) if self.objective == "pairwise" else 0.0)
        work.write_jsonl("held_out.jsonl", (_record(one) for one in scored))
        return measures(scored, self.objective) | counts | merge_metrics(work)

    def _describe(self, work: Workdir, center: float) -> None:
        said = {"template": self.template, "scope": self.scope, "objective": self.objective, "center": center}
        work.write_json("reward_model.json", said)


def _record(scored: ScoredPair) -> dict[str, Any]:
    return {"id": scored.pair.id, "chosen": scored.chosen, "rejected": scored.rejected}


def usable_pairs(rows: Sequence[Row], scope: Literal["answer", "whole"]) -> tuple[list[Pair], dict[str, int]]:
    """The pairs that say something, and how many did not: a side without a text to judge, or equal sides.

    Raises DataError if none is left.
    """
    pairs, counts = [], {"num_preferences": len(rows), "num_without_text": 0, "num_equal": 0}
    for row in rows:
        chosen, rejected = (judged_text(parse(row[side]), scope) for side in ("chosen", "rejected"))
        if not chosen or not rejected:
            counts["num_without_text"] += 1
        elif chosen == rejected:
            counts["num_equal"] += 1
        else:
            pairs.append(Pair(row["id"], row["prompt"], chosen, rejected))
    if not pairs:
        raise DataError(
            f"preferences: none of {len(rows)} is left; {counts['num_equal']} have equal sides, "
            f"{counts['num_without_text']} a side without a text to judge (scope: {scope})",
            hint="look at the columns `chosen` and `rejected` of the data; `make cards` lists the cards",
        )
    return pairs, counts


def balanced(pairs: Sequence[Pair]) -> tuple[list[Pair], int]:
    """As many pairs whose better text is the longer one as pairs where it is the shorter, the first of each, and
    how many pairs that leaves out. DataError if it leaves out all.
    """
    longer = [pair for pair in pairs if pair.length_gap > 0]
    shorter = [pair for pair in pairs if pair.length_gap < 0]
    even = [pair for pair in pairs if pair.length_gap == 0]
    each = min(len(longer), len(shorter))
    kept = longer[:each] + shorter[:each] + even
    if not kept:
        side = "longer" if longer else "shorter"
        raise DataError(
            f"balance_lengths: the better text is always the {side} one, so no balanced pair is left",
            hint="add pairs of the other kind, or set balance_lengths: false and watch length_correlation",
        )
    return kept, len(pairs) - len(kept)


def split(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs held out: `share` of the prompts, at least one, all pairs of a prompt together.

    Raises DataError if there is only one prompt.
    """
    prompts = sorted({pair.prompt for pair in pairs}, key=lambda p: hashlib.sha256(f"{seed}:{p}".encode()).digest())
    if len(prompts) < 2:
        raise DataError(
            f"preferences: {len(pairs)} usable pairs have one prompt between them, so none can be held out",
            hint="give preferences for at least two different prompts",
        )
    num_held_out = min(len(prompts) - 1, max(1, round(share * len(prompts))))
    held_out = set(prompts[:num_held_out])
    return [p for p in pairs if p.prompt not in held_out], [p for p in pairs if p.prompt in held_out]


def center(scored: Sequence[ScoredPair]) -> float:
    """The mean logit: what a response of the usual quality gets. Pairwise training leaves it anywhere."""
    return fmean(logit for one in scored for logit in (one.chosen, one.rejected))


def measures(scored: Sequence[ScoredPair], objective: str) -> dict[str, float]:
    """How good the model is on held-out pairs, and how far it goes by length.

    `accuracy`: share of pairs whose better text scores higher; `accuracy_better_is_shorter` and
    `accuracy_better_is_longer`: the same where length speaks against and for it; `share_better_is_longer`: how
    the pairs lie; `length_correlation`: Pearson's r of logit and length in characters over all texts. What
    cannot be said (no such pair, all lengths equal) is left out. Pointwise models also have
    `accuracy_of_texts`: share of single texts on the right side of one half.
    """
    longer = [one for one in scored if one.pair.length_gap > 0]
    shorter = [one for one in scored if one.pair.length_gap < 0]
    texts = [
        (logit, len(text))
        for one in scored
        for logit, text in ((one.chosen, one.pair.chosen), (one.rejected, one.pair.rejected))
    ]
    found = {
        "accuracy": _share_right(scored),
        "eval_loss": fmean(_loss(one, objective) for one in scored),
        "accuracy_better_is_longer": _share_right(longer),
        "accuracy_better_is_shorter": _share_right(shorter),
        "share_better_is_longer": len(longer) / len(scored),
        "length_correlation": _correlation(texts),
    }
    if objective == "pointwise":
        found["accuracy_of_texts"] = fmean(side for one in scored for side in (one.chosen > 0, one.rejected <= 0))
    return {name: value for name, value in found.items() if value is not None}


def _share_right(scored: Sequence[ScoredPair]) -> float | None:
    return fmean(one.is_right for one in scored) if scored else None


def _correlation(points: Sequence[tuple[float, int]]) -> float | None:
    try:
        return correlation(*zip(*points, strict=True))
    except StatisticsError:  # all the same
        return None


def _loss(scored: ScoredPair, objective: str) -> float:
    """What training makes small, for one pair."""
    if objective == "pairwise":
        return _softplus(scored.rejected - scored.chosen)
    return (_softplus(-scored.chosen) + _softplus(scored.rejected)) / 2


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
