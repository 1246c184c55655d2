"""Harmlessness: is the whole response safe, reasoning included, as a reward model sees it?

Formula: the score of the model `harmlessness` (`harmlessness_model` of the stage) for question and response
without tags; 0 if the response is empty. Range [0, 1]: the probability that it is safe.
Paper: DeepSeek-R1, sections 3.1 and 3.2.2: the safety reward model looks at the entire response, because harm may
stand in the reasoning too; the last 400 of 1,700 steps only (`from_fraction: 0.765`).
How we differ: a probability and not an unbounded score. Over-refusal is not this reward's business: problems
that ask for an answer belong to other domains or to the rule `refusal`.
"""

from typing import Literal

from stages.rewards.reward import PreferenceReward


class Harmlessness(PreferenceReward):
    """The safety reward model's score of the whole response."""

    kind: Literal["harmlessness"] = "harmlessness"
    domains: tuple[str, ...] = ("safety",)
    scope: Literal["answer", "whole"] = "whole"
