"""Accuracy: is the final answer right?

Formula: 1 if the checker of the problem says `right`, else 0; None when the gold answer itself is unusable,
or when no rule can judge an answer (checker `judge`). Range {0, 1}.
Paper: DeepSeek-R1, section 2.2.2, accuracy rewards (rules only, no neural reward model).
How we differ: an answer that could not be judged in time pays 0 and not None, or a model could choose to have
no bad samples by writing answers that hang the judge. An answer that stands only inside the reasoning is no
answer.
"""

from collections.abc import Sequence
from typing import Literal

from stages.rewards.checkers import Verdict, answer_text, check_many
from stages.rewards.reward import Reward, Sample

PAYS: dict[Verdict, float | None] = {
    Verdict.right: 1.0,
    Verdict.wrong: 0.0,
    Verdict.cannot_tell: 0.0,
    Verdict.gold_unusable: None,
    Verdict.no_rule: None,
}


class Accuracy(Reward):
    """1 for a right answer, 0 otherwise."""

    kind: Literal["accuracy"] = "accuracy"
    scope: Literal["answer"] = "answer"

    def score_many(self, samples: Sequence[Sample]) -> list[float | None]:
        pairs = [(answer_text(sample.response, sample.problem["checker"]), sample.problem) for sample in samples]
        return [PAYS[verdict] for verdict in check_many(pairs)]
